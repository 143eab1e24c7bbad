"""Choosing for coverage: the picture that is farthest from every chosen one should be near, or the chosen ones far apart.

k-centre greedy (Gonzalez 1985: at most twice the best possible radius), and two ways of improving on it from Cold PAWS
(Mannix and Bondell 2023, arXiv 2305.10071): mini-max, which lowers the largest distance to a chosen picture ("finetune" in its
code), and maxi-min, which raises the smallest distance between two chosen ones ("repulsive"). Both use one distance
throughout; that code takes the euclidean one inside mini-max even where cosine is asked for.
"""

import numpy as np

from tinkit.host.select.points import Points, members

ROUNDS = 100


def k_centre(points: Points, count: int, seed: int) -> np.ndarray:
    """`count` different points (int64): one drawn, then always the one that is farthest from all before."""
    return _filled(points, [int(np.random.default_rng(seed).integers(len(points)))], count)


def _filled(points: Points, centres, count) -> np.ndarray:
    """`centres` and more, up to `count`."""
    chosen = [int(centre) for centre in centres]
    distance = points.nearest(np.array(chosen))[1]
    distance[chosen] = -1
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, points.to_one(chosen[-1]))
        distance[chosen[-1]] = -1
    return np.array(chosen)


def mini_max(points: Points, count: int, seed: int) -> np.ndarray:
    """k-centre greedy, then rounds of moving each centre to the middle of the smallest ball around its cluster.

    When the radius stands still, centres whose pictures are all within it of the other centres are taken out, new ones
    are put in greedily, and the rounds begin again. The radius is never larger than the greedy one's.
    """
    centres, radius = _balls(points, k_centre(points, count, seed))
    for _ in range(ROUNDS):
        needed = _without_idle(points, centres, radius)
        if len(needed) == count:
            break
        moved, smaller = _balls(points, _filled(points, needed, count))
        if not smaller < radius:
            break
        centres, radius = moved, smaller
    return centres


def _balls(points, centres):
    """(centres, radius) after rounds of 1-centres; the best seen."""
    owner, distance = points.nearest(centres)
    radius = distance.max()
    for _ in range(ROUNDS):
        owner[centres] = np.arange(len(centres))  # so that no picture is the middle of two clusters
        moved = np.array([_ball(points, *pair) for pair in zip(members(owner, len(centres)), centres)])
        owner, distance = points.nearest(moved)
        if not distance.max() < radius:
            break
        centres, radius = moved, distance.max()
    return centres, radius


def _ball(points, cluster, centre):
    """The point of a cluster whose farthest fellow is nearest; the present one when it is as good."""
    if not len(cluster):
        return centre
    farthest = np.concatenate([block.max(1) for block in points.blocks(cluster, cluster)])
    present = np.flatnonzero(cluster == centre)
    best = farthest.argmin()
    return centre if len(present) and farthest[present[0]] <= farthest[best] else cluster[best]


def _without_idle(points, centres, radius):
    """The centres that are left when, one after the other, those that no picture needs are taken out; one at least."""
    kept = list(centres)
    owner, _ = points.nearest(centres)
    for cluster, centre in zip(members(owner, len(centres)), centres):
        others = [other for other in kept if other != centre]
        if others and all((block.min(1) <= radius).all() for block in points.blocks(cluster, others)):
            kept = others
    return np.array(kept)


def maxi_min(points: Points, count: int, seed: int) -> np.ndarray:
    """k-centre greedy, then rounds in which each centre goes to the member of its cluster that is farthest from all others.

    The smallest distance between two of them is never smaller than the greedy one's.
    """
    centres = k_centre(points, count, seed)
    if count == 1:
        return centres
    for _ in range(ROUNDS):
        moved = centres.copy()
        owner, _ = points.nearest(centres)
        for number, cluster in enumerate(members(owner, count)):
            others = np.delete(moved, number)
            candidates = np.append(cluster, moved[number])
            candidates = candidates[~np.isin(candidates, others)]
            apart = np.concatenate([block.min(1) for block in points.blocks(candidates, others)])
            if apart.max() > apart[-1]:  # the last is where it stands
                moved[number] = candidates[apart.argmax()]
        if not smallest_gap(points, moved) > smallest_gap(points, centres):
            return centres
        centres = moved
    return centres


def smallest_gap(points: Points, centres) -> float:
    """The smallest distance between two of the centres; infinite for a single one."""
    start, found = 0, np.inf
    for block in points.blocks(centres, centres):
        block[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
        start += len(block)
        found = min(found, float(block.min()))
    return found
