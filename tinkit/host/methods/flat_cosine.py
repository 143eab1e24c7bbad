"""TinTeM's feature term without growing the student's map to the teacher's grid, and without mapping all of the teacher.

The student's positions s (l, d) come to the teacher's grid by a fixed matrix U (L, l), area mean or bilinear, so
    <U s, t> = <s, U^T t>     |U s|^2 = <s, U^T U s>     and of t = x W - 1 m:     U^T t = (U^T x) W - (U^T 1) m
The same numbers as the plain form up to rounding. With a frozen W, a store and l < L only l positions of the teacher are
mapped in a step; what is left of the others is |t|^2, one number a view: worked out where the view is met first, then
kept. On a GPU all are mapped: there the product costs less than the look-up.
Legend: B pictures, L teacher positions, l student positions, D teacher width, d student width.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn import functional as F

from tinkit.host.features import resample_grid

TINY = 1e-8  # floor of a length, as in torch's cosine_similarity


@lru_cache(maxsize=8)
def resampling_matrix(grid: tuple[int, int], wanted: tuple[int, int], dtype, device) -> torch.Tensor:
    """`resample_grid` as a matrix (L, l) from the positions of `grid` to those of `wanted`."""
    with torch.inference_mode(False), torch.no_grad():
        places = torch.eye(grid[0] * grid[1], dtype=torch.float64)[None]
        return resample_grid(places, tuple(grid), tuple(wanted))[0].to(device, dtype)


def flat_cosine(ours_BD, local_Bld, theirs_BD, pooled_Bld, norms_B, U_Ll=None) -> torch.Tensor:
    """Cosine (B) of [ours; U local] with [theirs; t], each as one vector of (1 + L) * d numbers.

    pooled_Bld is U^T t, norms_B is |t|^2 (B); U_Ll None stands for the identity: both on one grid.
    """
    dot_B = (ours_BD * theirs_BD).sum(1) + (local_Bld * pooled_Bld).sum((1, 2))
    spread_Bld = local_Bld if U_Ll is None else torch.matmul(U_Ll.mT @ U_Ll, local_Bld)
    ours_B = ours_BD.square().sum(1) + (local_Bld * spread_Bld).sum((1, 2))
    theirs_B = theirs_BD.square().sum(1) + norms_B
    return dot_B / (ours_B.clamp_min(TINY**2) * theirs_B.clamp_min(TINY**2)).sqrt()


def pooled_target(teacher_BLD, matrix: Callable, offset_D, U_Ll) -> torch.Tensor:
    """U^T (matrix(x) - 1 offset), (B, l, d), by mapping l positions; `matrix` must be linear, without a constant."""
    mapped_Bld = matrix(torch.matmul(U_Ll.mT, teacher_BLD))
    return mapped_Bld if offset_D is None else mapped_Bld - U_Ll.sum(0)[:, None] * offset_D


class SquaredNorms:
    """|t|^2 of each view of the store, kept in memory: 4 bytes a view. Not part of a checkpoint: it is worked out again.

    A picture at a time, so that a number does not depend on the batch that it was met in.
    """

    def __init__(self):
        self.kept_N = torch.empty(0)  # by row of the store; NaN: not met yet

    def of(self, teacher_BLD, target: Callable, row_B) -> torch.Tensor:
        """(B) of the targets (L, d) of these pictures; row_B: their rows in the store."""
        missing = int(row_B.max()) + 1 - len(self.kept_N)
        if missing > 0:
            more = max(missing, len(self.kept_N) // 2)
            self.kept_N = F.pad(self.kept_N.to(teacher_BLD.dtype), (0, more), value=torch.nan)
        norms_B = self.kept_N[row_B]
        for number in norms_B.isnan().nonzero()[:, 0].tolist():
            norms_B[number] = target(teacher_BLD[number]).square().sum()
        self.kept_N[row_B] = norms_B
        return norms_B
