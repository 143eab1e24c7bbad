"""From points to the numbers of the chosen ones, by any of the methods, and how good the choice is.

Methods are those of Cold PAWS (Mannix and Bondell 2023, arXiv 2305.10071), all with a seed.
"""

import numpy as np

from tinkit.host.select.cover import k_centre, maxi_min, mini_max, smallest_gap
from tinkit.host.select.medoids import k_medoids
from tinkit.host.select.points import Points


def at_random(points: Points, count: int, seed: int) -> np.ndarray:
    """`count` different points, each as likely as any other."""
    return np.random.default_rng(seed).permutation(len(points))[:count]


METHODS = {
    "k-medoids": k_medoids,
    "k-centre": k_centre,
    "mini-max": mini_max,
    "maxi-min": maxi_min,
    "random": at_random,
}
DEFAULT = "k-medoids"


def choose(points: Points, count: int, method=DEFAULT, seed=0) -> np.ndarray:
    """Numbers (count,) of different points, int64. ValueError for another method or a count outside of 1..N."""
    if method not in METHODS:
        raise ValueError(f"{method!r} is none of {', '.join(METHODS)}")
    if not 1 <= count <= len(points):
        raise ValueError(f"{count} of {len(points)} points")
    return METHODS[method](points, count, seed).astype(np.int64)


def quality(points: Points, chosen_K) -> dict[str, float]:
    """How well the chosen ones stand for all: distances in the points' own unit.

    max_radius: the farthest that a picture is from the nearest chosen one (mini-max makes it small); min_gap: between
    two chosen ones (maxi-min makes it large; 0.0 for a single one); sum: of all distances to the nearest chosen one
    (k-medoids makes it small); mean: that sum over all pictures.
    """
    _, distance = points.nearest(chosen_K)
    gap = smallest_gap(points, chosen_K) if len(chosen_K) > 1 else 0.0
    return {
        "max_radius": float(distance.max()),
        "min_gap": gap,
        "sum": float(distance.sum()),
        "mean": float(distance.mean()),
    }
