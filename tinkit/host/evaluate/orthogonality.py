"""How far the mapping is from one that keeps angles: by its matrix, and on the pictures.

A mapping x -> W x + b keeps the angles within what it sees when its singular values are equal. The matrix is that of the
global head, a LayerNorm's scale multiplied in and its removal of each row's mean too; its division by each row's own
standard deviation is one positive factor a picture, which turns nothing and is left out. The distance is tinkit's own
measure (notes on arXiv 2411.15239). What the matrix cannot say (the bias, the centring, directions thrown away) the pictures
say: variance kept, change of pairwise cosines.
"""

import numpy as np
import torch
from torch import nn

from tinkit.host.evaluate import pairs
from tinkit.host.evaluate.measure import LOWER, Measure
from tinkit.host.evaluate.resampling import halves
from tinkit.host.features import Features
from tinkit.host.mapping import FITTED, GLOBAL, Mapping

SAMPLED = 2000  # pictures for the change of cosines
LISTED = 256  # stretches in the block
CHUNK = 4096
NONE = 1e-6  # of the largest singular value: below it a direction is not seen by the mapping


def orthogonality(mapping: Mapping, rows_ND, seed=0) -> dict:
    """The block "orthogonality", plain data; rows_ND (N, Dt) of the teacher's own space, may be a memory map.

    distance: |W W^T / mean - I|, Frobenius, over the directions that can be independent (the student's width, or what the
    teacher has when that is less); `mean` makes the mean square stretch 1. distance_rms: the same by direction, 0 for a
    mapping that keeps angles. stretch: singular values over their mean. variance_kept: share of the variance of the rows
    (normalised ones, behind a LayerNorm) within the directions that the mapping sees. cosine_change: mean over pairs of
    |cosine mapped - cosine of the teacher|, a sample of at most 2,000 pictures; cosine_change_centred: against the teacher
    with its mean picture removed, which shows what a centring mapping does beyond centring.
    ValueError for fewer than four rows or another width.
    """
    if len(rows_ND) < 4 or np.shape(rows_ND)[1] != mapping.spec.teacher_dim:
        raise ValueError(f"rows {np.shape(rows_ND)} for a mapping from {mapping.spec.teacher_dim} wide")
    matrix_dD, normalise = linear_part(mapping)
    _, values, directions_kD = np.linalg.svd(matrix_dD, full_matrices=False)
    can_be = min(matrix_dD.shape[0], matrix_dD.shape[1] - (normalise is not None))
    values = values[:can_be]
    seen_kD = directions_kD[:can_be][values > NONE * values[0]]
    distance = float(np.sqrt((((values**2) / max((values**2).mean(), 1e-30) - 1) ** 2).sum()))
    stretch = values / max(values.mean(), 1e-30)
    return {
        "kind": mapping.spec.kind,
        "fitted": mapping.spec.kind == FITTED,
        "teacher_dim": mapping.spec.teacher_dim,
        "dim": mapping.spec.dim,
        "directions": int(can_be),
        "seen": len(seen_kD),
        "distance": distance,
        "distance_rms": distance / can_be**0.5,
        "stretch": {
            "median": float(np.median(stretch)),
            "min": float(stretch.min()),
            "max": float(stretch.max()),
            "values": [float(value) for value in _at_most(stretch, LISTED)],
        },
        "variance_kept": _variance_kept(rows_ND, seen_kD, normalise),
        **_changes(mapping, rows_ND, seed),
    }


def measures(block) -> list[Measure]:
    """Of the mapping, not of the network: the same for every hop."""
    change = block["cosine_change"]
    return [
        Measure(
            "mapping_distance",
            "similarity",
            "Mapping's distance from keeping angles",
            block["distance_rms"],
            better=LOWER,
            what="|W W^T / mean - I| by direction; 0 when all directions are stretched alike",
        ),
        Measure(
            "mapping_variance",
            "similarity",
            "Teacher's variance that the mapping sees",
            block["variance_kept"],
            what="share of the variance of the teacher's rows",
        ),
        Measure(
            "mapping_cosine_difference",
            "similarity",
            "Angles off by the mapping",
            change["value"],
            better=LOWER,
            interval=tuple(change["interval"]),
            what="mean over pairs of |difference of cosines| of teacher and mapped teacher",
        ),
    ]


def linear_part(mapping: Mapping) -> tuple[np.ndarray, nn.LayerNorm | None]:
    """W (Ds, Dt) in float64 of the global head, and the LayerNorm before it, whose scale and centring are in W."""
    head = mapping.head[GLOBAL]
    norm = next((part for part in head.modules() if isinstance(part, nn.LayerNorm)), None)
    linear = next((part for part in head.modules() if isinstance(part, nn.Linear)), None)
    basis = getattr(head, "basis", None)
    weight = basis.T if linear is None and isinstance(basis, torch.Tensor) else linear.weight if linear else None
    if weight is None:
        raise ValueError(f"a mapping of {type(head).__name__} has no one matrix")
    matrix = weight.detach().double().cpu().numpy()
    if norm is not None:
        matrix = matrix * norm.weight.detach().double().cpu().numpy()
        matrix = matrix - matrix.mean(axis=1, keepdims=True)  # behind it each row has mean 0
    return matrix, norm


def _at_most(values, most):
    """The values, evenly thinned to `most` with the ends kept."""
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return values[places]


def _variance_kept(rows_ND, seen_kD, norm):
    """tr(V C V^T) / tr C, C the covariance of what the linear part is given; 1 where nothing varies."""
    parts = [slice(start, start + CHUNK) for start in range(0, len(rows_ND), CHUNK)]
    mean_D = sum(_given(rows_ND[part], norm).sum(axis=0) for part in parts) / len(rows_ND)
    kept = whole = 0.0
    for part in parts:
        rows = _given(rows_ND[part], norm) - mean_D
        kept += float(((rows @ seen_kD.T) ** 2).sum())
        whole += float((rows**2).sum())
    return min(kept / whole, 1.0) if whole > 0 else 1.0


def _given(rows_ND, norm):
    rows = np.asarray(rows_ND, np.float64)
    if norm is None:
        return rows
    return (rows - rows.mean(axis=1, keepdims=True)) / np.sqrt(rows.var(axis=1, keepdims=True) + norm.eps)


@torch.no_grad()
def _changes(mapping, rows_ND, seed):
    picked = pairs.sample(len(rows_ND), SAMPLED, seed)
    rows = np.array(rows_ND[picked], np.float32)
    mapped = mapping(Features(torch.from_numpy(rows).to(mapping.mean.device))).float().cpu().numpy()
    half, mapped_MM = halves(len(picked), seed=seed), pairs.pair_cosines(mapped)
    return {
        "cosine_change": pairs.difference(mapped_MM, pairs.pair_cosines(rows), half),
        "cosine_change_centred": pairs.difference(mapped_MM, pairs.pair_cosines(rows - rows.mean(axis=0)), half),
        "pair_pictures": len(picked),
    }
