"""Labels, where a user has some: the folder a picture lies in, or a CSV of path,label.

Distillation does without them. Given, they bring cross-entropy, and classes for the methods over logits: a linear head is
fitted on the teacher's features of the labelled pictures. A picture without a label is used by every term that needs none.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tinkit.errors import TinkitError
from tinkit.host.images import Picture, base_of, class_folder, names_of
from tinkit.host.images.lists import columns_of, csv_rows, name_of

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

    def of(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """(N,) int64, -1 for a picture without a label."""
        return torch.tensor([self.by_name.get(name, -1) for name in names_of(pictures)], dtype=torch.int64)

    def within(self, pictures: Sequence[Picture]) -> "Labels":
        """The same without classes that no picture of these has: a class needs a picture to train on."""
        used = sorted({self.by_name[name] for name in names_of(pictures) if name in self.by_name})
        return Labels(
            tuple(self.classes[number] for number in used),
            {name: used.index(number) for name, number in self.by_name.items() if number in used},
            self.unknown,
            tuple(name for number, name in enumerate(self.classes) if number not in used),
        )

    def in_words(self) -> str:
        """One line for the screen."""
        shown = ", ".join(self.classes[:8]) + (f" and {len(self.classes) - 8} more" if len(self.classes) > 8 else "")
        lines = "1 line names" if self.unknown == 1 else f"{self.unknown} lines name"
        lost = f"; {lines} no usable picture" if self.unknown else ""
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


def read_labels(source: str, pictures: Sequence[Picture], root: str) -> Labels:
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
    folders = {name: class_folder(name) for name in names_of(pictures)}
    return {name: folder for name, folder in folders.items() if folder}


def _from_csv(path, pictures, root):
    """({name: label}, lines that name no usable picture); an empty label is none."""
    names, base = set(names_of(pictures)), base_of(root)
    found: dict[str, str] = {}
    unknown = []
    rows = csv_rows(path, "The file of labels")
    path_at, label_at, has_header = columns_of(rows[0][1] if rows else [])
    for number, row in rows[has_header:]:
        if not _is_text(row[min(label_at, len(row) - 1)]):
            raise TinkitError("The file of labels cannot be read.", where=f"{path}, line {number}",
                              seen="a label that is no UTF-8", next_step="save it as UTF-8")  # fmt: skip
        if len(row) <= max(path_at, label_at):
            raise TinkitError(
                "A line of labels is not path,label.",
                where=f"{path}, line {number}",
                seen=",".join(row),
                next_step="a comma between path and label, and quotes around a path that has a comma",
            )
        name, label = name_of(row[path_at].strip(), base), row[label_at].strip()
        if name not in names:
            unknown.append((number, row[path_at]))
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
            next_step=f"lines of path,label with paths relative to {base}, such as {pictures[0].name},{EXAMPLE}",
        )
    return found, len(unknown)


def _is_text(label) -> bool:
    """Whether it was UTF-8 (no byte had to be escaped), and not UTF-16 either."""
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in label)
