"""Which pictures an evaluation uses, and for what: a bank, a validation part for every choice, and a test part read once.

A labelled folder that has train/ and test/ (and perhaps val/) keeps its own parts. Any other is split by content, class by
class, 60 : 20 : 20, so that the split is the same on every machine and copies of a picture are always on one side. Without
labels the same split serves as bank and test.
"""

import hashlib
import os
from dataclasses import dataclass, replace

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.images import Picture, Pictures, scan
from tinkit.host.labels import FOLDERS, read_labels

BANK, VALIDATION, TEST = PARTS = ("bank", "validation", "test")
OWN_PARTS = {"train": BANK, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}
SHARES = (0.6, 0.8)  # where validation begins, and test
FEWEST = 8


@dataclass(frozen=True)
class Sorted:
    """Pictures by part, and class numbers beside them ((N,) int64); `labels` and `classes` are empty without labels."""

    root: str
    parts: dict[str, list[Picture]]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def all(self) -> list[Picture]:
        """Every picture once, part after part."""
        return [picture for part in PARTS for picture in self.parts[part]]

    def noting(self, note) -> "Sorted":
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))

    def rows_of(self, part) -> slice:
        """Where the part's pictures are in `all`."""
        start = sum(len(self.parts[name]) for name in PARTS[: PARTS.index(part)])
        return slice(start, start + len(self.parts[part]))


def sort_pictures(root, labels=None, limit=None, tick=None, stop=None) -> Sorted:
    """Scan `root` and sort it. labels: "folders" (None: where there are two class folders at least), a CSV, or "none".

    limit: at most so many pictures in all, drawn by content. Raises TinkitError for too few pictures, or labels that are asked
    for and not there.
    """
    found = scan(root, tick=tick, stop=stop)
    own = _own_parts(found)
    by_name, classes = _labels(found, labels, own)
    usable = [picture for picture in found.usable if not classes or picture.name in by_name]
    notes = []
    if len(usable) < len(found.usable):
        notes.append(f"{len(found.usable) - len(usable)} pictures without a label were left out")
    usable = draw(usable, limit)
    if len(usable) < FEWEST:
        raise TinkitError(
            "There are too few pictures to evaluate on.", where=found.root, seen=f"{len(usable)}, at least {FEWEST}"
        )
    parts = _given_parts(usable, own, notes) if own else _split(usable, by_name)
    if own and not parts[VALIDATION]:
        parts = _validation_from_bank(parts, by_name)
        notes.append("there is no validation part: a fifth of train is used as one")
    numbers = {part: np.array([by_name[p.name] for p in parts[part]], np.int64) for part in PARTS} if classes else {}
    return Sorted(found.root, parts, numbers, tuple(classes), found.skipped, tuple(notes))


def other_folder(
    root, classes, labelled: bool, limit=None, tick=None, stop=None
) -> tuple[list[Picture], np.ndarray, str]:
    """(pictures, class numbers, root) of a further folder: strange pictures (`labelled` False: numbers are -1), or a domain
    whose class folders must have names among `classes`; pictures of other classes are left out."""
    found = scan(root, tick=tick, stop=stop)
    usable = list(found.usable)
    if not labelled:
        usable = draw(usable, limit)
        return usable, np.full(len(usable), -1), found.root
    number = {name: index for index, name in enumerate(classes)}
    usable = draw([picture for picture in usable if _folder(picture.name) in number], limit)
    if not usable:
        raise TinkitError(
            "A domain has no picture of a known class.",
            where=found.root,
            seen="folders " + ", ".join(sorted({_folder(p.name) for p in found.usable})[:8]),
            next_step="class folders named as in --data: " + ", ".join(classes[:8]),
        )
    return usable, np.array([number[_folder(picture.name)] for picture in usable], np.int64), found.root


def draw(pictures: list[Picture], limit: int | None) -> list[Picture]:
    """At most `limit` of them, drawn by content, in their order."""
    if limit is None or len(pictures) <= limit:
        return pictures
    ranked = sorted(range(len(pictures)), key=lambda index: (_rank(pictures[index].content), index))
    return [pictures[index] for index in sorted(ranked[:limit])]


def _rank(content) -> float:
    """0..1 by content alone."""
    return int(hashlib.sha256(f"evaluate/{content}".encode()).hexdigest()[:13], 16) / 16**13


def _folder(name):
    return os.path.basename(os.path.dirname(name))


def _own_parts(found: Pictures) -> bool:
    tops = {picture.name.split(os.sep)[0] for picture in found.usable if os.sep in picture.name}
    return {"train", "test"} <= tops <= set(OWN_PARTS)


def _labels(found: Pictures, labels, own):
    """({name: class number}, class names); both empty without labels."""
    if labels == "none":
        return {}, ()
    if labels is None:
        folders = {_folder(picture.name) for picture in found.usable} - {""}
        if len(folders - (set(OWN_PARTS) if own else set())) < 2:
            return {}, ()
    read = read_labels(labels or FOLDERS, list(found.usable), found.root)
    return read.by_name, read.classes


def _given_parts(usable, own, notes):
    parts: dict[str, list[Picture]] = {part: [] for part in PARTS}
    for picture in usable:
        parts[OWN_PARTS[picture.name.split(os.sep)[0]]].append(picture)
    seen = {picture.content for part in (BANK, VALIDATION) for picture in parts[part]}
    fresh = [picture for picture in parts[TEST] if picture.content not in seen]
    if len(fresh) < len(parts[TEST]):
        notes.append(f"{len(parts[TEST]) - len(fresh)} test pictures are also in another part and were left out")
    return {**parts, TEST: fresh}


def _split(usable, by_name):
    """60 : 20 : 20 of every class by the rank of the content; a class of three or more has all three parts."""
    parts: dict[str, list[Picture]] = {part: [] for part in PARTS}
    groups: dict[int, dict[str, list[Picture]]] = {}
    for picture in usable:
        groups.setdefault(by_name.get(picture.name, -1), {}).setdefault(picture.content, []).append(picture)
    for _, contents in sorted(groups.items()):
        ranked = sorted(contents, key=_rank)
        bounds = [max(1, round(share * len(ranked))) for share in SHARES]
        if len(ranked) >= 3:
            bounds = [min(bounds[0], len(ranked) - 2), min(max(bounds[1], bounds[0] + 1), len(ranked) - 1)]
        for part, some in zip(PARTS, (ranked[: bounds[0]], ranked[bounds[0] : bounds[1]], ranked[bounds[1] :])):
            parts[part] += [picture for content in some for picture in contents[content]]
    return {part: sorted(pictures, key=lambda picture: picture.name) for part, pictures in parts.items()}


def _validation_from_bank(parts, by_name):
    inner = _split(parts[BANK], by_name)
    return {BANK: inner[BANK] + inner[VALIDATION], VALIDATION: inner[TEST], TEST: parts[TEST]}
