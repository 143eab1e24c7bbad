"""From a folder of pictures to everything that training needs.

Scan and split the pictures; load the teacher; build the student; let the teacher see every view once (the store, or live
with --online); fit the mapping. Student, mapping and training start from the seed each on their own: whether a store had
to be built must not change a weight.
"""

import contextlib
import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from tinkit.errors import TinkitError
from tinkit.host import heldout
from tinkit.host.features import Features
from tinkit.host.images import Picture, Pictures, require_folder, scan, split
from tinkit.host.loop import Cached, Live, worker_count
from tinkit.host.mapping import Mapping, MappingSpec, Moments
from tinkit.host.methods import METHODS
from tinkit.host.progress import Progress
from tinkit.host.settings import Settings
from tinkit.host.store import FeatureStore, ignore_interrupt, open_or_build
from tinkit.host.student import Student, build_student
from tinkit.host.teacher import Teacher, load_teacher
from tinkit.host.views import EVALUATION, AllViews, ViewPolicy, Views, collate, refuse_broken


@dataclass(frozen=True)
class Parts:
    """Everything that is made before training starts."""

    pictures: Pictures
    train: list[Picture]
    views: Views
    teacher: Teacher
    student: Student
    method: torch.nn.Module
    source: Cached | Live
    held_out: heldout.HeldOut
    held_pictures: list[Picture]


def prepare(settings: Settings, out, progress: Progress, stop) -> Parts:
    """From a folder to everything that training needs. Raises TinkitError or InterruptedError."""
    progress.say("settings " + ", ".join(f"{name} {value}" for name, value in settings.to_json().items()))
    require_folder(settings.images)  # what can be wrong at once is said before a long scan
    with seeded(settings.seed):
        student = build_student(settings.student, settings.student_size, settings.dim, settings.student_weights)
    teacher = load_teacher(
        settings.teacher,
        settings.teacher_weights,
        settings.teacher_size,
        settings.teacher_global == "pooled",
        settings.teacher_mean,
        settings.teacher_std,
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    pictures = scan(settings.images, settings.strict, progress.counter("reading"), stop)
    train_pictures, held_pictures = split(pictures.usable, settings.seed)
    progress.say(
        f"{len(pictures.usable)} pictures ({len(held_pictures)} held out), "
        f"{len(pictures.skipped)} unreadable, {pictures.others} other files"
    )
    if len(held_pictures) < 2 or len(train_pictures) < settings.batch_size:
        raise TinkitError(
            "There are too few pictures: fewer to train on than a batch holds, or fewer than two to hold out.",
            where=pictures.root,
            seen=f"{len(train_pictures)} pictures, --batch-size {settings.batch_size}",
            next_step="more pictures, or a smaller --batch-size",
        )
    policy = ViewPolicy(scale_min=settings.scale_min, seed=settings.seed)
    crop_pct = student.spec.preprocessing.crop_pct
    sizes = [student.spec.preprocessing] + ([teacher.preprocessing] if settings.online else [])
    held_out = _held_out(held_pictures, teacher, student, policy, settings, out, progress, stop)
    spec, store = _mapping_spec(settings, teacher, student, held_out.teacher), None
    if not settings.online:
        all_views = AllViews(
            train_pictures, policy, [teacher.preprocessing], crop_pct, numbers=list(range(settings.views))
        )
        store = _store(all_views, teacher, settings, out, progress, stop, settings.local)
    with seeded(settings.seed):
        mapping = Mapping(spec)
        method = METHODS[settings.method](mapping, cosines_weight=settings.cosines_weight)
    if settings.mapping != "learned":
        moments = Moments(local=spec.heads == 2)
        _observe(moments, store, teacher, train_pictures, policy, crop_pct, settings, stop)
        mapping.fit(moments, settings.seed)
    return Parts(
        pictures,
        train_pictures,
        Views(train_pictures, policy, sizes, crop_pct),
        teacher,
        student,
        method,
        Live(teacher, settings.local) if store is None else Cached(store),
        held_out,
        held_pictures,
    )


def _store(views, teacher, settings, out, progress, stop, local) -> FeatureStore:
    root = settings.store or os.path.join(os.path.dirname(os.path.abspath(out)), ".stores")
    return open_or_build(
        root,
        teacher,
        views,
        local=local,
        dtype=settings.store_dtype,
        workers=worker_count(settings),
        tick=progress.bar("teacher", len(views.pictures)),
        say=progress.say,
        stop=stop,
    )


def _held_out(pictures, teacher, student, policy, settings, out, progress, stop) -> heldout.HeldOut:
    images = student.spec.preprocessing
    views = AllViews(pictures, policy, [teacher.preprocessing], images.crop_pct, numbers=[EVALUATION])
    store = _store(views, teacher, settings, out, progress, stop, local=False)
    loader = DataLoader(
        AllViews(pictures, policy, [images], images.crop_pct, numbers=[EVALUATION]),
        batch_size=64,
        num_workers=worker_count(settings),
        collate_fn=collate,
        worker_init_fn=ignore_interrupt,
    )
    pixels = torch.cat([refuse_broken(batch)[:, 0] for batch in loader])
    rows = np.arange(len(pictures))
    return heldout.HeldOut([p.name for p in pictures], pixels, store.features(rows, 0 * rows))


def _observe(moments: Moments, store, teacher, pictures, policy, crop_pct, settings, stop) -> None:
    """The pre-pass of PCA over view 0 of at most `pca_pictures` pictures: from the store, or by the live teacher."""
    chosen = np.sort(np.random.default_rng([settings.seed, 3]).permutation(len(pictures))[: settings.pca_pictures])
    if store is not None:
        for start in range(0, len(chosen), 256):
            rows = chosen[start : start + 256]
            moments.add(store.features(rows, 0 * rows))
            if stop():
                raise InterruptedError
        return
    views = AllViews([pictures[i] for i in chosen], policy, [teacher.preprocessing], crop_pct, numbers=[0])
    loader = DataLoader(
        views, batch_size=64, num_workers=worker_count(settings), collate_fn=collate, worker_init_fn=ignore_interrupt
    )
    for batch in loader:
        features = teacher.features(refuse_broken(batch)[:, 0])
        moments.add(features if settings.local else replace(features, local_BLD=None))
        if stop():
            raise InterruptedError


def _mapping_spec(settings: Settings, teacher, student, features: Features) -> MappingSpec:
    """Two heads where the global feature does not live in the space of the local ones."""
    width, local_width = features.global_BD.shape[1], None
    if settings.local:
        size = teacher.preprocessing.size
        probe = teacher.features(torch.zeros(1, 3, size, size, dtype=torch.uint8)).local_BLD
        local_width = None if probe is None else probe.shape[2]
    if local_width is not None and (settings.teacher_global == "pooled" or local_width != width):
        return MappingSpec(settings.mapping, settings.center, width, student.dim, 2, local_width)
    return MappingSpec(settings.mapping, settings.center, width, student.dim)


@contextlib.contextmanager
def seeded(seed):
    """torch's global generator starts at `seed` inside, and is as before outside.

    Student, mapping and training each get their own start: whether a store had to be built must not change a weight.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
