"""Whether pictures that are alike for the teacher are alike for the student: numbers over pairs of pictures.

All pairs of at most SAMPLED pictures (a seeded sample of more), so that a matrix of pairs fits into memory. A picture is
never paired with itself. Intervals by halves (tinkit.host.evaluate.resampling). The numbers are those of tinkit.fidelity,
which describes a few hundred held-out pictures in float64; here cosines are float32, good to about 1e-6.
"""

import numpy as np

from tinkit.host.evaluate.neighbours import unit_rows
from tinkit.host.evaluate.resampling import HALVES, SEED, halves, interval_of_halves

SAMPLED = 4000
HALVED = 2000  # of these, for the interval of Spearman's correlation
GRADES = 128  # ranks are cut into so many steps for the interval of Spearman's correlation, and only for that


def sample(count: int, most: int, seed: int) -> np.ndarray:
    """Sorted indices of min(count, most) pictures, drawn without replacement."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def pair_cosines(rows_MD) -> np.ndarray:
    """(M, M) float32: the cosine of each row with each other."""
    unit = unit_rows(rows_MD)
    return unit @ unit.T


def difference(a_MM, b_MM, halves_RM) -> dict:
    """{"value", "interval"} of the mean over pairs i < j of |a_ij - b_ij|, between 0 (angles kept) and 2."""
    apart = np.abs(a_MM - b_MM)
    np.fill_diagonal(apart, 0)
    count, half = len(apart), len(apart) // 2
    value = float(apart.sum(dtype=np.float64) / (count * (count - 1)))
    found = ((halves_RM @ apart) * halves_RM).sum(axis=1, dtype=np.float64) / (half * (half - 1))
    return {"value": value, "interval": list(interval_of_halves(value, found, count, low=0, high=2))}


def spearman(a_MM, b_MM, resamples=HALVES, seed=SEED) -> dict:
    """{"value", "interval"} of Spearman's rank correlation of a_ij with b_ij over the pairs i < j, between -1 and 1.

    0 when one side tells no pair from another. Cosines are compared to six decimals: the rest is rounding. The interval's
    halves are of at most HALVED of the pictures, for they take time; their spread is scaled to all M.
    """
    count = len(a_MM)
    upper = np.triu(np.ones((count, count), bool), 1)
    first, second = (_ranks(cosines[upper]) for cosines in (a_MM, b_MM))
    cells = np.zeros((count, count), np.uint16)
    cells[upper] = _grades(first) * GRADES + _grades(second)
    halved = sample(count, HALVED, seed)
    cells = (cells + cells.T)[np.ix_(halved, halved)]
    value = _correlation(first, second)
    drawn = halves(len(halved), resamples, seed)
    found = [_graded_correlation(cells, np.flatnonzero(half)) for half in drawn]
    return {"value": value, "interval": list(interval_of_halves(value, found, len(halved), count, low=-1, high=1))}


def _ranks(cosines_P):
    """1 for the smallest, P for the largest; those that are equal to six decimals share the mean of their ranks."""
    steps = np.round((cosines_P.astype(np.float64) + 1) * 1e6).astype(np.int64)
    steps -= steps.min()
    return _middle_ranks(np.bincount(steps))[steps]


def _grades(ranks_P):
    return ((ranks_P - 0.5) * GRADES / len(ranks_P)).astype(np.uint16)


def _correlation(a_P, b_P):
    a, b = a_P - a_P.mean(), b_P - b_P.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip((a @ b) / scale, -1, 1)) if scale > 0 else 0.0


def _graded_correlation(cells_MM, half_H):
    """Spearman's correlation over the pairs of some pictures, from the table of how many pairs have which two grades."""
    part = cells_MM[np.ix_(half_H, half_H)]
    table = np.bincount(part.ravel(), minlength=GRADES**2)
    table -= np.bincount(part.diagonal(), minlength=GRADES**2)  # a picture with itself
    table = table.reshape(GRADES, GRADES).astype(np.float64)
    first, second = (_middle_ranks(table.sum(axis=axis)) for axis in (1, 0))
    pairs = table.sum()
    first, second = first - (pairs + 1) / 2, second - (pairs + 1) / 2
    scale = np.sqrt((table.sum(1) @ first**2) * (table.sum(0) @ second**2))
    return float(first @ table @ second / scale) if scale > 0 else 0.0


def _middle_ranks(counts_G):
    return np.cumsum(counts_G) - (counts_G - 1) / 2
