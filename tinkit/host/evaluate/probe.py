"""A linear probe: multinomial logistic regression (scikit-learn, L-BFGS) on standardised features.

How strongly it is held back (C, the inverse of the L2 penalty's weight) is chosen on validation pictures; the pictures that
judge it are never seen here. Standardisation is folded into the weights, so that the probe is one linear layer: the head
that `tinkit head` ships is the same thing. Few labels are fine: a class, a part or all but one class may be missing.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

GRID = tuple(10.0**power for power in range(-5, 3))
UNCHOSEN = 0.1  # the C of a probe without validation pictures
MOST_ROWS = 50_000  # more training pictures than these are sampled: below 0.6 GB at 1280 columns
ABSENT = 10  # logit of a class without a training picture, below the lowest of the others
TOLERANCE, MOST_STEPS = 1e-5, 1000
CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Probe:
    """One linear layer over raw features: weight (C, D) and bias (C,), float32. C classes, D width.

    c: the inverse penalty that was chosen; tried: (C, validation accuracy) of each one tried; validation_accuracy 0..1, or
    None without validation pictures. notes: what a reader should know, in words.
    """

    weight: np.ndarray
    bias: np.ndarray
    c: float
    validation_accuracy: float | None
    tried: tuple[tuple[float, float], ...] = ()
    notes: tuple[str, ...] = ()

    def logits(self, rows_ND) -> np.ndarray:
        """(N, C) float32."""
        return np.concatenate([np.zeros((0, len(self.bias)), np.float32), *self._chunks(rows_ND)])

    def proba(self, rows_ND) -> np.ndarray:
        """(N, C) float64, every row sums to 1."""
        return softmax(self.logits(rows_ND).astype(np.float64), axis=1)

    def answers(self, rows_ND) -> tuple[np.ndarray, np.ndarray]:
        """(classes (N,) int64, their probabilities (N,) float64), in chunks: never N x C in memory."""
        answers, confidence = [np.zeros(0, np.int64)], [np.zeros(0)]
        for logits in self._chunks(rows_ND):
            answers.append(logits.argmax(axis=1))
            confidence.append(softmax(logits.astype(np.float64), axis=1).max(axis=1))
        return np.concatenate(answers), np.concatenate(confidence)

    def lowest(self, rows_ND) -> float:
        """The lowest logit of all; inf without rows."""
        return min((float(logits.min()) for logits in self._chunks(rows_ND)), default=np.inf)

    def _chunks(self, rows_ND) -> Iterator[np.ndarray]:
        for start in range(0, len(rows_ND), CHUNK):
            yield np.asarray(rows_ND[start : start + CHUNK], np.float32) @ self.weight.T + self.bias


def fit_probe(
    train_rows, train_labels, validation_rows, validation_labels, classes: Sequence[str] | int, seed: int = 0
) -> Probe:
    """A `Probe` fitted on the training rows (N, D) with labels (N,) below the number of `classes` (names, or how many).

    C is the one of GRID with the highest accuracy on the validation rows; among equals the lowest log loss, then the
    smallest C. The grid is walked upwards and left when two in a row are worse than the best in accuracy and in log loss.
    `seed` draws MOST_ROWS of the training pictures where there are more. A class without a training picture gets a
    constant logit, ABSENT below the lowest that the training and validation rows see. ValueError for no training rows,
    rows without their label, labels out of range and features that are not finite.
    """
    count = classes if isinstance(classes, int) else len(classes)
    train_labels, validation_labels = np.asarray(train_labels, np.int64), np.asarray(validation_labels, np.int64)
    _check(train_rows, train_labels, count)
    _check(validation_rows, validation_labels, count)
    if len(train_rows) == 0:
        raise ValueError("no training rows for a probe")
    chosen, notes = _at_most(len(train_rows), seed)
    rows, labels = np.array(train_rows[chosen], np.float32), train_labels[chosen]
    present = np.unique(labels)
    notes += _missing(np.setdiff1d(np.arange(count), present), classes)
    if len(present) == 1:
        return _constant(rows.shape[1], present[0], validation_labels, count, notes)
    fits = _walk(rows, labels, validation_rows, validation_labels, count)
    best = max(fits, key=lambda fit: (fit.accuracy, -fit.loss, -fit.c))
    if not best.converged:
        notes.append(f"the solver had not settled after {MOST_STEPS} steps at C = {best.c:g}")
    if len(validation_rows) == 0:
        notes.append(f"no validation picture: C = {best.c:g} was not chosen by anything")
        return Probe(best.weight, best.bias, best.c, None, (), tuple(notes))
    if best.c in (GRID[0], GRID[-1]):
        notes.append(f"C = {best.c:g} is at the edge of the grid {GRID[0]:g} .. {GRID[-1]:g}: better may lie beyond")
    return Probe(
        best.weight, best.bias, best.c, best.accuracy, tuple((fit.c, fit.accuracy) for fit in fits), tuple(notes)
    )


class _Fit(NamedTuple):
    accuracy: float
    loss: float
    c: float
    weight: np.ndarray
    bias: np.ndarray
    converged: bool


def _walk(rows, labels, validation_rows, validation_labels, classes) -> list[_Fit]:
    """From the smallest C on; each fit starts where the last one ended."""
    scaler = StandardScaler().fit(rows)
    standard = scaler.transform(rows)
    model = LogisticRegression(tol=TOLERANCE, max_iter=MOST_STEPS, warm_start=True)
    fits: list[_Fit] = []
    worse = 0
    for c in GRID if len(validation_rows) else (UNCHOSEN,):
        model.C = c
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes")  # that is what few labels means
            model.fit(standard, labels)
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in said)
        weight, bias = _folded(model, scaler, rows, validation_rows, classes)
        accuracy, loss = _judged(Probe(weight, bias, c, None), validation_rows, validation_labels)
        behind = bool(fits) and accuracy < max(f.accuracy for f in fits) and loss > min(f.loss for f in fits)
        worse = worse + 1 if behind else 0
        fits.append(_Fit(accuracy, loss, c, weight, bias, converged))
        if worse == 2:
            break
    return fits


def _folded(model, scaler, rows, validation_rows, classes):
    """(weight (C, D), bias (C,)) over raw features of all classes, from a fit over standardised ones of those present."""
    coefficients, bias_C = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes
        coefficients, bias_C = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-bias_C, bias_C]) / 2
    coefficients = coefficients / scaler.scale_
    weight, bias = np.zeros((classes, rows.shape[1]), np.float32), np.zeros(classes, np.float32)
    weight[model.classes_], bias[model.classes_] = coefficients, bias_C - coefficients @ scaler.mean_
    absent = np.setdiff1d(np.arange(classes), model.classes_)
    if len(absent):
        present = Probe(weight[model.classes_], bias[model.classes_], model.C, None)
        bias[absent] = min(present.lowest(rows), present.lowest(validation_rows)) - ABSENT
    return weight, bias


def _judged(probe, rows, labels) -> tuple[float, float]:
    """(accuracy, mean log loss) on validation rows; (0, 0) without any."""
    if len(rows) == 0:
        return 0.0, 0.0
    logits = probe.logits(rows).astype(np.float64)
    loss = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return float((logits.argmax(axis=1) == labels).mean()), float(loss.mean())


def _constant(width, only, validation_labels, classes, notes) -> Probe:
    """A probe that answers with the one class it has seen."""
    bias = np.full(classes, -ABSENT, np.float32)
    bias[only] = 0
    accuracy = float((validation_labels == only).mean()) if len(validation_labels) else None
    told = (*notes, "training pictures of one class only: the probe answers with that class always")
    return Probe(np.zeros((classes, width), np.float32), bias, UNCHOSEN, accuracy, (), told)


def of_probes(teacher: Probe, student: Probe) -> dict:
    """{"teacher_probe", "student_probe"}: how each was chosen, for a block of an evaluation."""
    return {
        f"{who}_probe": {
            "c": probe.c,
            "validation_accuracy": probe.validation_accuracy,
            "tried": [{"c": c, "accuracy": accuracy} for c, accuracy in probe.tried],
        }
        for who, probe in (("teacher", teacher), ("student", student))
    }


def notes_of(teacher: Probe, student: Probe) -> list[str]:
    """The notes of two probes: what both say once, the rest with whose it is."""
    both = [note for note in teacher.notes if note in student.notes]
    alone = (("teacher", teacher), ("student", student))
    return both + [f"{who}'s probe: {note}" for who, probe in alone for note in probe.notes if note not in both]


def _check(rows, labels, classes):
    if len(rows) != len(labels):
        raise ValueError(f"{len(rows)} rows and {len(labels)} labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels {labels.min()} .. {labels.max()} of {classes} classes")
    for start in range(0, len(rows), CHUNK):
        if not np.isfinite(rows[start : start + CHUNK]).all():
            raise ValueError("features that are not finite")


def _at_most(count, seed) -> tuple[np.ndarray, list[str]]:
    """Which training rows are used, in order, and what to say about it."""
    if count <= MOST_ROWS:
        return np.arange(count), []
    chosen = np.random.default_rng(seed).choice(count, MOST_ROWS, replace=False)
    return np.sort(chosen), [f"fitted on {MOST_ROWS} of {count} training pictures, drawn with seed {seed}"]


def _missing(absent, classes) -> list[str]:
    if len(absent) == 0:
        return []
    named = [str(number) if isinstance(classes, int) else classes[number] for number in absent]
    shown = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
    return [f"no training picture of {shown}: it is no answer to expect"]
