"""Do local features know what is where? A linear probe and k-means on patches, teacher beside student, where masks are given.

Features stay frozen (as in DINOv2 and CosPress): a patch is labelled by the majority of its pixels, scores are blown up to
the mask's size (bilinear) and judged pixel by pixel on pictures held out from the fit, so that both networks sit one exam
whatever their grids. Small masks of few pictures: a check that finds a loss, not a benchmark's number.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch.nn.functional import interpolate

from tinkit.errors import TinkitError
from tinkit.host.evaluate.iou import judged
from tinkit.host.evaluate.masks import IGNORE
from tinkit.host.evaluate.neighbours import unit_rows
from tinkit.host.evaluate.probe import fit_probe

FEWEST = 5  # pictures with masks
TRAIN, VALIDATION = 0.5, 0.2  # shares of the pictures; the rest is the test
PATCHES = 10_000  # at most, to fit on; half as many to validate on
NEVER = -4.0  # below every score of a cluster, which are -3 at least
LINEAR, KMEANS = "linear", "kmeans"


def titles() -> tuple[tuple[str, str, str, str], ...]:
    """(name of the measure, key of the block, title, what it says)."""
    rule = "mean over the classes of the held-out pictures of intersection over union, pixels of all pictures together"
    return (
        ("miou", LINEAR, "segmentation, linear probe", f"{rule}; linear probe on patch features"),
        ("kmeans_miou", KMEANS, "segmentation, k-means", f"{rule}; k-means on patch features, one cluster a class"),
    )


def segmentation(
    teacher_local,
    student_local,
    masks_NHW: np.ndarray,
    classes: Sequence[str],
    grid_t: tuple[int, int] | None = None,
    grid_s: tuple[int, int] | None = None,
    contents: Sequence[str] | None = None,
    seed: int = 0,
) -> dict:
    """The block of local features (N, L, D) of both networks against masks (N, H, W) of 0..len(classes)-1 or 255.

    255 is not judged: neither fitted on nor counted. grid: (height, width), a square where it is left out. contents: a
    hash a picture; equal ones stay together when `seed` draws 50 % to train, 20 % to validate and the rest to test. Both
    networks have {"miou", "miou_interval", "accuracy", "accuracy_interval"} with intervals over the test pictures; the
    mean IoU is over the classes that these have. k-means has a cluster for each class of the training patches on rows of
    length 1, and clusters are given to classes on those patches (Hungarian method). TinkitError for fewer than 5
    pictures, training pictures of one class, test pictures without a pixel to judge, and features that are not finite.
    """
    grids = {"teacher": _grid(teacher_local, grid_t), "student": _grid(student_local, grid_s)}
    rows = {"teacher": teacher_local, "student": student_local}
    if not len(teacher_local) == len(student_local) == len(masks_NHW):
        raise ValueError(f"{len(teacher_local)}, {len(student_local)} pictures and {len(masks_NHW)} masks")
    parts = _drawn_parts(np.arange(len(masks_NHW)) if contents is None else np.asarray(contents), seed)
    _require_two_sides(masks_NHW, parts)
    answers: dict[str, dict] = {LINEAR: {}, KMEANS: {}}
    notes: list[str] = []
    for whose in ("teacher", "student"):
        sides = ((parts["train"], PATCHES), (parts["validation"], PATCHES // 2))
        (train, labels), validation = (
            _patches(rows[whose], masks_NHW, grids[whose], pictures, len(classes), most, seed)
            for pictures, most in sides
        )
        if not len(train):
            raise _too_few(0, "classes that fill most of a patch")
        probe = fit_probe(train, labels, validation[0], validation[1], classes, seed)
        clusters, told = _cluster(train, labels, len(classes), seed)
        notes += [f"{whose}: {note}" for note in (*probe.notes, *told)]
        for kind, scores in ((LINEAR, probe.logits), (KMEANS, clusters)):
            answers[kind][whose] = _answers(rows[whose], grids[whose], scores, parts["test"], masks_NHW.shape[1:])
    truth = masks_NHW[parts["test"]]
    found = {kind: judged(given["teacher"], given["student"], truth, classes, seed) for kind, given in answers.items()}
    return {
        "pictures": {name: len(index) for name, index in parts.items()},
        "classes": list(classes),
        **found,
        "notes": notes,
        "conditions": {
            "ignore": IGNORE,
            "patch": "majority of its pixels, 255 among them",
            "patches": PATCHES,
            "upsampling": "bilinear, of scores",
            "seed": seed,
        },
    }


def patch_labels(mask_HW: np.ndarray, grid: tuple[int, int], classes: int) -> np.ndarray:
    """(L,) the label that most pixels of a cell have, the lower of equals; IGNORE where most are not judged.

    A pixel belongs to the cell that its middle is in.
    """
    height, width = mask_HW.shape
    rows = ((np.arange(height) + 0.5) * grid[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * grid[1] / width).astype(int)
    cells = rows[:, None] * grid[1] + columns
    labels = np.where(mask_HW == IGNORE, classes, mask_HW).astype(int)
    votes = np.bincount((cells * (classes + 1) + labels).ravel(), minlength=grid[0] * grid[1] * (classes + 1))
    votes = votes.reshape(-1, classes + 1)
    winner = votes.argmax(1)
    return np.where((winner == classes) | (votes.sum(1) == 0), IGNORE, winner)


def _grid(local, grid):
    if grid is None:
        side = round(local.shape[1] ** 0.5)
        grid = (side, side)
    if grid[0] * grid[1] != local.shape[1]:
        raise ValueError(f"{local.shape[1]} positions are no grid {tuple(grid)}: say which")
    return tuple(grid)


def _drawn_parts(contents_N, seed):
    """Indices of the pictures of each part."""
    distinct = np.unique(contents_N)
    if len(distinct) < FEWEST:
        raise TinkitError(
            "Too few pictures have masks.",
            seen=f"{len(distinct)} different ones, at least {FEWEST} are needed",
            next_step="more masks, or leave --masks out",
        )
    order = np.random.default_rng(seed).permutation(distinct)
    train, validation = round(TRAIN * len(order)), max(1, round(VALIDATION * len(order)))
    cut = np.split(order, [train, train + validation])
    return {name: np.flatnonzero(np.isin(contents_N, one)) for name, one in zip(("train", "validation", "test"), cut)}


def _require_two_sides(masks_NHW, parts):
    learnt = set(np.unique(masks_NHW[parts["train"]])) - {IGNORE}
    if len(learnt) < 2:
        raise _too_few(len(learnt), "classes in the training pictures")
    if (masks_NHW[parts["test"]] == IGNORE).all():
        raise _too_few(0, "pixels to judge on")


def _too_few(count, of_what):
    return TinkitError(
        "The masks are too few to learn from some pictures and to judge on others.",
        seen=f"{count} {of_what}",
        next_step="more masks, or leave --masks out",
    )


def _patches(local, masks_NHW, grid, pictures, classes, most, seed):
    """(rows (n, D) float32, labels (n,) int64): at most `most` labelled patches of these pictures, drawn by `seed`."""
    labels = np.stack([patch_labels(masks_NHW[n], grid, classes) for n in pictures])
    places = np.argwhere(labels != IGNORE)
    if len(places) > most:
        places = places[np.sort(np.random.default_rng(seed).choice(len(places), most, replace=False))]
    rows = np.empty((len(places), local.shape[2]), np.float32)
    for number, picture in enumerate(pictures):
        mine = places[:, 0] == number
        rows[mine] = _rows_of(local, picture)[places[mine, 1]]
    return rows, labels[places[:, 0], places[:, 1]].astype(np.int64)


def _rows_of(local, picture):
    """(L, D) float32 of one picture."""
    rows = np.array(local[int(picture)], np.float32)
    if not np.isfinite(rows).all():
        raise TinkitError("Local features are not finite.", seen="NaN or infinite values")
    return rows


def _cluster(rows_ND, labels_N, classes, seed) -> tuple[Callable, list[str]]:
    """(rows -> scores (n, C), notes): k-means on rows of length 1, a cluster for each class seen, matched by patches.

    The score of a cluster is 2 x.c - |c|^2, which is highest for the nearest centre.
    """
    seen = np.unique(labels_N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in the notes
        model = KMeans(len(seen), n_init=4, random_state=seed).fit(unit_rows(rows_ND))
    together = np.array([[((model.labels_ == k) & (labels_N == c)).sum() for c in seen] for k in range(len(seen))])
    _, matched = linear_sum_assignment(together, maximize=True)
    centres, owner = model.cluster_centers_, seen[matched]
    used = len(np.unique(model.labels_))
    notes = [f"k-means found {used} clusters, {len(seen)} were asked for"] if used < len(seen) else []

    def scores(rows):
        found = np.full((len(rows), classes), NEVER, np.float32)
        found[:, owner] = 2 * unit_rows(rows) @ centres.T - (centres**2).sum(1)
        return found

    return scores, notes


def _answers(local, grid, scores, pictures, shape):
    """(n, H, W) the class of each pixel: the highest of the scores, which are blown up to the mask's size."""
    found = np.empty((len(pictures), *shape), np.uint8)
    for number, picture in enumerate(pictures):
        given = torch.from_numpy(scores(_rows_of(local, picture)))
        map_1CHW = given.T.reshape(1, given.shape[1], *grid)
        found[number] = interpolate(map_1CHW, size=shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    return found
