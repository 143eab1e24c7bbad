"""k-medoids: K pictures such that every picture is near to one of them (the sum of distances is small).

Started by k-medoids++ and improved by alternate updates (assign, then move each medoid to the middle of its cluster), as
in Cold PAWS (Mannix and Bondell 2023, arXiv 2305.10071), but in blocks: its code's library holds all N x N distances. The
start is that of k-means++ (Arthur and Vassilvitskii 2007) with the best of a few draws, on squared distances.
"""

import math

import numpy as np

from tinkit.host.select.points import COSINE, Points, members

ROUNDS = 300


def k_medoids(points: Points, count: int, seed: int, rounds=ROUNDS) -> np.ndarray:
    """`count` different points (int64), a local minimum of the sum of distances to the nearest."""
    medoids = start(points, count, np.random.default_rng(seed))
    for _ in range(rounds):
        owner, distance = points.nearest(medoids)
        refill(points, medoids, owner, distance)
        owner[medoids] = np.arange(count)  # also of two that lie together; so no picture is the middle of two clusters
        clusters = members(owner, count)
        moved = np.array([middle(points, *pair) for pair in zip(clusters, medoids)])
        if np.array_equal(moved, medoids):
            break
        medoids = moved
    return medoids


def start(points: Points, count: int, random: np.random.Generator) -> np.ndarray:
    """Each next point is drawn by its squared distance to those chosen; of 2 + log(count) draws the best is kept."""
    chosen = [int(random.integers(len(points)))]
    nearest = points.to_one(chosen[0]).astype(np.float64)
    draws = 2 + int(math.log(count))
    while len(chosen) < count:
        weight = np.cumsum(nearest**2)
        if weight[-1] == 0:  # nothing but copies is left
            others = np.setdiff1d(np.arange(len(points)), chosen)
            return np.array(chosen + random.permutation(others)[: count - len(chosen)].tolist())
        tried = np.searchsorted(weight, random.random(draws) * weight[-1], side="right")
        tried = np.minimum(tried, np.flatnonzero(nearest)[-1])  # rounding at the end of the sum
        left = np.minimum(nearest[:, None], points.between(slice(None), tried))
        best = int((left**2).sum(0).argmin())
        chosen.append(int(tried[best]))
        nearest = left[:, best]
        nearest[chosen[-1]] = 0
    return np.array(chosen)


def refill(points: Points, medoids, owner, distance) -> None:
    """A medoid without pictures (it lies where another one does) goes to the picture that is farthest from all.

    Changes the three arrays in place.
    """
    for cluster in np.flatnonzero(np.bincount(owner, minlength=len(medoids)) == 0):
        farthest = int(distance.argmax())
        if distance[farthest] == 0:
            return  # every picture lies on a medoid
        medoids[cluster] = farthest
        found = points.to_one(farthest)
        nearer = found < distance
        nearer[farthest] = True
        owner[nearer], distance[nearer] = cluster, found[nearer]
        distance[farthest] = 0


def middle(points: Points, cluster, medoid) -> int:
    """The point of a cluster with the smallest sum of distances to the others; the present one when it is as good."""
    if not len(cluster):
        return int(medoid)
    if points.metric == COSINE:  # the sum of 1 - x.y over y is n - x.(sum of y): exact without pairs
        rows = points.rows_ND[cluster]
        sums = len(cluster) - rows @ rows.sum(0, dtype=np.float64)
    else:
        sums = np.concatenate([block.sum(1, dtype=np.float64) for block in points.blocks(cluster, cluster)])
    present = np.flatnonzero(cluster == medoid)
    best = int(sums.argmin())
    if len(present) and sums[present[0]] <= sums[best] + 1e-9 * len(cluster):
        return int(medoid)
    return int(cluster[best])
