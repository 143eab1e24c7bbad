"""Which pictures an evaluation uses, and for what: a bank, a validation part for every choice, and a test part read once.

A labelled folder that has train/ and test/ (and perhaps val/) keeps its own parts. Any other is split by content, class by
class, 60 : 20 : 20, so that the split is the same on every machine and copies of a picture are always on one side. Without
labels the same split serves as bank and test. What has no place (no label, no part, two labels) is left out, and a note says so.
"""

import hashlib
import os
from dataclasses import dataclass, replace

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.images import Picture, Pictures, class_folder, scan
from tinkit.host.labels import FOLDERS, read_labels, require_labels

BANK, VALIDATION, TEST = PARTS = ("bank", "validation", "test")
OWN_PARTS = {"train": BANK, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}
SHARES = (0.6, 0.8)  # where validation begins, and test
FEWEST = 8
NO_LABELS = "none"


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
    """Scan `root` and sort it. labels: "folders", a CSV, or "none"; None: folders where there are two and one has a test picture.

    limit: at most so many pictures in all, drawn by content. Raises TinkitError for too few pictures, or labels that are asked
    for and not there.
    """
    if labels not in (None, NO_LABELS):
        require_labels(labels)
    found = scan(root, tick=tick, stop=stop)
    notes: list[str] = []
    own = _own_parts(found)
    by_name, classes = _labels(found, labels, own, notes)
    usable = draw(_usable(found, by_name, classes, own, notes), limit)
    if len(usable) < FEWEST:
        raise TinkitError(
            "There are too few pictures to evaluate on.", where=found.root, seen=f"{len(usable)}, at least {FEWEST}"
        )
    parts = _given_parts(usable, notes) if own else _split(usable, by_name)
    if labels is None and classes and not own and not parts[TEST]:
        notes.append("no folder has three different pictures: the folders are not taken for classes")
        by_name, classes, parts = {}, (), _split(usable, {})
    if own and not parts[VALIDATION]:
        parts = _validation_from_bank(parts, by_name)
        notes.append("there is no validation part: a fifth of train is used as one")
    numbers = {part: np.array([by_name[p.name] for p in parts[part]], np.int64) for part in PARTS} if classes else {}
    return Sorted(found.root, parts, numbers, tuple(classes), found.skipped, tuple(notes))


def require_bank_and_test(pictures: Sorted) -> None:
    """TinkitError when there is nothing to learn from, or nothing to judge on."""
    if pictures.parts[BANK] and pictures.parts[TEST]:
        return
    raise TinkitError(
        "The pictures leave nothing to judge on."
        if pictures.parts[BANK]
        else "The pictures leave nothing to learn from.",
        where=pictures.root,
        seen=", ".join(f"{len(pictures.parts[part])} {part}" for part in PARTS)
        + (f", {len(pictures.classes)} classes" if pictures.classes else ""),
        next_step="other pictures in test than in train, or three of a class; --labels none where folders are no classes",
    )


def draw(pictures: list[Picture], limit: int | None) -> list[Picture]:
    """At most `limit` of them, drawn by content, in their order."""
    if limit is None or len(pictures) <= limit:
        return pictures
    ranked = sorted(range(len(pictures)), key=lambda index: (_rank(pictures[index].content), index))
    return [pictures[index] for index in sorted(ranked[:limit])]


def _rank(content) -> float:
    """0..1 by content alone."""
    return int(hashlib.sha256(f"evaluate/{content}".encode()).hexdigest()[:13], 16) / 16**13


def folder_name(name) -> str:
    """Of the folder that a picture lies in; "" at the top."""
    return class_folder(name)


def _own_parts(found: Pictures) -> bool:
    tops = {picture.name.split(os.sep)[0] for picture in found.usable if os.sep in picture.name}
    return {"train", "test"} <= tops <= set(OWN_PARTS)


def _labels(found: Pictures, labels, own, notes):
    """({name: class number}, class names); both empty without labels."""
    if labels == NO_LABELS:
        return {}, ()
    in_folders = [p for p in found.usable if not own or p.name.count(os.sep) > 1]  # train/ is a part and no class
    if labels is None and len({folder_name(picture.name) for picture in in_folders} - {""}) < 2:
        return {}, ()
    read = read_labels(
        labels or FOLDERS, list(found.usable if labels not in (None, FOLDERS) else in_folders), found.root
    )
    if read.unknown:
        notes.append(f"{read.unknown} lines of the labels (a header is one) name no usable picture")
    return read.by_name, read.classes


def _usable(found: Pictures, by_name, classes, own, notes) -> list[Picture]:
    """The pictures that have a place."""
    usable = list(found.usable)
    if own:
        usable = _kept(usable, lambda picture: os.sep in picture.name, "beside train and test, in no part,", notes)
    if classes:
        usable = _kept(usable, lambda picture: picture.name in by_name, "without a label", notes)
        called: dict[str, set] = {}
        for picture in usable:
            called.setdefault(picture.content, set()).add(by_name[picture.name])
        usable = _kept(usable, lambda picture: len(called[picture.content]) == 1, "with copies in other classes", notes)
    return usable


def _kept(pictures, wanted, which, notes):
    """Those that are wanted; a note of how many are not, and which these are."""
    kept = [picture for picture in pictures if wanted(picture)]
    if len(kept) < len(pictures):
        notes.append(f"{len(pictures) - len(kept)} pictures {which} were left out")
    return kept


def _given_parts(usable, notes):
    parts: dict[str, list[Picture]] = {part: [] for part in PARTS}
    for picture in usable:
        parts[OWN_PARTS[picture.name.split(os.sep)[0]]].append(picture)
    for part, before in ((VALIDATION, (BANK,)), (TEST, (BANK, VALIDATION))):
        seen = {picture.content for name in before for picture in parts[name]}
        fresh = [picture.content not in seen for picture in parts[part]]
        if not all(fresh):
            notes.append(f"{fresh.count(False)} {part} pictures are also in another part and were left out")
        parts[part] = [picture for picture, kept in zip(parts[part], fresh) if kept]
    return parts


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
