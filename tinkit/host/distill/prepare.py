"""From a folder of pictures to everything that training needs.

Scan and split the pictures; load the teacher; build the student; let the teacher see every view once (the store, or live
with --online); build the methods and let them see what the teacher says. Student, methods and training start from the
seed each on their own: whether a store had to be built must not change a weight.
"""

import contextlib
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from tinkit.errors import TinkitError
from tinkit.host.distill import heldout
from tinkit.host.distill.gather import count, rank
from tinkit.host.distill.objective import Objective, label_weight, trained_parts, wanted
from tinkit.host.distill.pair import Pair
from tinkit.host.distill.plan import Plan
from tinkit.host.distill.sample import Sample
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.source import Cached, FeatureSource, Live, WithHead
from tinkit.host.distill.threads import worker_count
from tinkit.host.heads import check_head, head_on_teacher
from tinkit.host.images import Picture, Pictures, require_folder, scan, split
from tinkit.host.labels import Labels, read_labels, require_labels
from tinkit.host.progress import Progress
from tinkit.host.store import FeatureStore, ignore_interrupt, open_or_build
from tinkit.host.student import Student, build_student
from tinkit.host.taps import side_of, tap_indices
from tinkit.host.teacher import Teacher, class_names, load_teacher, require_parts
from tinkit.host.views import EVALUATION, AllViews, ViewPolicy, Views, collate, refuse_broken


@dataclass(frozen=True)
class Parts:
    """Everything that is made before training starts."""

    pictures: Pictures
    train: list[Picture]
    views: Views
    plan: Plan
    teacher: Teacher
    student: Student
    method: Objective
    source: FeatureSource
    held_out: heldout.HeldOut
    held_pictures: list[Picture]
    labels: Labels | None
    classes: list[str] | None  # names, where they are known
    sample: Sample

    @property
    def labels_N(self) -> torch.Tensor | None:
        """Class numbers of the training pictures, -1 for one without a label."""
        return None if self.labels is None else self.labels.of(self.train)


def prepare(settings: Settings, out, progress: Progress, stop) -> Parts:
    """From a folder to everything that training needs. Raises TinkitError or InterruptedError.

    What can be wrong is found as early as it can be: before the scan, or before the teacher sees every view.
    """
    progress.say("settings " + ", ".join(f"{name} {value}" for name, value in settings.to_json().items()))
    require_folder(settings.images)
    if settings.labels is not None:
        require_labels(settings.labels)
    terms = settings.terms()
    needed = wanted(terms, settings.local, settings.logits, settings.labels is not None)
    student, teacher, teacher_parts = _networks(settings, terms, needed)
    pictures, train_pictures, held_pictures = _pictures(settings, progress, stop)
    labels = _labels(settings, pictures, train_pictures, progress)
    label_share = 0.0 if labels is None else label_weight(terms, settings.label_weight)
    has_head = "logits" in needed or label_share > 0
    check_head(terms, has_head, settings.keep_head)
    if has_head:
        with seeded(settings.seed + 1):
            student.set_head(torch.nn.Linear(student.dim, len(labels.classes) if labels else teacher.classes))
    pair = _pair(teacher, student, teacher_parts, labels, needed, len(train_pictures), settings)
    with seeded(settings.seed):
        method = Objective(terms, pair, label_share)
    if labels is not None and not label_share and not {"labels", "logits"} & needed:
        progress.say(
            "labels: they weigh nothing here, the method's paper has no cross-entropy; --label-weight 1 gives it"
        )

    policy, crop_pct = ViewPolicy(scale_min=settings.scale_min, seed=settings.seed), student.spec.preprocessing.crop_pct
    sizes = [student.spec.preprocessing] + ([teacher.preprocessing] if settings.online else [])
    views = Views(train_pictures, policy, sizes, crop_pct)
    held_out = _held_out(held_pictures, teacher, student, policy, settings, out, progress, stop)
    store = None
    if not settings.online:
        numbers = list(range(settings.views))
        all_views = AllViews(train_pictures, policy, [teacher.preprocessing], crop_pct, numbers=numbers)
        store = _store(all_views, teacher, settings, out, progress, stop, teacher_parts)
    source: FeatureSource = Live(teacher, teacher_parts) if store is None else Cached(store)
    sample = Sample(teacher, views, store, settings, stop)
    method.fit(sample)
    labels_N = None if labels is None else labels.of(train_pictures)
    if labels_N is not None and labels is not None and "logits" in needed:
        labelled = Sample(teacher, views, store, settings, stop, among=(labels_N >= 0).nonzero()[:, 0].tolist())
        source = WithHead(source, head_on_teacher(labelled, labels, progress.say))
    _warn_of_an_idle_embedding(method, pair, student, settings, progress)
    classes = list(labels.classes) if labels else class_names(teacher) if has_head else None
    return Parts(
        pictures,
        train_pictures,
        views,
        Plan(len(train_pictures), settings.views, settings.batch_size, settings.seed, rank(), count()),
        teacher,
        student,
        method,
        source,
        held_out,
        held_pictures,
        labels,
        classes,
        sample,
    )


def _networks(settings: Settings, terms, needed) -> tuple[Student, Teacher, tuple[str, ...]]:
    """Student, teacher, and what the teacher itself computes; with labels its logits come from a fitted head."""
    with seeded(settings.seed):
        student = build_student(settings.student, settings.student_size, settings.dim, settings.student_weights)
    if "student_taps" in needed:
        student.tapped = tap_indices(student.backbone)
    teacher = load_teacher(
        settings.teacher,
        settings.teacher_weights,
        settings.teacher_size,
        settings.teacher_global == "pooled",
        settings.teacher_mean,
        settings.teacher_std,
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    own_logits = "logits" in needed and settings.labels is None
    wishes = (("local", "local" in needed), ("logits", own_logits), ("taps", "teacher_taps" in needed))
    parts = tuple(name for name, wish in wishes if wish)
    without = [] if any("local" in term.cls.needs for term in terms) else ["local"]
    require_parts(teacher, [name for name in parts if name not in without])
    return student, teacher, parts


def _pictures(settings: Settings, progress: Progress, stop) -> tuple[Pictures, list[Picture], list[Picture]]:
    """(all, to train on, held out)."""
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
    return pictures, train_pictures, held_pictures


def _labels(settings: Settings, pictures: Pictures, train_pictures, progress: Progress) -> Labels | None:
    if settings.labels is None:
        return None
    labels = read_labels(settings.labels, list(pictures.usable), pictures.root).within(train_pictures)
    progress.say(labels.in_words())
    if len(labels.classes) < 2:
        raise TinkitError(
            "Too few labels are left to train on: two classes need a picture each outside of the held-out ones.",
            where=pictures.root,
            seen=labels.in_words(),
            next_step="more labels",
        )
    return labels


def _warn_of_an_idle_embedding(method: Objective, pair: Pair, student: Student, settings, progress: Progress) -> None:
    """Say it when the embedding would ship as it was born: methods over taps reach the backbone's maps alone."""
    reached = trained_parts(method, pair)
    if method.label_weight or reached & ({"global", "logits"} | ({"local"} if student.neck is not None else set())):
        return
    progress.say(
        f"note: nothing in {settings.method} trains the embedding that ships; add a method that does, "
        f"as in --method {settings.method}+mse"
    )


def _store(views, teacher, settings, out, progress, stop, parts) -> FeatureStore:
    root = settings.store or os.path.join(os.path.dirname(os.path.abspath(out)), ".stores")
    return open_or_build(
        root,
        teacher,
        views,
        parts=parts,
        dtype=settings.store_dtype,
        workers=worker_count(settings),
        tick=progress.bar("teacher", len(views.pictures)),
        say=progress.say,
        stop=stop,
    )


def _held_out(pictures, teacher, student, policy, settings, out, progress, stop) -> heldout.HeldOut:
    images = student.spec.preprocessing
    views = AllViews(pictures, policy, [teacher.preprocessing], images.crop_pct, numbers=[EVALUATION])
    store = _store(views, teacher, settings, out, progress, stop, parts=())
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


@torch.no_grad()
def _pair(teacher, student, teacher_parts, labels, needed, pictures: int, settings: Settings) -> Pair:
    """Shapes of both sides, seen on an empty picture. Classes only where a method sees logits or labels."""
    size = teacher.preprocessing.size
    theirs = teacher.features(torch.zeros(1, 3, size, size, dtype=torch.uint8), teacher_parts)
    student.eval()
    ours = student(torch.zeros(1, 3, student.spec.size, student.spec.size))
    student.train()
    return Pair(
        side_of(ours),
        side_of(theirs),
        (len(labels.classes) if labels else teacher.classes) if {"logits", "labels"} & needed else None,
        pictures,
        settings.epochs,
        settings.teacher_global == "pooled",
        settings.seed,
    )


@contextlib.contextmanager
def seeded(seed):
    """torch's global generator starts at `seed` inside, and is as before outside.

    Student, mapping and training each get their own start: whether a store had to be built must not change a weight.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
