"""How well a score tells known pictures from strange ones: AUROC, AUPR and false alarms at 95 % recall, with weights.

A weight per picture makes a bootstrap cheap: the scores are sorted once, and a thousand resamplings are a thousand weight
vectors over the same order (Efron 1979; known and strange pictures are resampled each among themselves). R resamplings, N known
and M strange pictures, G different scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

METRICS = ("auroc", "aupr_known", "aupr_strange", "fpr95_known", "fpr95_strange")
LOWER_IS_BETTER = ("fpr95_known", "fpr95_strange")
RECALL_PERCENT = 95
RESAMPLES, LEAST_RESAMPLES = 1000, 100
BUDGET = 200_000_000  # scores that all resamplings of one set may weigh together, before there are fewer of them
AT_ONCE = 100_000  # of these at a time: what a cache holds


@dataclass(frozen=True)
class Ranking:
    """Known (N,) and strange (M,) scores in falling order; equal scores are one step, where neither comes first."""

    order: np.ndarray
    starts: np.ndarray
    known: int
    scores: np.ndarray

    @classmethod
    def of(cls, known_N, strange_M) -> "Ranking":
        """ValueError for no scores on a side, or scores that are not finite."""
        known, strange = np.asarray(known_N, np.float64), np.asarray(strange_M, np.float64)
        if not (known.size and strange.size and np.isfinite(known).all() and np.isfinite(strange).all()):
            raise ValueError("both sides need scores, and finite ones")
        scores = np.concatenate([known, strange])
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        starts = np.flatnonzero(np.append(True, falling[1:] != falling[:-1]))
        return cls(order, starts, len(known), falling[starts])

    def counts(self, known_RN=None, strange_RM=None) -> tuple[np.ndarray, np.ndarray]:
        """(known, strange), each (R, G + 1): how many (by weight, once each if None) score at least so much; first column 0."""
        strangers = len(self.order) - self.known
        known = np.ones((1, self.known), np.int32) if known_RN is None else known_RN
        strange = np.ones((1, strangers), np.int32) if strange_RM is None else strange_RM
        return self._summed(np.hstack([known, 0 * strange])), self._summed(np.hstack([0 * known, strange]))

    def _summed(self, weight):
        steps = np.take(weight, self.order, axis=1)
        if len(self.starts) < len(self.order):
            steps = np.add.reduceat(steps, self.starts, axis=1)
        summed = np.zeros((len(steps), len(self.starts) + 1))  # whole numbers, exact in float64
        np.cumsum(steps, axis=1, out=summed[:, 1:])
        return summed

    def metrics(self, known_RN=None, strange_RM=None) -> dict[str, np.ndarray]:
        """`METRICS` as (R,) each, 0 to 1.

        auroc: the chance that a known picture scores above a strange one, ties half (Mann-Whitney).
        aupr_known, aupr_strange: average precision with these as the positives (steps, no straight lines between them; OpenOOD
        draws lines). fpr95_known: share of strange pictures that pass the highest threshold which at least 95 % of the known
        pass (CosPress); fpr95_strange: share of known pictures that are flagged where at least 95 % of the strange are (OpenOOD).
        """
        known, strange = self.counts(known_RN, strange_RM)
        all_known, all_strange = known[:, -1:], strange[:, -1:]
        new_known, new_strange = np.diff(known), np.diff(strange)
        area = np.einsum("rg,rg->r", new_strange, known[:, 1:] - new_known / 2) / (all_known * all_strange)[:, 0]
        flagged_known, flagged_strange = all_known - known, all_strange - strange  # those below each step
        return {
            "auroc": area,
            "aupr_known": _average_precision(new_known, known[:, 1:], strange[:, 1:]),
            "aupr_strange": _average_precision(new_strange, flagged_strange[:, :-1], flagged_known[:, :-1]),
            "fpr95_known": _first(known, all_known, strange),
            "fpr95_strange": _first(flagged_strange[:, ::-1], all_strange, flagged_known[:, ::-1]),
        }

    def curve(self, points=100) -> list[list[float]]:
        """At most `points` of the ROC, [share of strange, share of known] that pass, from (0, 0) to (1, 1)."""
        known, strange = (side[0] / side[0, -1] for side in self.counts())
        # evenly along the curve and not along the steps, most of which lie on top of each other
        length = np.arange(known.size) if known.size <= points else known + strange
        at = np.unique(np.searchsorted(length, np.linspace(0, length[-1], points)))
        return [[round(float(strange[i]), 6), round(float(known[i]), 6)] for i in np.minimum(at, known.size - 1)]


def _average_precision(new, positives, negatives):
    precision = positives / np.maximum(positives + negatives, 1)
    return np.einsum("rg,rg->r", new, precision) / new.sum(axis=1)


def _first(reached, whole, others):
    """Share of the others at the first step where 95 % of `whole` are reached; in whole numbers, so exactly 95 % counts."""
    step = (100 * reached >= RECALL_PERCENT * whole).argmax(axis=1)
    return others[np.arange(len(others)), step] / others.max(axis=1)


def resamples(pictures: int) -> int:
    """How many resamplings a set of so many pictures gets: 1000, fewer (to 100) above 200,000."""
    return int(np.clip(BUDGET // max(pictures, 1), LEAST_RESAMPLES, RESAMPLES))


def weights(known: int, strange: int, times: int, seed) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Bootstrap weights (r, N), (r, M) int32 of `times` resamplings, some at a time.

    seed: two numbers, of the evaluation and of the strange set; the known pictures are drawn by the first alone, so that they are
    the same for every set.
    """
    random_known, random_strange = np.random.default_rng([seed[0], 0]), np.random.default_rng([seed[0], 1 + seed[1]])
    some = max(1, AT_ONCE // (known + strange))
    for start in range(0, times, some):
        now = min(some, times - start)
        yield _drawn(known, now, random_known), _drawn(strange, now, random_strange)


def _drawn(pictures, times, random):
    drawn = random.integers(pictures, size=(times, pictures)) + np.arange(times)[:, None] * pictures
    return np.bincount(drawn.ravel(), minlength=times * pictures).reshape(times, pictures).astype(np.int32)
