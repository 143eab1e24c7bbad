"""From pictures to everything that training needs.

Find and split the pictures; load the teacher; build the student; let the teacher see every view once (the store, or live
with --online); build the methods and let them see what the teacher says. Student, methods and training start from the
seed each on their own: whether a store had to be built must not change a weight. With several processes all do the same
but for the scan and the held-out pictures, which are the first one's; the store is filled by all.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tinkit.host.decoded import DecodedCache
from tinkit.host.distill import heldout
from tinkit.host.distill.networks import make_networks, make_pair, seeded
from tinkit.host.distill.objective import Objective, label_weight, trained_parts, wanted
from tinkit.host.distill.pair import Pair
from tinkit.host.distill.pictures import Found, find_labels, find_pictures, refuse_too_few, usable_numbers
from tinkit.host.distill.plan import Plan
from tinkit.host.distill.ranks import Ranks
from tinkit.host.distill.sample import Sample
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.source import Cached, FeatureSource, Live, WithHead
from tinkit.host.distill.threads import worker_count
from tinkit.host.features import Features
from tinkit.host.heads import check_head, head_on_teacher
from tinkit.host.images import Picture, Pictures, require_images
from tinkit.host.jpeg import require
from tinkit.host.labels import Labels, require_labels
from tinkit.host.progress import Progress
from tinkit.host.store import FeatureStore, open_or_build
from tinkit.host.store.pixels import readable
from tinkit.host.student import Student
from tinkit.host.teacher import Teacher, class_names
from tinkit.host.views import EVALUATION, AllViews, ViewPolicy, Views


@dataclass(frozen=True)
class Parts:
    """Everything that is made before training starts. Held-out pictures are the first process's only."""

    pictures: Pictures
    train: Sequence[Picture]
    views: Views
    plan: Plan
    teacher: Teacher
    student: Student
    method: Objective
    source: FeatureSource
    held_out: heldout.HeldOut
    held_pictures: Sequence[Picture]
    labels: Labels | None
    classes: list[str] | None  # names, where they are known
    sample: Sample

    @property
    def labels_N(self) -> torch.Tensor | None:
        """Class numbers of the training pictures, -1 for one without a label."""
        return None if self.labels is None else self.labels.of(self.train)


def prepare(
    settings: Settings, out, progress: Progress, stop, ranks: Ranks, cache: DecodedCache | None = None
) -> Parts:
    """From a folder to everything that training needs. Raises TinkitError or InterruptedError.

    What can be wrong is found as early as it can be: before the scan, or before the teacher sees every view.
    """
    progress.say("settings " + ", ".join(f"{name} {value}" for name, value in settings.to_json().items()))
    require_images(settings.images)
    if settings.labels is not None:
        require_labels(settings.labels)
    terms = settings.terms()
    needed = wanted(terms, settings.local, settings.logits, settings.labels is not None)
    require(settings.decoder, ranks.device)
    student, teacher, teacher_parts = make_networks(settings, terms, needed, ranks.device)
    found = find_pictures(settings, out, cache, progress, stop, ranks)
    labels = find_labels(settings, found, progress)
    label_share = 0.0 if labels is None else label_weight(terms, settings.label_weight)
    has_head = "logits" in needed or label_share > 0
    check_head(terms, has_head, settings.keep_head)
    if has_head:
        with seeded(settings.seed + 1):
            student.set_head(torch.nn.Linear(student.dim, len(labels.classes) if labels else teacher.classes))
    pair = make_pair(teacher, student, teacher_parts, labels, needed, len(found.train), settings)
    with seeded(settings.seed):
        method = Objective(terms, pair, label_share)
    if labels is not None and not label_share and not {"labels", "logits"} & needed:
        progress.say(
            "labels: they weigh nothing here, the method's paper has no cross-entropy; --label-weight 1 gives it"
        )

    stores = Stores(settings, out, teacher, found.quick, progress, stop, ranks)
    policy, crop_pct = ViewPolicy(scale_min=settings.scale_min, seed=settings.seed), student.spec.preprocessing.crop_pct
    seeing: dict[str, Any] = {"cache": cache, "decoder": settings.decoder, "device": ranks.device}
    sizes = [student.spec.preprocessing] + ([teacher.preprocessing] if settings.online else [])
    views = Views(found.train, policy, sizes, crop_pct, **seeing)
    held_out, found = _held_out(found, policy, student.spec.preprocessing, seeing, stores)
    store, usable_N = None, np.arange(len(found.train))
    if not settings.online:
        numbers = list(range(settings.views))
        all_views = AllViews(found.train, policy, [teacher.preprocessing], crop_pct, numbers=numbers, **seeing)
        store = stores.open(all_views, teacher_parts)
        usable_N = usable_numbers(found, store.bad, settings)
        found = found.without(_named(found.train, store))
    source: FeatureSource = Live(teacher, teacher_parts, settings.teacher_batch) if store is None else Cached(store)
    sample = Sample(teacher, views, store, settings, stop, among=usable_N)
    method.fit(sample)
    labels_N = None if labels is None else labels.of(found.train)
    if labels_N is not None and labels is not None and "logits" in needed:
        labelled_N = usable_N[labels_N.numpy()[usable_N] >= 0]
        head = head_on_teacher(Sample(teacher, views, store, settings, stop, among=labelled_N), labels, progress.say)
        ranks.equalise(head)
        source = WithHead(source, head)
    _warn_of_an_idle_embedding(method, pair, student, settings, progress)
    classes = list(labels.classes) if labels else class_names(teacher) if has_head else None
    return Parts(
        found.pictures,
        found.train,
        views,
        Plan(usable_N, settings.views, settings.batch_size, settings.seed, ranks.number, ranks.count),
        teacher,
        student,
        method,
        source,
        held_out,
        found.held_out,
        labels,
        classes,
        sample,
    )


def _warn_of_an_idle_embedding(method: Objective, pair: Pair, student: Student, settings, progress: Progress) -> None:
    """Say it when the embedding would ship as it was born: methods over taps reach the backbone's maps alone."""
    reached = trained_parts(method, pair)
    if method.label_weight or reached & ({"global", "logits"} | ({"local"} if student.neck is not None else set())):
        return
    progress.say(
        f"note: nothing in {settings.method} trains the embedding that ships; add a method that does, "
        f"as in --method {settings.method}+mse"
    )


def store_root(settings: Settings, out) -> str:
    """The folder of the feature stores of a run in `out` (None: in the folder of all runs)."""
    from tinkit import workspace

    return settings.store or os.path.join(os.path.dirname(os.path.abspath(out or f"{workspace.RUNS}/run")), ".stores")


@dataclass(frozen=True)
class Stores:
    """Where and how this run opens stores. put_aside: pictures may turn out unreadable only now."""

    settings: Settings
    out: str
    teacher: Teacher
    put_aside: bool
    progress: Progress
    stop: Callable[[], bool]
    ranks: Ranks

    def open(self, views: AllViews, parts, by_all=True) -> FeatureStore:
        """The store of these views, filled by all processes, or by this one alone."""
        settings, limit = self.settings, self.settings.store_limit_gb
        ranks = self.ranks
        return open_or_build(
            store_root(settings, self.out),
            self.teacher,
            views,
            parts=parts,
            dtype=settings.store_dtype,
            grid=settings.store_grid,
            put_aside=self.put_aside,
            limit_bytes=None if limit is None else int(limit * 1e9),
            workers=worker_count(settings),
            batch=settings.teacher_batch or 64,
            tick=self.progress.bar("teacher", len(views.pictures)),
            say=self.progress.say,
            stop=self.stop,
            rank=ranks.number if by_all else 0,
            ranks=ranks.count if by_all else 1,
            barrier=ranks.barrier if by_all else None,
        )


def _held_out(found: Found, policy, images, seeing, stores: Stores) -> tuple[heldout.HeldOut, Found]:
    """Pixels and teacher's features of the held-out pictures, in the first process; what could not be read is left out."""
    numbers = [EVALUATION]
    if not stores.ranks.first:
        return heldout.HeldOut([], torch.zeros(0, 3, images.size, images.size), Features(torch.zeros(0, 1))), found
    views = AllViews(found.held_out, policy, [stores.teacher.preprocessing], images.crop_pct, numbers=numbers, **seeing)
    store = stores.open(views, parts=(), by_all=False)
    rows = np.setdiff1d(np.arange(len(found.held_out)), store.bad)
    found = found.without(_named(found.held_out, store))
    if not len(found.held_out):  # none of them could be read
        refuse_too_few(len(found.train), 0, found.pictures.root, stores.settings)
    small = AllViews(found.held_out, policy, [images], images.crop_pct, numbers=numbers, **seeing)
    pixels = torch.cat([rows[:, 0].cpu() for rows in readable(small, worker_count(stores.settings), stores.stop)])
    return heldout.HeldOut([p.name for p in found.held_out], pixels, store.features(rows, 0 * rows)), found


def _named(pictures, store: FeatureStore) -> dict[str, str]:
    """{name: reason} of the pictures that the store put aside."""
    return {pictures[number].name: reason for number, reason in store.bad_reasons.items()}
