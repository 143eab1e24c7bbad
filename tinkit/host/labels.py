"""Labels, where a user has some: the folder a picture lies in, or a CSV of path,label.

Distillation does without them. Given, they bring cross-entropy, and classes for the methods over logits: a linear head is
fitted on the teacher's features of the labelled pictures. A picture without a label is used by every term that needs none.
"""

import csv
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host.images import Picture

FOLDERS = "folders"


@dataclass(frozen=True)
class Labels:
    """Class names, sorted, and the class of each picture by its name; pictures that are not in `by_name` have none."""

    classes: tuple[str, ...]
    by_name: dict[str, int]

    def of(self, pictures: list[Picture]) -> torch.Tensor:
        """(N,) int64, -1 for a picture without a label."""
        return torch.tensor([self.by_name.get(picture.name, -1) for picture in pictures], dtype=torch.int64)


def read_labels(source: str, pictures: list[Picture], root: str) -> Labels:
    """Labels of pictures below `root`: `source` is "folders" (each picture's own folder) or a CSV file.

    TinkitError for fewer than two classes, an unreadable file, a picture with two labels, or labels that fit no picture.
    """
    named = _from_folders(pictures) if source == FOLDERS else _from_csv(source, pictures, root)
    classes = tuple(sorted(set(named.values())))
    if len(classes) < 2:
        raise TinkitError(
            "Labels need two classes at least.",
            where=root if source == FOLDERS else source,
            seen=f"{len(named)} labelled pictures, classes: {', '.join(classes) or 'none'}",
            next_step="class folders below the pictures' folder, or --labels FILE.csv with lines of path,label",
        )
    return Labels(classes, {name: classes.index(label) for name, label in named.items()})


def _from_folders(pictures):
    folders = {picture.name: os.path.basename(os.path.dirname(picture.name)) for picture in pictures}
    return {name: folder for name, folder in folders.items() if folder}


def _from_csv(path, pictures, root):
    """A header line is skipped when its path is no picture's; an empty label is none."""
    names = {picture.name for picture in pictures}
    found: dict[str, str] = {}
    unknown = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            rows = [(number, row) for number, row in enumerate(csv.reader(handle), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TinkitError("The file of labels cannot be read.", where=path, seen=str(error)) from None
    for number, row in rows:
        if len(row) < 2:
            raise TinkitError("A line of labels is not path,label.", where=f"{path}, line {number}", seen=",".join(row))
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
            "The file of labels names no usable picture.",
            where=path,
            seen=f"{len(rows)} lines, first {unknown[0][1] if unknown else 'none'}",
            next_step=f"paths relative to {root}",
        )
    return found


def fit_head(rows_ND: np.ndarray, labels_N: np.ndarray, classes: int) -> nn.Linear:
    """A frozen linear head on the teacher's features, by logistic regression on standardised columns (scikit-learn).

    A class without a picture among the rows keeps a logit that never wins.
    """
    from sklearn.linear_model import LogisticRegression

    mean_D, std_D = rows_ND.mean(0), rows_ND.std(0) + 1e-6
    model = LogisticRegression(max_iter=200, tol=1e-3).fit((rows_ND - mean_D) / std_D, labels_N)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    head = nn.Linear(rows_ND.shape[1], classes)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-1e4)
        at = torch.from_numpy(model.classes_)
        head.weight[at] = torch.from_numpy(weight / std_D).float()
        head.bias[at] = torch.from_numpy(bias - weight @ (mean_D / std_D)).float()
    return head.requires_grad_(False).eval()
