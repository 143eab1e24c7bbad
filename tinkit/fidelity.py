"""How close one set of answers is to another: the same numbers on workstation and board, in numpy.

Two kinds of closeness. *Pointwise*: the cosine of two embeddings of one picture, judged on the worst picture
(`compare_answers`). *Relational*: whether pictures that are alike for the teacher are alike for the student (pairwise
cosines and their ranks, linear CKA, nearest neighbours, kNN predictions; kNN by the protocol of arXiv 2411.15239's code,
CKA by arXiv 1905.00414, the rest is tinkit's own). Shapes: N pictures, D width, C classes.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional

import numpy as np

PASSED, FAILED, NOT_JUDGED = "passed", "failed", "not judged"


@dataclass(frozen=True)
class Fidelity:
    """One hop of the chain for one output: evidence, gate and verdict.

    Cosines are per picture, between -1 and 1 (an answer that is not finite counts as -1). max_error is the largest
    |difference| in the output's own unit, max_error_share the same divided by the largest |reference|.
    `worst` lists the worst pictures first: [{"index", "name", "cosine"}].
    """

    hop: str
    output: str
    pictures: int
    cosine_mean: float
    cosine_p1: float
    cosine_min: float
    max_error: float
    max_error_share: float
    worst: List[Dict[str, Any]]
    verdict: str = NOT_JUDGED
    reason: str = ""
    gate: Optional[Dict[str, float]] = None
    conditions: Dict[str, Any] = field(default_factory=dict)

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, value):
        numbers = ("cosine_mean", "cosine_p1", "cosine_min", "max_error", "max_error_share")
        return cls(**dict(value, **{name: float(value[name]) for name in numbers}))  # "inf" is text in JSON


def unit(rows_ND):
    """Rows scaled to length 1, in float64; a zero row stays zero."""
    rows = np.asarray(rows_ND, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def cosine_per_picture(answers, reference):
    """Cosine of each picture's whole answer (N, ...) with its reference; -1 where an answer is not finite."""
    a = np.asarray(answers, np.float64).reshape(len(answers), -1)
    b = np.asarray(reference, np.float64).reshape(len(reference), -1)
    if a.shape != b.shape:
        raise ValueError("answers {} and reference {} differ in shape".format(np.shape(answers), np.shape(reference)))
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    cosine = (unit(np.where(finite[:, None], a, 0)) * unit(np.where(finite[:, None], b, 0))).sum(axis=1)
    return np.where(finite, np.clip(cosine, -1, 1), -1.0)


def compare_answers(hop, output, answers, reference, names, gate=None, conditions=None, worst=8):
    """A `Fidelity` of `answers` against `reference` (both (N, ...)); judged when a `Gate` is given."""
    if len(answers) == 0:
        raise ValueError("no answers to compare")
    cosine = cosine_per_picture(answers, reference)
    a, b = np.asarray(answers, np.float64), np.asarray(reference, np.float64)
    difference = float(np.abs(a - b).max()) if np.isfinite(a).all() else float("inf")
    share = difference / max(float(np.abs(b).max()), 1e-12)
    order = np.argsort(cosine, kind="stable")[:worst]
    verdict, reason = judge(cosine, share, names, gate)
    return Fidelity(
        hop=hop,
        output=output,
        pictures=len(cosine),
        cosine_mean=float(cosine.mean()),
        cosine_p1=float(np.percentile(cosine, 1)),
        cosine_min=float(cosine.min()),
        max_error=difference,
        max_error_share=share,
        worst=[{"index": int(i), "name": str(names[i]), "cosine": float(cosine[i])} for i in order],
        verdict=verdict,
        reason=reason,
        gate=limits_of(gate),
        conditions=dict(conditions or {}),
    )


def limits_of(gate):
    """The limits of a gate that are judged, as plain data; None for no gate."""
    if gate is None:
        return None
    limits = {"min_cosine": gate.min_cosine, "max_error_share": gate.max_error_share}
    return dict(limits, min_cosine_mean=gate.min_cosine_mean) if gate.min_cosine_mean > -1 else limits


def judge(cosine_N, error_share, names, gate):
    """(verdict, reason): exactly at a limit passes; the reason names the worst picture."""
    if gate is None:
        return NOT_JUDGED, "no gate"
    worst = int(np.argmin(cosine_N))
    if not cosine_N[worst] >= gate.min_cosine:
        return FAILED, "cosine {:.6f} of picture {!r} is below {}".format(
            cosine_N[worst], str(names[worst]), gate.min_cosine
        )
    mean = float(np.mean(cosine_N))
    if not mean >= gate.min_cosine_mean:
        return FAILED, "mean cosine {:.6f} is below {}; worst picture {!r}".format(
            mean, gate.min_cosine_mean, str(names[worst])
        )
    if not error_share <= gate.max_error_share:
        return FAILED, "the largest error is {:.2e} of the largest answer, more than {}; worst picture {!r}".format(
            error_share, gate.max_error_share, str(names[worst])
        )
    told = ", {} on average".format(gate.min_cosine_mean) if gate.min_cosine_mean > -1 else ""
    return PASSED, "cosine at least {}{}, error share at most {}".format(gate.min_cosine, told, gate.max_error_share)


def verdict_of(hops):
    """One verdict for many: failed if any failed, passed if at least one passed and none failed."""
    verdicts = [hop.verdict for hop in hops]
    if FAILED in verdicts:
        return FAILED
    return PASSED if PASSED in verdicts else NOT_JUDGED


def cosine_difference(a_ND, b_ND):
    """mean over pairs i < j of |cos(a_i, a_j) - cos(b_i, b_j)|; widths may differ. 0 when angles are kept."""
    a, b = unit(a_ND), unit(b_ND)
    upper = np.triu_indices(len(a), 1)
    return float(np.abs(a @ a.T - b @ b.T)[upper].mean())


def cosine_spearman(a_ND, b_ND):
    """Spearman's rank correlation of cos(a_i, a_j) with cos(b_i, b_j) over the pairs i < j; widths may differ.

    Between -1 and 1; 1 when both put the pairs in the same order, 0 when one of them tells no pair from another.
    Cosines that differ by less than 1e-12 count as equal: that is rounding, and would be ranked all the same.
    """
    a, b = unit(a_ND), unit(b_ND)
    upper = np.triu_indices(len(a), 1)
    first, second = (ranks(np.round((rows @ rows.T)[upper], 12)) for rows in (a, b))
    first, second = first - first.mean(), second - second.mean()
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 0 else 0.0


def ranks(values_N):
    """1 for the smallest, N for the largest; equal values share the mean of their ranks."""
    values = np.asarray(values_N)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # where each run of equal values ends
    first = np.append(0, last[:-1] + 1)
    found = np.empty(len(values))
    found[order] = np.repeat((first + last) / 2 + 1, last - first + 1)
    return found


def linear_cka(a_ND, b_ND):
    """|A^T B|^2 / (|A^T A| |B^T B|), Frobenius norms, columns centred: 1 when a is b turned, scaled or moved; else less.

    The D x D form: N may be large, widths may differ. 0 when one side is constant. arXiv 1905.00414.
    """
    a, b = _centred(a_ND), _centred(b_ND)
    scale = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / scale) if scale > 0 else 0.0


def _centred(rows_ND):
    """Columns of mean 0, in float64; exactly 0 where nothing but rounding is left."""
    rows = np.asarray(rows_ND, np.float64)
    mean = rows.mean(axis=0)
    centred = rows - mean
    return np.where(np.abs(centred).max(axis=0) > 1e-12 * np.abs(mean), centred, 0.0)


def neighbour_overlap(a_ND, b_ND, k=10):
    """Mean share of the k nearest neighbours (cosine, self left out) that a and b have in common."""
    k = min(k, len(a_ND) - 1)
    near = []
    for rows in (unit(a_ND), unit(b_ND)):
        similarity = rows @ rows.T
        np.fill_diagonal(similarity, -np.inf)
        near.append(np.argpartition(-similarity, k - 1, axis=1)[:, :k])
    return float(np.mean([len(np.intersect1d(p, q)) / k for p, q in zip(*near)]))


def knn_predict(bank_ND, labels_N, queries_MD, k=10, temperature=0.07, chunk=1024):
    """kNN classes (M,): cosine, k neighbours, weight exp(similarity / temperature); arXiv 2411.15239's protocol."""
    labels = np.asarray(labels_N)
    classes = int(labels.max()) + 1
    bank = unit(bank_ND).astype(np.float32)
    predictions = []
    for start in range(0, len(queries_MD), chunk):
        similarity = unit(queries_MD[start : start + chunk]).astype(np.float32) @ bank.T
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.exp(np.take_along_axis(similarity, near, axis=1) / temperature)
        votes = np.zeros((len(similarity), classes))
        for column in range(k):
            votes[np.arange(len(votes)), labels[near[:, column]]] += weight[:, column]
        predictions.append(votes.argmax(axis=1))
    return np.concatenate(predictions)
