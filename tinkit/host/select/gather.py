"""The pictures of a selection and their features: copies out, features of a teacher or of a run's student, kept in the store.

The network sees each picture's evaluation view (the centred square), as everywhere in tinkit.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.images import Catalogue, Picture
from tinkit.host.images.split import groups_of
from tinkit.host.progress import Progress
from tinkit.host.store import FeatureStore, open_or_build
from tinkit.host.teacher import DEFAULT_TEACHER, load_teacher
from tinkit.host.views import EVALUATION, AllViews, ViewPolicy


def without_copies(pictures: Iterable[Picture]) -> Sequence[Picture]:
    """One picture of each content, the first by name, in order of name; a catalogue of a catalogue."""
    if isinstance(pictures, Catalogue):
        names = list(pictures.all_names())
        by_name = pictures.take(sorted(range(len(names)), key=names.__getitem__))
        return by_name.take(np.sort(groups_of(by_name.contents_N32)[0]))
    first: dict[str, Picture] = {}
    for picture in sorted(pictures, key=lambda picture: picture.name):
        first.setdefault(picture.content, picture)
    return list(first.values())


def network_of(teacher=None, run=None, weights=None, size=None):
    """The network whose features count: a teacher by name, or the student of a run; the default teacher for neither."""
    import torch

    if run is not None:
        from tinkit.host.evaluate.networks import StudentNetwork
        from tinkit.host.run import load_run

        if teacher is not None or weights is not None or size is not None:
            raise TinkitError(
                "Whose features: the teacher's or the student's?",
                seen=f"--run {run} and something of a teacher",
                next_step="--run RUN for its student, or --teacher NAME",
            )
        return StudentNetwork(load_run(run))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_teacher(teacher or DEFAULT_TEACHER, weights, size).to(device)


def stored_features(
    network, pictures: Sequence[Picture], root, workers, progress: Progress, stop: Callable
) -> FeatureStore:
    """A row (D,) float32 of each picture, computed or read. InterruptedError once `stop()` is true."""
    own = network.preprocessing
    views = AllViews(pictures, ViewPolicy(), [own], own.crop_pct, numbers=[EVALUATION])
    return open_or_build(
        root,
        network,
        views,
        parts=(),
        dtype="float32",
        workers=min(8, max(1, (os.cpu_count() or 1) // 2)) if workers is None else workers,
        tick=progress.bar("features", len(pictures)),
        say=progress.say,
        stop=stop,
    )


def alike(rows_ND) -> int:
    """How many rows are exactly equal to an earlier one."""
    return len(rows_ND) - len({hashlib.sha256(row.tobytes()).digest() for row in np.asarray(rows_ND)})
