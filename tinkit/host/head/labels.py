"""A head from labelled pictures, fitted twice: on the mapped teacher, and on the student's own features.

The first is the promise of the teacher in the middle: what was built on the teacher works on the student. Both are judged
on what the head will see, the student's features, on validation pictures; the better one is kept, and the test pictures
are asked once.
"""

from typing import Any

import numpy as np
from scipy.special import log_softmax

from tinkit.fidelity import NOT_JUDGED
from tinkit.host.evaluate.pictures import BANK, TEST, VALIDATION, Sorted
from tinkit.host.evaluate.probe import fit_probe
from tinkit.host.evaluate.resampling import interval_of_mean
from tinkit.host.evaluate.rows import Rows
from tinkit.host.head.files import ON_STUDENT, ON_TEACHER, SOURCES, Fitted
from tinkit.host.head.zero_shot import length_of


def from_labels(rows: Rows, pictures: Sorted, source: str | None, seed: int) -> Fitted:
    """The better of two heads for the student: fitted on the mapped teacher's features, and on the student's own.

    Both are fitted on the bank with C chosen on the student's features of validation pictures, and judged there; equals by
    mean log loss. The mapped teacher's is brought to the student's length (`length_of`). `source` takes one of the two.
    """
    parts = {part: rows[pictures.rows_of(part)] for part in (BANK, VALIDATION, TEST)}
    labels = {part: np.asarray(pictures.labels[part], np.int64) for part in parts}
    length = 1.0 if rows.mapped is None else length_of(parts[BANK].mapped, parts[BANK].student)
    probes, heads = {}, {}
    for which in SOURCES:
        bank, scale = (parts[BANK].mapped, length) if which == ON_TEACHER else (parts[BANK].student, 1.0)
        if bank is not None:
            seen = parts[VALIDATION].student / np.float32(scale)
            probe = fit_probe(bank, labels[BANK], seen, labels[VALIDATION], pictures.classes, seed)
            probes[which], heads[which] = probe, (probe.weight / np.float32(scale), probe.bias)
    validation = _compared(heads, parts[VALIDATION].student, labels[VALIDATION], seed)
    kept, why = _choice(validation, source, heads)
    weight_CD, bias_C = heads[kept]
    test = _right(heads[kept], parts[TEST].student, labels[TEST])
    evidence = {
        "validation": validation,
        "chosen_by": why,
        "test": _share(test, seed),
        "c": {which: probe.c for which, probe in probes.items()},
        "length": length,
    }
    if ON_TEACHER in probes and len(test):
        on_teacher = probes[ON_TEACHER].logits(parts[TEST].mapped).argmax(axis=1) == labels[TEST]
        evidence["test_on_mapped_teacher"] = _share(on_teacher, seed)
    notes = [f"head on the {which}'s features: {note}" for which, probe in probes.items() for note in probe.notes]
    return Fitted(
        weight_CD, bias_C, kept, NOT_JUDGED, _reason(kept, why, validation, evidence["test"]), evidence, notes
    )


def _right(layer, rows_ND, labels_N) -> np.ndarray:
    """(N,) whether the answer is the label."""
    weight_CD, bias_C = layer
    return np.equal((rows_ND @ weight_CD.T + bias_C).argmax(axis=1), labels_N)


def _compared(heads, rows_ND, labels_N, seed) -> dict[str, Any]:
    """Accuracy and mean log loss of each head on validation pictures, and teacher's less student's with its interval."""
    block: dict[str, Any] = {"pictures": len(labels_N)}
    if not len(labels_N):
        return block
    right = {which: _right(layer, rows_ND, labels_N).astype(float) for which, layer in heads.items()}
    for which, (weight_CD, bias_C) in heads.items():
        chances = log_softmax(np.asarray(rows_ND @ weight_CD.T + bias_C, np.float64), axis=1)
        loss = -chances[np.arange(len(labels_N)), labels_N].mean()
        block[which] = {"accuracy": float(right[which].mean()), "log_loss": float(loss)}
    if len(right) == len(SOURCES):
        difference = right[ON_TEACHER] - right[ON_STUDENT]
        block["difference"] = float(difference.mean())
        block["interval"] = list(interval_of_mean(difference, seed=seed))
    return block


def _choice(validation, source, heads) -> tuple[str, str]:
    """(source that is kept, why)."""
    if source is not None:
        return source, "--from"
    if len(heads) == 1:
        return ON_STUDENT, "the run has no mapping"
    if not validation["pictures"]:
        return ON_STUDENT, "no validation picture to choose by: what it was fitted on is what it will see"
    if validation["difference"]:
        return (ON_TEACHER if validation["difference"] > 0 else ON_STUDENT), "validation accuracy"
    better = min(SOURCES, key=lambda which: validation[which]["log_loss"])
    return better, "validation log loss, at equal accuracy"


def _share(right_N, seed) -> dict[str, Any] | None:
    if not len(right_N):
        return None
    values = np.asarray(right_N, float)
    return {
        "pictures": len(values),
        "accuracy": float(values.mean()),
        "interval": list(interval_of_mean(values, seed=seed)),
    }


def _reason(kept, why, validation, test) -> str:
    told = f"the head fitted on the {'mapped teacher' if kept == ON_TEACHER else 'student'}'s features is kept ({why})"
    if "difference" in validation:
        both = " and ".join(f"{validation[which]['accuracy']:.3f} fitted on the {which}" for which in SOURCES)
        told += (
            f"; on the student's features of {validation['pictures']} validation pictures {both}, "
            f"difference {validation['difference']:+.3f} (95 % {_interval(validation, '+')})"
        )
        low, high = validation["interval"]
        told += ": within the noise" if low <= 0 <= high else ""
    if test is None:
        return told + "; no test picture"
    return told + f"; {test['accuracy']:.3f} of {test['pictures']} test pictures right (95 % {_interval(test)})"


def _interval(block, sign="") -> str:
    return " to ".join(f"{value:{sign}.3f}" for value in block["interval"])
