"""Pictures as points with a distance, so that every way of choosing is written once for maps and for features.

"euclidean" is for a map, "cosine" (1 - cosine, between 0 and 2) for features. Distances are made in blocks: memory is a
few dozen MB beside the rows, never pictures x pictures. Legend: N points, D width, K centres.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import euclidean_distances

from tinkit.host.evaluate.neighbours import unit_rows

COSINE, EUCLIDEAN = METRICS = ("cosine", "euclidean")
BLOCK = 1 << 22  # distances in memory at once
NARROW = 16  # columns; up to here every difference is taken, exactly
ROUNDING = 1e-6  # of float32: cosines this close to 1, distances this share of the longest row, are 0


@dataclass(frozen=True)
class Points:
    """N rows and how far they are apart; made by `points_of`."""

    rows_ND: np.ndarray
    metric: str
    zero: float  # distances below it are rounding

    def __len__(self):
        return len(self.rows_ND)

    def between(self, a, b) -> np.ndarray:
        """Distances (len(a), len(b)) of the points numbered `a` to those numbered `b`; for few of at least one kind."""
        first, second = self.rows_ND[a], self.rows_ND[b]
        if self.metric == COSINE:
            found = 1 - first @ second.T
        elif first.shape[1] <= NARROW:
            return cdist(first, second)
        else:
            found = euclidean_distances(first, second)
        found[found < self.zero] = 0
        return found

    def blocks(self, a, b) -> Iterator[np.ndarray]:
        """`between` in blocks of rows of `a`, in order."""
        step = max(1, BLOCK // max(1, len(b)))
        for start in range(0, len(a), step):
            yield self.between(a[start : start + step], b)

    def to_one(self, centre) -> np.ndarray:
        """Distances (N,) of all points to one of them."""
        return self.between(slice(None), [centre])[:, 0]

    def nearest(self, centres_K) -> tuple[np.ndarray, np.ndarray]:
        """(which of the centres is nearest (N,), the distance to it (N,)); of equally near ones the first."""
        owner, distance = np.empty(len(self), np.int64), np.empty(len(self))
        start = 0
        for block in self.blocks(np.arange(len(self)), centres_K):
            part = slice(start, start + len(block))
            owner[part], distance[part] = block.argmin(1), block.min(1)
            start += len(block)
        return owner, distance


def points_of(rows_ND, metric: str) -> Points:
    """Points of features or of a map. ValueError for another metric, or rows that are not finite."""
    rows = np.asarray(rows_ND)
    if metric not in METRICS:
        raise ValueError(f"{metric!r} is none of {', '.join(METRICS)}")
    if rows.ndim != 2 or not len(rows) or not np.isfinite(rows).all():
        raise ValueError("points are rows of finite numbers")
    if metric == COSINE:
        return Points(unit_rows(rows), metric, ROUNDING)
    narrow = rows.shape[1] <= NARROW
    rows = rows.astype(np.float64 if narrow else np.float32)
    longest = float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max()))
    return Points(rows, metric, 0.0 if narrow else ROUNDING * longest)


def members(owner_N, count: int) -> list[np.ndarray]:
    """The points of each of `count` clusters, by number."""
    order = np.argsort(owner_N, kind="stable")
    return np.split(order, np.cumsum(np.bincount(owner_N, minlength=count))[:-1])
