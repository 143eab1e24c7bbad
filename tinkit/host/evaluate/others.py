"""The further folders of an evaluation: strange pictures to be told from known ones, and the same classes in another style.

A picture that is also in --data is left out of them: a network would recognise it, and nothing would be judged. All folders
are read before anything is embedded, so that a wrong one is said at once.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.evaluate.pictures import Sorted, draw, folder_name
from tinkit.host.images import Picture, scan

GROUPS = ("near", "far")


@dataclass(frozen=True, eq=False)
class Other:
    """One folder. numbers_N: (N,) int64 class numbers, -1 of strange pictures. name: no other folder of its kind has it."""

    name: str
    group: str
    pictures: list[Picture]
    numbers_N: np.ndarray
    notes: tuple[str, ...] = ()


def group_of(entry) -> tuple[str, str]:
    """("near", DIR) of near:DIR; ("", DIR) of a plain folder, which may hold a colon itself."""
    text = os.fspath(entry)
    group, colon, path = text.partition(":")
    return (group, path) if colon and group in GROUPS and not os.path.isdir(text) else ("", text)


def read_others(
    entries: Sequence, known: Sorted, labelled: bool, limit: int | None, tick: Callable, stop: Callable[[], bool]
) -> list[Other]:
    """The folders `entries` (near:DIR where grouped): domains with class folders (`labelled`), or strange pictures.

    limit: at most so many pictures of each. tick(name) gives a function to call with the number of files, for each file.
    TinkitError for a folder without a picture that can be used, InterruptedError once `stop()` is true.
    """
    taken = {os.path.basename(known.root)} if labelled else set()
    found = []
    for entry in entries:
        group, path = group_of(entry)
        name = _free_name(os.path.basename(os.path.abspath(path)), taken)
        taken.add(name)
        found.append(_read(path, name, group, known, labelled, limit, tick(name), stop))
    return found


def _free_name(name, taken):
    return next(free for free in (name, *(f"{name} {n}" for n in range(2, len(taken) + 3))) if free not in taken)


def _read(path, name, group, known, labelled, limit, tick, stop) -> Other:
    scanned = scan(path, tick=tick, stop=stop)
    notes = [f"{name}: {len(scanned.skipped)} files cannot be read"] if scanned.skipped else []
    contents = {picture.content for picture in known.all}
    usable = [picture for picture in scanned.usable if picture.content not in contents]
    if len(usable) < len(scanned.usable):
        notes.append(f"{name}: {len(scanned.usable) - len(usable)} pictures are in --data too and were left out")
    if not usable:
        raise TinkitError(
            "Every picture of this folder is in --data too.", where=scanned.root, next_step="give other pictures"
        )
    number = {class_: index for index, class_ in enumerate(known.classes)}
    if labelled:
        of_class = [picture for picture in usable if folder_name(picture.name) in number]
        if not of_class:
            raise _no_known_class(scanned.root, usable, known.classes)
        if len(of_class) < len(usable):
            notes.append(f"{name}: {len(usable) - len(of_class)} pictures of no class of --data were left out")
        usable = of_class
    usable = draw(usable, limit)
    numbers = [number[folder_name(picture.name)] if labelled else -1 for picture in usable]
    return Other(name, group, usable, np.array(numbers, np.int64), tuple(notes))


def _no_known_class(root, pictures, classes):
    return TinkitError(
        "A domain has no picture of a known class.",
        where=root,
        seen="folders " + ", ".join(sorted({folder_name(picture.name) for picture in pictures})[:8]),
        next_step="class folders named as in --data: " + ", ".join(classes[:8]),
    )
