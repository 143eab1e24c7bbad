"""What compression did to answers, where pictures have labels: nearest neighbours and a linear probe, teacher and student.

Each network is judged in its own space with its own bank and its own probe, by one rule: kNN as in the code of arXiv 2411.15239
(k = 10, weight exp(cosine / 0.07)), probe as in tinkit.host.evaluate.probe. The bank trains, validation chooses the probe's
C, and the test part is answered once. Of the probe's answers: calibration, a table by class, and the change of confusion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.evaluate import answers, calibration
from tinkit.host.evaluate.finite import require_finite
from tinkit.host.evaluate.measure import LOWER, Measure
from tinkit.host.evaluate.neighbours import nearest
from tinkit.host.evaluate.pictures import BANK, PARTS, TEST, VALIDATION
from tinkit.host.evaluate.probe import fit_probe, notes_of, of_probes
from tinkit.host.evaluate.resampling import interval

K, TEMPERATURE = 10, 0.07
CHUNK = 4096
ECE_RESAMPLES = 500


@dataclass(frozen=True, eq=False)
class Labelled:
    """Rows (N, D) of both networks (widths may differ) and class numbers (N,) of the three parts, in one order of pictures.

    names: of the test pictures. Raises ValueError for parts that do not fit each other, TinkitError for a bank or a test part
    without pictures and for features that are not finite.
    """

    teacher: dict[str, np.ndarray]
    student: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: Sequence[str]
    names: Sequence[str]

    def __post_init__(self):
        for part in PARTS:
            check_rows(self.teacher[part], self.student[part], self.labels[part], len(self.classes), part)
        if len(self.names) != len(self.labels[TEST]):
            raise ValueError(f"{len(self.names)} names of {len(self.labels[TEST])} test pictures")
        for part in (BANK, TEST):
            if len(self.labels[part]) == 0:
                raise TinkitError(
                    f"There is no labelled picture in the {part} part.",
                    seen=", ".join(f"{len(self.labels[name])} {name}" for name in PARTS),
                    next_step="more labelled pictures, or a larger --limit",
                )

    def notes(self) -> list[str]:
        """Which classes lack a part, in words; those without a bank picture are in the probe's notes."""
        found = []
        for part in _WITHOUT:
            missing = np.setdiff1d(np.arange(len(self.classes)), self.labels[part])
            if len(missing):
                shown = ", ".join(self.classes[c] for c in missing[:8])
                more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
                found.append(f"no {part} picture of {shown}{more}: {_WITHOUT[part]}")
        return found


_WITHOUT = {
    VALIDATION: "it has no say in the choice of C",
    TEST: "it is not in the table by class",
}


def check_rows(teacher, student, labels, classes: int, where: str) -> None:
    """ValueError when numbers differ or a label is out of range; TinkitError for a feature that is not finite."""
    if not len(teacher) == len(student) == len(labels):
        raise ValueError(f"{where}: {len(teacher)} teacher rows, {len(student)} student rows, {len(labels)} labels")
    if len(labels) and not 0 <= np.min(labels) <= np.max(labels) < classes:
        raise ValueError(f"{where}: labels {np.min(labels)} .. {np.max(labels)} of {classes} classes")
    require_finite({"teacher": teacher, "student": student}, where)


def knn_answers(
    bank_ND, labels_N, queries_MD, classes: int, k: int = K, temperature: float = TEMPERATURE
) -> np.ndarray:
    """(M,) int64: the class with most weight among the k nearest by cosine, each weighing exp(cosine / temperature).

    k is cut to what the bank has; equal weights go to the lower class. ValueError for an empty bank.
    """
    near, cosine = nearest(bank_ND, queries_MD, k)
    weight = np.exp((cosine.astype(np.float64) - 1) / temperature)  # - 1: a common factor, so that nothing overflows
    votes_for = np.asarray(labels_N)[near]
    found = np.empty(len(near), np.int64)
    for start in range(0, len(near), CHUNK):
        part = slice(start, start + CHUNK)
        votes = np.zeros((len(near[part]), classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], votes_for[part]), weight[part])
        found[part] = votes.argmax(axis=1)
    return found


def labelled(
    teacher: dict, student: dict, labels: dict, classes: Sequence[str], names: Sequence[str], seed: int = 0
) -> dict:
    """The block "labels": {"pictures", "classes", "knn", "probe", "calibration", "per_class", "confusion", "notes"}.

    teacher, student: part -> (N, D) rows; labels: part -> (N,); names: of the test pictures. See `Labelled` for errors.
    """
    data = Labelled(teacher, student, labels, classes, names)
    test, count = np.asarray(labels[TEST], np.int64), len(classes)
    taught, learned = (knn_answers(rows[BANK], labels[BANK], rows[TEST], count) for rows in (teacher, student))
    probes = [
        fit_probe(rows[BANK], labels[BANK], rows[VALIDATION], labels[VALIDATION], classes, seed)
        for rows in (teacher, student)
    ]
    answered = [probe.answers(rows[TEST]) for probe, rows in zip(probes, (teacher, student), strict=True)]
    teacher_answers, student_answers = (answer for answer, _ in answered)
    return {
        "pictures": {part: len(labels[part]) for part in PARTS},
        "classes": count,
        "knn": {
            "k": min(K, len(labels[BANK])),
            "temperature": TEMPERATURE,
            **_compared(test, taught, learned, data, seed),
        },
        "probe": {**_compared(test, teacher_answers, student_answers, data, seed), **of_probes(*probes)},
        "calibration": _calibration(test, answered, seed),
        "per_class": answers.per_class(test, teacher_answers, student_answers, classes),
        "confusion": answers.confusion_change(test, teacher_answers, student_answers, classes),
        "notes": data.notes() + notes_of(*probes),
    }


def _compared(test, teacher, student, data, seed):
    return answers.judged(test, teacher, student, seed) | {
        "churn": answers.churn(test, teacher, student, data.classes, data.names)
    }


def _calibration(test, answered, seed):
    """ECE and reliability of both probes; "change_interval" is of student minus teacher (each alone is biased upwards)."""
    columns = [column for answer, confidence in answered for column in (confidence, np.equal(answer, test))]
    block: dict = {"bins": calibration.BINS}
    for who, confidence, right in (("teacher", *columns[:2]), ("student", *columns[2:])):
        block[who] = {
            "ece": calibration.expected_calibration_error(confidence, right),
            "confidence": float(confidence.mean()),
            "accuracy": float(right.mean()),
            "reliability": calibration.reliability(confidence, right),
        }
    block["change_interval"] = list(interval(_ece_change, *columns, resamples=ECE_RESAMPLES, seed=seed))
    return block


def _ece_change(teacher_confidence, teacher_right, student_confidence, student_right):
    return calibration.expected_calibration_error(
        student_confidence, student_right
    ) - calibration.expected_calibration_error(teacher_confidence, teacher_right)


def measures(block: dict) -> list[Measure]:
    """What a budget may name: knn, probe, agreement (of the kNN answers), probe_agreement, ece (of the probe), churn (of kNN)."""
    knn, probe, calibrated = block["knn"], block["probe"], block["calibration"]
    flipped = tuple(sorted(1 - end for end in knn["agreement_interval"]))
    return [
        _accuracy(
            "knn", "kNN accuracy", knn, f"{knn['k']} nearest by cosine, weight exp(cosine / {knn['temperature']})"
        ),
        _accuracy("probe", "Linear probe accuracy", probe, "logistic regression, C chosen on validation pictures"),
        _agreement("agreement", "kNN agreement", knn, "share of test pictures that kNN answers alike in both spaces"),
        _agreement("probe_agreement", "Probe agreement", probe, "share of test pictures that both probes answer alike"),
        Measure(
            "ece",
            "labels",
            "Calibration error",
            calibrated["student"]["ece"],
            calibrated["teacher"]["ece"],
            LOWER,
            change=tuple(calibrated["change_interval"]),
            what=f"expected calibration error of the probe, {calibrated['bins']} equal bins, 0 is best",
        ),
        Measure(
            "churn",
            "labels",
            "Churn",
            knn["churn"]["share"],
            None,
            LOWER,
            flipped,
            what="share of test pictures whose kNN answer is another than the teacher's, right or wrong: 1 - agreement",
        ),
    ]


def _accuracy(name, title, block, what):
    own, change = tuple(block["student_interval"]), tuple(block["change_interval"])
    return Measure(name, "labels", title, block["student"], block["teacher"], interval=own, change=change, what=what)


def _agreement(name, title, block, what):
    return Measure(name, "labels", title, block["agreement"], interval=tuple(block["agreement_interval"]), what=what)
