"""Does the student look at a picture as its teacher does? Similarity maps of local features, and how far they agree.

The map of a position says how similar every other position is to it (cosine): on a dog's ear it shows the dog. The student
has learned where things are when its maps follow the teacher's; the mean correlation of the two over all positions is the
number, the maps are for the eye. Masks, where a user has them, are asked in tinkit.host.evaluate.segmentation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinkit.host.evaluate.masks import Masks
from tinkit.host.evaluate.measure import Measure
from tinkit.host.evaluate.resampling import interval_of_mean
from tinkit.host.evaluate.segmentation import segmentation
from tinkit.host.evaluate.segmentation import titles as segmentation_titles
from tinkit.host.evaluate.similarity_maps import FEWEST_POSITIONS, Grid, common_grid, similarity_maps

GROUP = "dense"
CENTRE, DIFFERENT = "the centre", "the most central of the tenth that differs most"


def dense(
    teacher_local,
    grid_t: Grid,
    student_local,
    grid_s: Grid,
    names: Sequence[str],
    masks: Masks | None = None,
    maps: int = 6,
    seed: int = 0,
) -> dict:
    """The block: map correlation with its interval, `maps` pictures for the page, segmentation where there are masks.

    Arrays as in `similarity_maps`, `names` one a picture; masks.index counts in these pictures. The pictures shown are the
    half with the lowest correlation first, the others evenly spread over the rest up to the best. A map is rows of
    0..255 over "low".."high", cosines common to both networks at this point, so that colours can be compared.
    """
    if len(names) != len(teacher_local):
        raise ValueError(f"{len(names)} names for {len(teacher_local)} pictures")
    grid = common_grid(grid_t, grid_s)
    block: dict[str, Any] = {
        "pictures": len(names),
        "grid": list(grid),
        "teacher_grid": list(grid_t),
        "student_grid": list(grid_s),
        "map_correlation": None,
        "maps": [],
        "segmentation": None,
        "notes": [],
        "conditions": {
            "map": "cosine of a position's local features to those of every other position, as the networks give them",
            "correlation": "Pearson over the other positions, mean over positions, then over pictures",
            "resampling": "area average to the coarser grid",
            "seed": seed,
        },
    }
    if grid[0] * grid[1] < FEWEST_POSITIONS:
        block["notes"].append(f"no similarity maps: the common grid has {grid[0]} x {grid[1]} positions")
    else:
        found = similarity_maps(teacher_local, grid_t, student_local, grid_s)
        each_N = _mean_of_rows(found.correlation_NL)
        block["map_correlation"] = _summary(found, each_N, seed)
        block["maps"] = [_shown(found, n, why, names[n], each_N[n]) for n, why in _worth_seeing(each_N, maps)]
        flat = int(np.isnan(each_N).sum())
        if flat:
            block["notes"].append(f"{flat} pictures left out: the teacher's maps of them are flat")
    if masks is not None:
        block["segmentation"] = segmentation(
            _Taken(teacher_local, masks.index_N),
            _Taken(student_local, masks.index_N),
            masks.masks_NHW,
            masks.classes,
            grid_t,
            grid_s,
            masks.contents,
            seed,
        )
    return block


def measures(block: dict) -> list[Measure]:
    """map_correlation, miou, kmeans_miou: those that the block has."""
    found = []
    summary = block["map_correlation"]
    if summary is not None:
        found.append(
            Measure(
                "map_correlation",
                GROUP,
                "Similarity maps",
                summary["mean"],
                interval=tuple(summary["interval"]),
                what="mean correlation of the two networks' similarity maps over all positions; 1 is equal",
            )
        )
    for name, kind, title, what in segmentation_titles() if block["segmentation"] else ():
        scores = block["segmentation"][kind]
        found.append(
            Measure(
                name,
                GROUP,
                title,
                scores["student"]["miou"],
                scores["teacher"]["miou"],
                interval=tuple(scores["student"]["miou_interval"]),
                change=tuple(scores["change"]["miou"]),
                what=what,
            )
        )
    return found


class _Taken:
    """Some rows of a memory map, copied only when they are asked for."""

    def __init__(self, rows, index_N):
        self.rows, self.index_N = rows, np.asarray(index_N)
        self.shape = (len(self.index_N), *rows.shape[1:])

    def __len__(self):
        return len(self.index_N)

    def __getitem__(self, item):
        return self.rows[self.index_N[item]]


def _mean_of_rows(values_NL):
    """Mean of what is not NaN in each row; NaN for a row without any."""
    counts = np.isfinite(values_NL).sum(1)
    return np.divide(np.nansum(values_NL, 1), counts, out=np.full(len(values_NL), np.nan), where=counts > 0)


def _summary(found, each_N, seed):
    """Mean, p1 and min over pictures, interval of the mean; None when no picture of the teacher's has a map."""
    known = each_N[np.isfinite(each_N)]
    if not len(known):
        return None
    shifted = _mean_of_rows(found.shifted_NL)
    shifted = shifted[np.isfinite(shifted)]
    return {
        "mean": float(known.mean()),
        "p1": float(np.percentile(known, 1)),
        "min": float(known.min()),
        "interval": list(interval_of_mean(known, seed=seed)),
        "pictures": len(known),
        "other_picture": float(shifted.mean()) if len(shifted) else None,
    }


def _worth_seeing(each_N, count):
    """[(picture, why)]: half of them the lowest, the rest evenly up to the best."""
    order = [int(n) for n in np.argsort(each_N) if np.isfinite(each_N[n])]
    lowest = order[: (min(count, len(order)) + 1) // 2]
    rest = order[len(lowest) :]
    places = np.linspace(0, len(rest), min(count, len(order)) - len(lowest) + 1)[1:]
    return [(n, "lowest") for n in lowest] + [(rest[round(place) - 1], "sample") for place in places]


def _shown(found, number, why, name, correlation):
    """One picture of the block."""
    points = []
    for place, reason in enumerate((CENTRE, DIFFERENT)):
        flat = int(found.points_NP[number, place])
        both = np.stack([found.teacher_NPHW[number, place], found.student_NPHW[number, place]])
        others = np.delete(both.reshape(2, -1), flat, axis=1)
        low, high = float(others.min()), float(others.max())
        shares = np.clip((both - low) / max(high - low, 1e-6), 0, 1)
        teacher, student = np.round(shares * 255).astype(int).tolist()
        here = float(found.correlation_NL[number, flat])
        points.append(
            {
                "row": flat // found.grid[1],
                "column": flat % found.grid[1],
                "why": reason,
                "correlation": here if np.isfinite(here) else None,
                "low": low,
                "high": high,
                "teacher": teacher,
                "student": student,
            }
        )
    return {"name": name, "index": number, "why": why, "correlation": float(correlation), "points": points}
