"""Patterns that name many tars or tables: data-{000..099}.tar, {train,more}.tar, data-*.parquet."""

import glob
import os
import re

from tinkit.errors import TinkitError
from tinkit.host.images import tables
from tinkit.host.images.folder import COMPRESSED, TAR_ENDING

MAGIC = re.compile(r"[*?\[\]{}]")
WILD_CARD = re.compile(r"[*?\[]")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
MOST_FILES = 1_000_000  # of a pattern


def shards_of(pattern) -> list[str]:
    """The files of a pattern: {000..099} and {a,b} name files that must be there, * ? [ ] those that are."""
    found: list[str] = []
    for one in _expanded(pattern):
        there = sorted(glob.glob(one)) if WILD_CARD.search(one) else [one] if os.path.isfile(one) else []
        if not there:
            raise TinkitError("No file fits the pattern." if WILD_CARD.search(one) else "A file of the pattern is missing.",
                              where=one, seen=f"in {pattern}", next_step="name the files that there are")  # fmt: skip
        found += there
    found = list(dict.fromkeys(found))
    strange = [path for path in found if ending_of(path) != TAR_ENDING and ending_of(path) not in tables.ENDINGS]
    if strange:
        if strange[0].lower().endswith(COMPRESSED):
            raise refuse_compressed(strange[0])
        raise TinkitError("A pattern names .tar, .parquet or .arrow files.", where=strange[0],
                          next_step="name the folder of the pictures, or a .txt list of them")  # fmt: skip
    return found


def _expanded(pattern) -> list[str]:
    """Every string that the braces stand for, in order."""
    waiting, found = [pattern], []
    while waiting:
        one = waiting.pop()
        match = RANGE.search(one)
        if match is None:
            found.append(one)
            continue
        choices = _choices(match)
        if len(waiting) + len(choices) + len(found) > MOST_FILES:
            raise TinkitError("The pattern names too many files.", where=pattern, seen=f"more than {MOST_FILES}")
        waiting += [one[: match.start()] + choice + one[match.end() :] for choice in reversed(choices)]
    return found


def _choices(match) -> list[str]:
    if match[3] is not None:
        return match[3].split(",")
    first, last = int(match[1]), int(match[2])
    if last - first >= MOST_FILES:
        raise TinkitError("The pattern names too many files.", where=match[0], seen=f"more than {MOST_FILES}")
    width = len(match[1]) if match[1].startswith("0") else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]


def ending_of(path) -> str:
    """The ending, lower case with the dot."""
    return os.path.splitext(path)[1].lower()


def refuse_compressed(path) -> TinkitError:
    """The error that says why."""
    return TinkitError(
        "A compressed tar cannot be read: its pictures are needed in any order, and it has no random access.",
        where=path,
        next_step="unpack it to a .tar (gunzip, unxz, zstd -d): pictures are compressed already, so it hardly grows",
    )
