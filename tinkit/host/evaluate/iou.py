"""Intersection over union and pixel accuracy of answers that are a class a pixel, teacher beside student.

As in Pascal VOC: the pixels of all pictures are counted together, then a class has right / (truth + answer - right). The mean
is over the classes that the truth of these pictures has; what the answer says of other classes counts as missed only.
"""

from collections.abc import Sequence

import numpy as np

from tinkit.host.evaluate.masks import IGNORE
from tinkit.host.evaluate.resampling import interval


def counts(answer_HW: np.ndarray, truth_HW: np.ndarray, classes: int) -> np.ndarray:
    """(3, C) pixels of each class: right, in the truth, in the answer; where the truth is IGNORE nothing is counted."""
    known = truth_HW != IGNORE
    answer, truth = answer_HW[known], truth_HW[known]
    columns = (truth[answer == truth], truth, answer)
    return np.stack([np.bincount(column, minlength=classes) for column in columns])


def mean_iou(counts_3C: np.ndarray) -> float:
    """Mean of right / (truth + answer - right) over the classes that the truth has; NaN without any."""
    right, truth, answer = counts_3C[:, counts_3C[1] > 0]
    return float((right / (truth + answer - right)).mean()) if len(truth) else float("nan")


def accuracy(counts_3C: np.ndarray) -> float:
    """Share of the judged pixels that are right."""
    return float(counts_3C[0].sum() / max(counts_3C[1].sum(), 1))


def judged(teacher_NHW, student_NHW, truth_NHW, classes: Sequence[str], seed: int = 0) -> dict:
    """Both networks' answers against the truth, with 95 % intervals over the pictures.

    {"teacher", "student": {"miou", "miou_interval", "accuracy", "accuracy_interval"}, "change": {"miou", "accuracy"}:
    intervals of student minus teacher, "agreement": share of the judged pixels where both say the same, "classes": IoU by
    class}. Pictures without a pixel to judge are left out; ValueError when none is left.
    """
    known_NHW = truth_NHW != IGNORE
    kept = known_NHW.any((1, 2))
    if not kept.any():
        raise ValueError("no pixel to judge")
    teacher_NHW, student_NHW, truth_NHW, known_NHW = (a[kept] for a in (teacher_NHW, student_NHW, truth_NHW, known_NHW))
    each = {
        whose: np.stack([counts(one, truth, len(classes)) for one, truth in zip(given, truth_NHW)])
        for whose, given in (("teacher", teacher_NHW), ("student", student_NHW))
    }
    places = np.arange(len(truth_NHW))

    def of(statistic, whose):
        return lambda chosen: statistic(each[whose][chosen].sum(0))

    def change(statistic):
        return lambda chosen: of(statistic, "student")(chosen) - of(statistic, "teacher")(chosen)

    block: dict = {
        whose: {
            "miou": of(mean_iou, whose)(places),
            "miou_interval": list(interval(of(mean_iou, whose), places, seed=seed)),
            "accuracy": of(accuracy, whose)(places),
            "accuracy_interval": list(interval(of(accuracy, whose), places, seed=seed)),
        }
        for whose in each
    }
    block["change"] = {
        "miou": list(interval(change(mean_iou), places, seed=seed)),
        "accuracy": list(interval(change(accuracy), places, seed=seed)),
    }
    block["agreement"] = float((teacher_NHW == student_NHW)[known_NHW].mean())
    totals = {whose: found.sum(0) for whose, found in each.items()}
    block["classes"] = [
        {"class": name, "pixels": int(totals["teacher"][1, c]), **{w: _iou(totals[w][:, c]) for w in totals}}
        for c, name in enumerate(classes)
    ]
    return block


def _iou(counts_3):
    """The IoU of one class, None for one that the truth does not have."""
    right, truth, answer = counts_3
    return float(right / (truth + answer - right)) if truth else None
