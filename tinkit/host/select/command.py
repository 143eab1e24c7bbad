"""`tinkit select`: from a folder of pictures without labels to the few that are worth labelling first (Cold PAWS).

The road: scan, leave exact copies out, features of a teacher or student (kept in the store), a map of them by t-SNE (kept
too), the choice, and a folder with a table, links and a contact sheet. Method and protocol: Mannix and Bondell 2023,
arXiv 2305.10071.
"""

import functools
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinkit.errors import Interrupted, TinkitError
from tinkit.host.images import Picture, Pictures, require_images, scan
from tinkit.host.interruption import StopSignal
from tinkit.host.labels import Labels, read_labels, require_labels
from tinkit.host.progress import Progress
from tinkit.host.select import choose as choosing
from tinkit.host.select import gather, manifold, sheet
from tinkit.host.select.folder import folder_for, link_name, write_selection
from tinkit.host.select.points import COSINE, EUCLIDEAN, METRICS, Points, points_of
from tinkit.host.select.result import Chosen, Selection
from tinkit.host.store import FeatureStore
from tinkit.strict import nearest

MAP, FEATURES, NONE = "t-sne", "features", "none"
SPACES = (MAP, FEATURES)
AS_CHOSEN = ("k-centre", "random")  # these choose one after the other; the rest are put in order by what they stand for


def select(
    images,
    budget: int,
    teacher=None,
    run=None,
    out=None,
    method=choosing.DEFAULT,
    space=MAP,
    metric=COSINE,
    perplexity=manifold.PERPLEXITY,
    labels=None,
    seed=0,
    teacher_weights=None,
    teacher_size=None,
    store=None,
    workers=None,
    strict=False,
    quiet=False,
) -> Selection:
    """Choose `budget` pictures of `images` (a folder or another source) to label first; returns what is written to `out`.

    teacher: a name for `load_teacher` (default efficientnet-lite2); run: a run's folder, for its student's features instead.
    method: k-medoids, k-centre, mini-max, maxi-min or random; space: "t-sne" (distances on a map) or "features"; metric:
    cosine or euclidean, of the map's making or of the features. labels: "folders" or a CSV, only to count classes: they
    change nothing about the choice. out: a new folder (default runs/selection-TIME).

    Raises TinkitError for what a user can mend, Interrupted after Ctrl-C (features and map so far are kept).
    """
    began = time.monotonic()
    _check(budget, method, space, metric, perplexity, seed)
    root = require_images(images)
    out = folder_for(out, root)
    if labels is not None:
        require_labels(labels)
    store = os.fspath(store or os.path.join(os.path.dirname(out), ".stores"))
    used = NONE if method == "random" else space
    with Progress(quiet) as progress:
        try:
            with StopSignal() as stop:
                network = gather.network_of(teacher, run, teacher_weights, teacher_size)
                found = _look(root, budget, labels, strict, network, store, workers, progress, stop)
            seen = time.monotonic()
            map_N2: np.ndarray | None
            if used == MAP:
                progress.say(f"t-SNE of {len(found.unique)} pictures: slow the first time, then kept")
                made = {"seed": seed, "metric": metric, "perplexity": perplexity}
                map_N2 = manifold.kept_map(found.store.path, found.rows_ND, **made)
            else:
                map_N2 = manifold.flat(found.rows_ND, seed)
        except (InterruptedError, KeyboardInterrupt):
            raise Interrupted(
                "Stopped; the features so far are kept.", where=store, next_step="the same command goes on from there"
            ) from None
        seconds = {"features": seen - began, "map": time.monotonic() - seen}
        of = {**network.identity, "run": None if run is None else os.path.abspath(os.fspath(run))}
        given = {"path": out, "root": root, "features_of": of, "method": method, "space": used, "metric": metric}
        notes = _notes(found, used, map_N2, perplexity)
        selection, owner = _choose(found, map_N2, budget, notes=notes, seconds=seconds, seed=seed, **given)
        seconds["total"] = time.monotonic() - began
        write_selection(selection, sheet.render(selection, map_N2, owner))
        progress.say(f"{budget} pictures in {out}")
    return selection


def _choose(found: "Found", map_N2, budget, *, method, space, metric, seed, **given) -> tuple[Selection, np.ndarray]:
    """(the selection, which chosen one is nearest to each picture (N,)); nothing is written."""
    by_space = {"features": points_of(found.rows_ND, metric)}
    if space == MAP:
        by_space["map"] = points_of(map_N2, EUCLIDEAN)
    points = by_space["map" if space == MAP else "features"]
    chosen, owner = _ranked(points, choosing.choose(points, budget, method, seed), method)
    selection = Selection(
        chosen=_chosen(found, chosen, owner, map_N2),
        pictures=len(found.pictures.usable),
        copies=len(found.pictures.usable) - len(found.unique),
        alike=found.alike,
        skipped=len(found.pictures.skipped),
        method=method,
        space=space,
        metric=metric,
        seed=seed,
        quality={name: choosing.quality(of, chosen) for name, of in by_space.items()},
        classes=_classes(found, chosen),
        **given,
    )
    return selection, owner


@dataclass(frozen=True)
class Found:
    """What there is to choose from: all pictures, those without copies, their labels if any, their features (N, D)."""

    pictures: Pictures
    unique: Sequence[Picture]
    labels: Labels | None
    store: FeatureStore

    @functools.cached_property
    def alike(self) -> int:
        """Pictures of other bytes with exactly the features of an earlier one."""
        return gather.alike(self.rows_ND)

    @property
    def rows_ND(self) -> np.ndarray:
        return self.store.global_rows()

    def label(self, index) -> str:
        """The class of one of the unique pictures; "" where it is not known."""
        name = self.unique[index].name
        known = self.labels is not None and name in self.labels.by_name
        return self.labels.classes[self.labels.by_name[name]] if known and self.labels else ""


def _look(root, budget, labels, strict, network, store, workers, progress, stop) -> Found:
    pictures = scan(root, strict, progress.counter("reading"), stop)
    known = None if labels is None else read_labels(labels, pictures.usable, root)
    unique = gather.without_copies(pictures.usable)
    if budget > len(unique):
        raise TinkitError(
            "There are fewer pictures than are to be chosen.",
            where=root,
            seen=f"{len(unique)} different pictures, --budget {budget}",
            next_step=f"--budget {len(unique)} or less",
        )
    progress.say(
        f"{len(unique)} pictures, {len(pictures.usable) - len(unique)} exact copies left out, "
        f"{len(pictures.skipped)} unreadable, {pictures.others} other files"
    )
    return Found(pictures, unique, known, gather.stored_features(network, unique, store, workers, progress, stop))


def _check(budget, method, space, metric, perplexity, seed):
    """TinkitError for a setting that is none, before anything is read."""
    for name, value, allowed in (
        ("method", method, tuple(choosing.METHODS)),
        ("space", space, SPACES),
        ("metric", metric, METRICS),
    ):
        if value not in allowed:
            raise TinkitError(f"There is no such {name}.", seen=repr(value), next_step=nearest(str(value), allowed))
    for name, value, fits in (
        ("budget", budget, isinstance(budget, int) and budget >= 1),
        ("seed", seed, isinstance(seed, int) and 0 <= seed < 2**32),
        ("perplexity", perplexity, isinstance(perplexity, (int, float)) and perplexity >= 1),
    ):
        if not fits:
            raise TinkitError(f"This is no {name}.", seen=f"--{name} {value}", next_step=WANTED[name])


WANTED = {
    "budget": "how many pictures to label, at least 1",
    "seed": "a whole number from 0",
    "perplexity": "a number from 1, about how many neighbours count; 40 is the paper's",
}


def _ranked(points: Points, chosen_K, method) -> tuple[np.ndarray, np.ndarray]:
    """(the chosen in the order of labelling, which of them is nearest to each picture (N,))."""
    owner, _ = points.nearest(chosen_K)
    owner[chosen_K] = np.arange(len(chosen_K))  # each stands for itself, also where two lie together
    if method not in AS_CHOSEN:
        order = np.argsort(-np.bincount(owner, minlength=len(chosen_K)), kind="stable")
        chosen_K = chosen_K[order]
        owner = np.argsort(order)[owner]
    return chosen_K, owner


def _chosen(found: Found, chosen_K, owner_N, map_N2) -> list[Chosen]:
    counts = np.bincount(owner_N, minlength=len(chosen_K))
    return [
        Chosen(
            rank=rank,
            name=found.unique[index].name,
            path=found.unique[index].path,
            place=found.unique[index].place,
            link=link_name(rank, found.unique[index]),
            stands_for=int(count),
            at=() if map_N2 is None else tuple(map(float, map_N2[index])),
            label=found.label(index),
        )
        for rank, (index, count) in enumerate(zip(chosen_K, counts), 1)
    ]


def _classes(found: Found, chosen_K) -> dict[str, float]:
    """Classes among the chosen, in all, and what as many random pictures would find on average; {} without labels."""
    if found.labels is None:
        return {}
    counts = Counter(filter(None, map(found.label, range(len(found.unique)))))
    return {
        "found": len({found.label(index) for index in chosen_K} - {""}),
        "of": len(counts),
        "random": expected_classes(counts.values(), len(found.unique), len(chosen_K)),
    }


def expected_classes(counts_C, pictures: int, drawn: int) -> float:
    """How many classes `drawn` of `pictures`, drawn without putting back, have on average; a picture may have no class."""
    every = math.comb(pictures, drawn)
    return sum(1 - math.comb(pictures - count, drawn) / every for count in counts_C)


def _notes(found: Found, used, map_N2, perplexity) -> list[str]:
    notes = []
    if found.alike:
        notes.append(f"pictures of other bytes with exactly the features of an earlier one: {found.alike}")
    fitting = manifold.perplexity_for(len(found.unique), perplexity)
    if used == MAP and fitting < perplexity:
        notes.append(f"perplexity {fitting:.3g}: {len(found.unique)} pictures are few")
    if used != MAP and map_N2 is not None:
        notes.append("the map shows the two main components of the features, for the eye only")
    return notes
