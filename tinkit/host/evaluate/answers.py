"""Two classifiers on the same labelled pictures: how often each is right, how often they agree, what flipped and which way.

Answers and labels are class numbers, (N,) int64, in the same order of pictures; `teacher` first, `student` second. Every
interval is 95 %, by bootstrap over pictures; a change is student minus teacher on the same resampled pictures.
"""

from collections.abc import Sequence

import numpy as np

from tinkit.host.evaluate.resampling import interval_of_mean

LISTED = 200  # flipped pictures that are listed
WHOLE = 40  # classes up to which the confusion difference is given whole, and pairs that are given beyond
RIGHT_TO_WRONG, WRONG_TO_RIGHT, WRONG_TO_OTHER = "right to wrong", "wrong to right", "wrong to other"
WAYS = (RIGHT_TO_WRONG, WRONG_TO_RIGHT, WRONG_TO_OTHER)


def judged(labels_N, teacher_N, student_N, seed: int = 0) -> dict:
    """Accuracy of both, change and agreement, 0..1, each with its interval: {"teacher", "teacher_interval", "student", ...}."""
    teacher_right, student_right = (np.equal(answers, labels_N).astype(float) for answers in (teacher_N, student_N))
    block: dict = {}
    for name, values in (
        ("teacher", teacher_right),
        ("student", student_right),
        ("change", student_right - teacher_right),
        ("agreement", np.equal(teacher_N, student_N).astype(float)),
    ):
        block[name] = float(values.mean())
        block[name + "_interval"] = list(interval_of_mean(values, seed=seed))
    return block


def churn(labels_N, teacher_N, student_N, classes: Sequence[str], names: Sequence[str]) -> dict:
    """Which pictures the student answers otherwise: counts by way, their share of all, and the first LISTED of them.

    Listed by way (what was lost first), then by index: {"name", "index", "label", "teacher", "student", "way"}, the three
    in class names.
    """
    labels, teacher, student = (np.asarray(column) for column in (labels_N, teacher_N, student_N))
    flipped = teacher != student
    ways = [
        np.flatnonzero(flipped & (teacher == labels)),
        np.flatnonzero(flipped & (student == labels)),
        np.flatnonzero(flipped & (teacher != labels) & (student != labels)),
    ]
    listed = [(way, int(i)) for way, pictures in zip(WAYS, ways, strict=True) for i in pictures][:LISTED]
    return {
        "right_to_wrong": len(ways[0]),
        "wrong_to_right": len(ways[1]),
        "wrong_to_other": len(ways[2]),
        "flipped": int(flipped.sum()),
        "share": float(flipped.mean()),
        "pictures": [
            {
                "name": str(names[i]),
                "index": i,
                "label": classes[labels[i]],
                "teacher": classes[teacher[i]],
                "student": classes[student[i]],
                "way": way,
            }
            for way, i in listed
        ],
    }


def per_class(labels_N, teacher_N, student_N, classes: Sequence[str]) -> list[dict]:
    """[{"class", "count", "teacher": {"recall", "precision", "f1"}, "student": {...}}] of the classes that the labels have.

    Precision is 0 for a class that is never answered with, and F1 with it, as scikit-learn's zero_division=0.
    """
    count = np.bincount(labels_N, minlength=len(classes))
    columns = {"teacher": _scores(labels_N, teacher_N, count), "student": _scores(labels_N, student_N, count)}
    return [
        {"class": classes[c], "count": int(count[c])}
        | {who: {name: float(scores[name][c]) for name in scores} for who, scores in columns.items()}
        for c in np.flatnonzero(count).tolist()
    ]


def _scores(labels, answers, count):
    """recall, precision and F1 of every class, (C,) each."""
    hits = np.bincount(labels[labels == answers], minlength=len(count))
    answered = np.bincount(answers, minlength=len(count))
    return {
        "recall": hits / np.maximum(count, 1),
        "precision": hits / np.maximum(answered, 1),
        "f1": 2 * hits / np.maximum(count + answered, 1),
    }


def confusion_change(labels_N, teacher_N, student_N, classes: Sequence[str]) -> dict:
    """The student's confusion matrix minus the teacher's: rows are labels, columns answers, in pictures.

    {"classes", "difference": C x C integers} up to WHOLE classes; beyond, the WHOLE entries that changed most:
    {"pairs": [{"label", "answer", "teacher", "student", "change"}]}.
    """
    size = len(classes)
    codes = np.concatenate([np.multiply(labels_N, size) + teacher_N, np.multiply(labels_N, size) + student_N])
    pairs, place = np.unique(codes, return_inverse=True)
    teacher, student = (np.bincount(half, minlength=len(pairs)) for half in np.split(place, 2))
    change = student - teacher
    if size <= WHOLE:
        difference = np.zeros(size * size, np.int64)
        difference[pairs] = change
        return {"classes": list(classes), "difference": difference.reshape(size, size).tolist()}
    order = np.argsort(-np.abs(change), kind="stable")[:WHOLE]
    return {
        "pairs": [
            {
                "label": classes[pairs[i] // size],
                "answer": classes[pairs[i] % size],
                "teacher": int(teacher[i]),
                "student": int(student[i]),
                "change": int(change[i]),
            }
            for i in order
            if change[i]
        ]
    }
