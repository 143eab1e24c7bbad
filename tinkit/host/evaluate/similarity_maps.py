"""How alike two networks' similarity maps are: cosine of one position's local features to those of every other position.

Both networks are brought to a common grid first, the coarser one, so that nothing is invented. Legend: N pictures, L
positions, P points, H W height and width of the grid, D width of the features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from tinkit.errors import TinkitError
from tinkit.host.features import resample_grid

CHUNK = 16  # pictures at once: their positions x positions cosines are in memory
FEWEST_POSITIONS = 4  # below it a map has too few other positions to be compared
FLAT = 1e-4  # a map whose cosines spread (standard deviation) less than this shows nothing
MOST_DIFFERENT = 0.1  # share of the positions that count as the most different ones
Grid = tuple[int, int]


@dataclass(frozen=True)
class SimilarityMaps:
    """Maps of N pictures on a common grid (height, width) of L positions, P points each.

    points_NP: flat positions (row * width + column). teacher_NPHW, student_NPHW: cosine of the point to every position,
    itself included (1). correlation_NL: Pearson correlation of the two maps of each position over all other positions;
    NaN where the teacher's map is flat, 0 where only the student's is. shifted_NL: the same with the student's maps of the
    next picture (what position alone gives); empty (0, L) for one picture.
    """

    grid: Grid
    points_NP: np.ndarray
    teacher_NPHW: np.ndarray
    student_NPHW: np.ndarray
    correlation_NL: np.ndarray
    shifted_NL: np.ndarray


def similarity_maps(
    teacher_local, grid_t: Grid, student_local, grid_s: Grid, points: Sequence[int] | None = None
) -> SimilarityMaps:
    """Compare local features (N, Lt, Dt) on grid_t (height, width) with (N, Ls, Ds) on grid_s; they may be memory maps.

    The common grid is the coarser of the two each way, reached by area averages of the features. points: flat positions
    on it, the same for every picture; by default two, the centre and, among the tenth of the other positions with the
    lowest correlation, the one nearest to the centre. ValueError for arrays that do not fit their grids or each other
    and for a common grid of fewer than 4 positions; TinkitError for features that are not finite.
    """
    _check(teacher_local, grid_t, student_local, grid_s)
    grid = common_grid(grid_t, grid_s)
    positions = grid[0] * grid[1]
    if positions < FEWEST_POSITIONS:
        raise ValueError(f"maps of {grid[0]} x {grid[1]} positions cannot be compared")
    chosen, teachers, students, correlations, shifted = [], [], [], [], []
    for part in _chunks(len(teacher_local)):
        teacher = _cosines(teacher_local[part], grid_t, grid, "teacher")
        student = _cosines(student_local[part], grid_s, grid, "student")
        correlation = correlation_of_maps(teacher, student)
        here = np.stack([_two_points(row, grid) if points is None else np.asarray(points) for row in correlation])
        chosen.append(here)
        each = np.arange(len(here))[:, None]
        teachers.append(teacher[each, here])
        students.append(student[each, here])
        correlations.append(correlation)
        if len(teacher_local) > 1:
            following = (np.arange(part.start, part.stop) + 1) % len(student_local)
            others = np.concatenate([student_local[n : n + 1] for n in following])
            shifted.append(correlation_of_maps(teacher, _cosines(others, grid_s, grid, "student")))
    points_NP = np.concatenate(chosen)
    shape = (*points_NP.shape, *grid)
    return SimilarityMaps(
        grid,
        points_NP,
        np.concatenate(teachers).reshape(shape),
        np.concatenate(students).reshape(shape),
        np.concatenate(correlations),
        np.concatenate(shifted) if shifted else np.empty((0, positions)),
    )


def correlation_of_maps(teacher_NLL: np.ndarray, student_NLL: np.ndarray) -> np.ndarray:
    """(N, L): Pearson correlation of row l of both, without the position itself (whose cosine is 1 in any network).

    NaN where the teacher's map is flat: there is nothing to follow. 0 where the student's is and the teacher's is not.
    """
    positions = teacher_NLL.shape[1]
    others = ~np.eye(positions, dtype=bool)
    teacher, student = (_centred(array, others) for array in (teacher_NLL, student_NLL))
    spreads = [np.sqrt((array**2).sum(2) / (positions - 1)) for array in (teacher, student)]
    covariance = (teacher * student).sum(2) / (positions - 1)
    shown = (spreads[0] > FLAT) & (spreads[1] > FLAT)
    found = np.divide(covariance, spreads[0] * spreads[1], out=np.zeros_like(covariance), where=shown)
    return np.where(spreads[0] > FLAT, np.clip(found, -1, 1), np.nan)


def common_grid(grid_t: Grid, grid_s: Grid) -> Grid:
    """The coarser of two grids, each way."""
    return min(grid_t[0], grid_s[0]), min(grid_t[1], grid_s[1])


def _check(teacher_local, grid_t, student_local, grid_s):
    for whose, rows, grid in (("teacher", teacher_local, grid_t), ("student", student_local, grid_s)):
        if len(rows.shape) != 3 or rows.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{whose} local features {tuple(rows.shape)} are not (N, L, D) on the grid {tuple(grid)}")
    if len(teacher_local) != len(student_local) or not len(teacher_local):
        raise ValueError(f"{len(teacher_local)} pictures of the teacher, {len(student_local)} of the student")


def _chunks(count) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def _cosines(local_NLD, grid, wanted, whose) -> np.ndarray:
    """(N, L', L') float32 cosines of all positions of each picture on the wanted grid."""
    local = torch.from_numpy(np.array(local_NLD, np.float32))  # a copy: a memory map may not be written to
    if not torch.isfinite(local).all():
        raise TinkitError(f"The {whose}'s local features are not finite.", seen="NaN or infinite values")
    unit = normalize(resample_grid(local, grid, wanted), dim=-1)
    return (unit @ unit.transpose(1, 2)).numpy()


def _centred(array_NLL, others_LL):
    """float64, each row less its mean over the other positions, 0 at the position itself."""
    rows = np.where(others_LL, array_NLL, 0.0)
    return np.where(others_LL, rows - rows.sum(2, keepdims=True) / (len(others_LL) - 1), 0.0)


def _two_points(correlation_L, grid):
    """Flat positions of the centre and of the most central among the most different others."""
    rows, columns = np.divmod(np.arange(len(correlation_L)), grid[1])
    distance = (rows - (grid[0] - 1) / 2) ** 2 + (columns - (grid[1] - 1) / 2) ** 2
    centre = (grid[0] // 2) * grid[1] + grid[1] // 2
    others = np.delete(np.arange(len(correlation_L)), centre)
    order = others[np.argsort(np.nan_to_num(correlation_L[others], nan=1.0), kind="stable")]
    different = order[: max(1, round(MOST_DIFFERENT * len(order)))]
    return np.array([centre, min(different, key=lambda position: (distance[position], position))])
