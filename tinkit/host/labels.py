"""Labels, where a user has some: the folder a picture lies in, or a CSV of path,label.

Distillation does without them. Given, they bring cross-entropy, and classes for the methods over logits: a linear head is
fitted on the teacher's features of the labelled pictures. A picture without a label is used by every term that needs none.
"""

import csv
import os
from dataclasses import dataclass

import torch

from tinkit.errors import TinkitError
from tinkit.host.images import Picture

FOLDERS = "folders"
EXAMPLE = "cat"


@dataclass(frozen=True)
class Labels:
    """Class names, sorted, and the class of each picture by its name; pictures that are not in `by_name` have none.

    `unknown` counts lines of a CSV whose path is no usable picture's; `dropped` are classes left without a picture.
    """

    classes: tuple[str, ...]
    by_name: dict[str, int]
    unknown: int = 0
    dropped: tuple[str, ...] = ()

    def of(self, pictures: list[Picture]) -> torch.Tensor:
        """(N,) int64, -1 for a picture without a label."""
        return torch.tensor([self.by_name.get(picture.name, -1) for picture in pictures], dtype=torch.int64)

    def within(self, pictures: list[Picture]) -> "Labels":
        """The same without classes that no picture of these has: a class needs a picture to train on."""
        used = sorted({self.by_name[picture.name] for picture in pictures if picture.name in self.by_name})
        return Labels(
            tuple(self.classes[number] for number in used),
            {name: used.index(number) for name, number in self.by_name.items() if number in used},
            self.unknown,
            tuple(name for number, name in enumerate(self.classes) if number not in used),
        )

    def in_words(self) -> str:
        """One line for the screen."""
        shown = ", ".join(self.classes[:8]) + (f" and {len(self.classes) - 8} more" if len(self.classes) > 8 else "")
        lost = f"; {self.unknown} lines name no usable picture" if self.unknown else ""
        if self.dropped:
            lost += f"; no training picture of {', '.join(self.dropped)}: left out"
        return f"labels: {len(self.by_name)} pictures of {len(self.classes)} classes ({shown}){lost}"


def require_labels(source: str) -> None:
    """TinkitError when a CSV cannot be opened: said before a long scan."""
    if source != FOLDERS and not os.path.isfile(source):
        raise TinkitError(
            "The file of labels is missing.",
            where=source,
            next_step=f"--labels {FOLDERS} (each picture's own folder), or --labels FILE.csv with lines of path,label",
        )


def read_labels(source: str, pictures: list[Picture], root: str) -> Labels:
    """Labels of pictures below `root`: `source` is "folders" (each picture's own folder) or a CSV file.

    TinkitError for fewer than two classes, an unreadable file, a picture with two labels, or labels that fit no picture.
    """
    named, unknown = (_from_folders(pictures), 0) if source == FOLDERS else _from_csv(source, pictures, root)
    classes = tuple(sorted(set(named.values())))
    if len(classes) < 2:
        raise TinkitError(
            "Labels need two classes at least.",
            where=root if source == FOLDERS else source,
            seen=f"{len(named)} labelled pictures, classes: {', '.join(classes) or 'none'}",
            next_step="class folders below the pictures' folder, or --labels FILE.csv with lines of path,label",
        )
    return Labels(classes, {name: classes.index(label) for name, label in named.items()}, unknown)


def _from_folders(pictures):
    folders = {picture.name: os.path.basename(os.path.dirname(picture.name)) for picture in pictures}
    return {name: folder for name, folder in folders.items() if folder}


def _from_csv(path, pictures, root):
    """({name: label}, lines that name no usable picture, a header among them); an empty label is none."""
    names = {picture.name for picture in pictures}
    found: dict[str, str] = {}
    unknown = []
    try:
        with open(
            path, newline="", encoding="utf-8-sig", errors="surrogateescape"
        ) as handle:  # a file name may be no UTF-8
            rows = [(number, row) for number, row in enumerate(csv.reader(handle), 1) if row]
    except (OSError, csv.Error) as error:
        raise TinkitError("The file of labels cannot be read.", where=path, seen=str(error)) from None
    for number, row in rows:
        if not _is_text(row[min(1, len(row) - 1)]):
            raise TinkitError("The file of labels cannot be read.", where=f"{path}, line {number}",
                              seen="a label that is no UTF-8", next_step="save it as UTF-8")  # fmt: skip
        if len(row) < 2:
            raise TinkitError(
                "A line of labels is not path,label.",
                where=f"{path}, line {number}",
                seen=",".join(row),
                next_step="a comma between path and label, and quotes around a path that has a comma",
            )
        given, label = row[0].strip(), row[1].strip()
        name = os.path.normpath(os.path.relpath(given, root) if os.path.isabs(given) else given)
        if name not in names:
            unknown.append((number, row[0]))
        elif label and found.setdefault(name, label) != label:
            raise TinkitError(
                "A picture has two labels.",
                where=f"{path}, line {number}",
                seen=f"{name}: {found[name]} and {label}",
            )
    if not found:
        raise TinkitError(
            "The file of labels names no usable picture with a label.",
            where=path,
            seen=f"{len(rows)} lines, {len(unknown)} of unknown paths"
            + (f", first {unknown[0][1]}" if unknown else ""),
            next_step=f"lines of path,label with paths relative to {root}, such as {pictures[0].name},{EXAMPLE}",
        )
    return found, len(unknown)


def _is_text(label) -> bool:
    """Whether it was UTF-8 (no byte had to be escaped), and not UTF-16 either."""
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in label)
