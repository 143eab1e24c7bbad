"""Finds the pictures of a folder, tries each one, and splits them into training and held-out.

One pass at the start decodes every file once, in threads, and hashes its bytes. So an unreadable picture is known and
counted before anything is trained; the content hash is the picture's address for views, for the store and for the split
(duplicates always fall on the same side). Nothing is kept in memory but names and hashes.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tinkit.device.pictures import Unreadable, decode, is_picture_name, suffixes
from tinkit.errors import TinkitError

MIN_SIDE = 8  # pixels; below it there is nothing to see
HELD_OUT_SHARE, HELD_OUT_MIN, HELD_OUT_MAX = 0.05, 8, 512


@dataclass(frozen=True)
class Picture:
    """One readable file: `name` is its path relative to the folder, `content` the sha256 of its bytes."""

    path: str
    name: str
    content: str


@dataclass(frozen=True)
class Pictures:
    """What a folder holds. `skipped` are (name, reason); `others` counts files that are no pictures by their name."""

    root: str
    usable: tuple[Picture, ...]
    skipped: tuple[tuple[str, str], ...]
    others: int


def scan(folder, strict=False, tick=None, stop=None) -> Pictures:
    """All usable pictures below `folder`, sorted by name. `tick(total)` is called once a file;
    InterruptedError once `stop()` is true.

    Raises TinkitError when the folder is missing, a file, or without a usable picture; with `strict` also for the
    first unreadable one.
    """
    root = require_folder(folder)
    names, others = _list(root)
    usable, skipped = [], []
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for name, content, reason in _in_order(pool, root, names):
            if reason is None:
                usable.append(Picture(os.path.join(root, name), name, content))
            elif strict:
                raise TinkitError(
                    "A picture cannot be read (--strict).",
                    where=os.path.join(root, name),
                    seen=reason,
                    next_step="remove or repair it, or leave --strict out to skip such files",
                )
            else:
                skipped.append((name, reason))
            if tick:
                tick(len(names))
            if stop and stop():
                raise InterruptedError
    if not usable:
        raise TinkitError(
            "There is no usable picture in the folder.",
            where=root,
            seen=f"{len(skipped)} unreadable, {others} files that are no pictures",
            next_step="give a folder with JPEG, PNG or other pictures, in any depth",
        )
    return Pictures(root, tuple(usable), tuple(skipped), others)


def require_folder(folder) -> str:
    """The absolute path of an existing folder; TinkitError for anything else."""
    root = os.path.abspath(os.fspath(folder))
    if not os.path.isdir(root):
        what = "The pictures must be a folder, this is a file." if os.path.exists(root) else "The folder is missing."
        raise TinkitError(what, where=root, next_step="name a folder that holds pictures, in any depth")
    return root


def split(pictures: Iterable[Picture], seed: int) -> tuple[list[Picture], list[Picture]]:
    """(training, held-out): 5 % held out, at least 8, at most 512; drawn by content, so duplicates stay together."""
    pictures = list(pictures)
    wanted = min(max(round(HELD_OUT_SHARE * len(pictures)), HELD_OUT_MIN), HELD_OUT_MAX, len(pictures) // 2)
    rank = {p.content: hashlib.sha256(f"{seed}/{p.content}".encode()).hexdigest() for p in pictures}
    held_out: set[str] = set()
    count = 0
    copies: dict[str, int] = {}
    for picture in pictures:
        copies[picture.content] = copies.get(picture.content, 0) + 1
    for content in sorted(rank, key=lambda content: rank[content]):
        if count >= wanted:
            break
        held_out.add(content)
        count += copies[content]
    train = [p for p in pictures if p.content not in held_out]
    return train, sorted((p for p in pictures if p.content in held_out), key=lambda p: rank[p.content])


def _list(root):
    """Relative names of candidates, sorted, and the number of other files. Linked folders are followed, loops are not."""
    endings, names, others, seen = suffixes(), [], 0, set()
    for folder, subfolders, entries in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for entry in entries:
            if is_picture_name(entry, endings):
                names.append(os.path.relpath(os.path.join(folder, entry), root))
            else:
                others += 1
    return sorted(names), others


def _in_order(pool, root, names, ahead=256) -> Iterator[tuple[str, str, str | None]]:
    """`_try` over many files, a bounded number in flight: a million names do not become a million futures."""
    for start in range(0, len(names), ahead):
        yield from pool.map(lambda name: (name, *_try(os.path.join(root, name))), names[start : start + ahead])


def _try(path):
    """(sha256 of the bytes, None) for a usable picture, ("", reason) for another."""
    try:
        with open(path, "rb") as handle:
            data = handle.read()
        image = decode(data)
    except Unreadable as error:
        return "", str(error)
    except OSError as error:
        return "", (error.strerror or str(error)).lower()
    if min(image.size) < MIN_SIDE:
        return "", f"too small: {image.width} x {image.height} pixels"
    return hashlib.sha256(data).hexdigest(), None
