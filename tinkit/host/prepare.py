"""From a folder of pictures to everything that training needs.

Scan and split the pictures; load the teacher; build the student; let the teacher see every view once (the store, or live
with --online); build the methods and let them see what the teacher says. Student, methods and training start from the
seed each on their own: whether a store had to be built must not change a weight.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader

from tinkit.errors import TinkitError
from tinkit.host import heldout
from tinkit.host.features import Features
from tinkit.host.images import Picture, Pictures, require_folder, scan, split
from tinkit.host.labels import Labels, fit_head, read_labels
from tinkit.host.loop import Cached, FeatureSource, Live, WithHead, worker_count
from tinkit.host.objective import Objective, label_weight, wanted
from tinkit.host.pair import Pair, Side
from tinkit.host.progress import Progress
from tinkit.host.settings import Settings
from tinkit.host.store import FeatureStore, ignore_interrupt, open_or_build
from tinkit.host.student import Student, build_student
from tinkit.host.taps import describe, tap_indices
from tinkit.host.teacher import Teacher, class_names, load_teacher, require_parts
from tinkit.host.views import EVALUATION, AllViews, ViewPolicy, Views, collate, refuse_broken


@dataclass(frozen=True)
class Parts:
    """Everything that is made before training starts."""

    pictures: Pictures
    train: list[Picture]
    views: Views
    teacher: Teacher
    student: Student
    method: Objective
    source: FeatureSource
    held_out: heldout.HeldOut
    held_pictures: list[Picture]
    labels_N: torch.Tensor | None  # of the training pictures
    classes: list[str] | None  # names, where they are known
    sample: "Sample"


class Sample:
    """The teacher on view 0 of at most `pca_pictures` training pictures, from the store or by the live teacher."""

    def __init__(self, teacher, pictures, policy, crop_pct, parts, store, settings: Settings, stop):
        self.teacher, self.parts, self.store, self.settings, self.stop = teacher, parts, store, settings, stop
        order = np.random.default_rng([settings.seed, 3]).permutation(len(pictures))
        self.chosen = np.sort(order[: settings.pca_pictures])
        self.pictures = [pictures[index] for index in self.chosen]
        self.policy, self.crop_pct = policy, crop_pct

    def __call__(self) -> Iterator[Features]:
        """Batches in the order of `chosen`; may be asked again."""
        for features in self._stored() if self.store is not None else self._live():
            yield features
            if self.stop():
                raise InterruptedError

    def _stored(self):
        for start in range(0, len(self.chosen), 256):
            rows = self.chosen[start : start + 256]
            yield self.store.features(rows, 0 * rows)

    def _live(self):
        for pixels in self.pixels(self.teacher.preprocessing):
            yield self.teacher.features(pixels, self.parts)

    def pixels(self, preprocessing) -> Iterator[torch.Tensor]:
        """Batches of uint8 (B,3,S,S) at a network's size."""
        views = AllViews(self.pictures, self.policy, [preprocessing], self.crop_pct, numbers=[0])
        loader = DataLoader(
            views,
            batch_size=64,
            num_workers=worker_count(self.settings),
            collate_fn=collate,
            worker_init_fn=ignore_interrupt,
        )
        for batch in loader:
            yield refuse_broken(batch)[:, 0]

    def globals(self) -> np.ndarray:
        """(N, D) float32 of the chosen pictures."""
        return np.concatenate([features.global_BD.cpu().numpy() for features in self()])


def prepare(settings: Settings, out, progress: Progress, stop) -> Parts:
    """From a folder to everything that training needs. Raises TinkitError or InterruptedError."""
    progress.say("settings " + ", ".join(f"{name} {value}" for name, value in settings.to_json().items()))
    require_folder(settings.images)  # what can be wrong at once is said before a long scan
    terms, labelled = settings.terms(), settings.labels is not None
    needed = wanted(terms, settings.local, settings.logits, labelled)
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
    teacher_parts = _teacher_parts(needed, labelled)
    require_parts(teacher, teacher_parts)
    if "student_taps" in needed:
        student.tapped = tap_indices(student.backbone)
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
    labels = None if settings.labels is None else read_labels(settings.labels, list(pictures.usable), pictures.root)
    label_share = label_weight(terms, settings.label_weight) if labels else 0.0
    classes = _add_head(student, teacher, labels, needed, label_share, terms, settings, progress)
    policy = ViewPolicy(scale_min=settings.scale_min, seed=settings.seed)
    crop_pct = student.spec.preprocessing.crop_pct
    sizes = [student.spec.preprocessing] + ([teacher.preprocessing] if settings.online else [])
    held_out = _held_out(held_pictures, teacher, student, policy, settings, out, progress, stop)
    store = None
    if not settings.online:
        all_views = AllViews(
            train_pictures, policy, [teacher.preprocessing], crop_pct, numbers=list(range(settings.views))
        )
        store = _store(all_views, teacher, settings, out, progress, stop, teacher_parts)
    with seeded(settings.seed):
        method = Objective(terms, _pair(teacher, student, teacher_parts, labels, train_pictures, settings), label_share)
    sample = Sample(teacher, train_pictures, policy, crop_pct, teacher_parts, store, settings, stop)
    method.fit(sample)
    source: FeatureSource = Live(teacher, teacher_parts) if store is None else Cached(store)
    labels_N = None if labels is None else labels.of(train_pictures)
    if labels is not None and "logits" in needed:
        source = WithHead(source, _teacher_head(sample, labels, progress))
    return Parts(
        pictures,
        train_pictures,
        Views(train_pictures, policy, sizes, crop_pct),
        teacher,
        student,
        method,
        source,
        held_out,
        held_pictures,
        labels_N,
        classes,
        sample,
    )


def _teacher_parts(needed, labelled) -> tuple[str, ...]:
    """What the teacher itself computes; with labels its logits come from a fitted head."""
    own_logits = "logits" in needed and not labelled
    wishes = (("local", "local" in needed), ("logits", own_logits), ("taps", "teacher_taps" in needed))
    return tuple(name for name, wish in wishes if wish)


def _add_head(student, teacher, labels: Labels | None, needed, label_share, terms, settings, progress):
    """Give the student a classifier where logits or labels ask for one. Returns the class names, where known."""
    if labels is not None and not label_share and not any("labels" in term.cls.needs for term in terms):
        progress.say(
            "labels: the method's paper has no cross-entropy, so they carry no weight; --label-weight 1 gives one"
        )
    brings_own = any(hasattr(term.cls, "head") for term in terms)
    if "logits" not in needed and not label_share and not brings_own:
        if settings.keep_head:
            raise TinkitError(
                "There is no head to keep: nothing here trains one.",
                seen="--keep-head",
                next_step="a method over logits, or --labels with --label-weight 1",
            )
        return None
    count = len(labels.classes) if labels is not None else teacher.classifier["classes"]
    if "logits" in needed or label_share:
        with seeded(settings.seed + 1):
            student.set_head(torch.nn.Linear(student.dim, count))
    return list(labels.classes) if labels is not None else class_names(teacher)


def _teacher_head(sample: Sample, labels: Labels, progress) -> torch.nn.Linear:
    labels_N = labels.of(sample.pictures).numpy()
    known = labels_N >= 0
    if len(set(labels_N[known])) < 2:
        raise TinkitError(
            "Too few labelled pictures are left to train on for a head on the teacher.",
            seen=f"{int(known.sum())} pictures of {len(set(labels_N[known]))} classes",
            next_step="more labels, or a larger --pca-pictures",
        )
    rows_ND = sample.globals()[known]
    head = fit_head(rows_ND, labels_N[known], len(labels.classes))
    with torch.no_grad():
        right = float((head(torch.from_numpy(rows_ND)).argmax(1).numpy() == labels_N[known]).mean())
    progress.say(f"head on the teacher: {int(known.sum())} labelled pictures, {right:.3f} of them right")
    return head


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
def _pair(teacher, student, teacher_parts, labels, pictures, settings: Settings) -> Pair:
    """Shapes of both sides, seen on an empty picture."""
    size = teacher.preprocessing.size
    theirs = teacher.features(torch.zeros(1, 3, size, size, dtype=torch.uint8), teacher_parts)
    student.eval()
    ours = student(torch.zeros(1, 3, student.spec.size, student.spec.size))
    student.train()
    return Pair(
        _side(ours),
        _side(theirs),
        student.spec.classes if labels is None else len(labels.classes),
        len(pictures),
        settings.epochs,
        settings.teacher_global == "pooled",
        settings.seed,
    )


def _side(features: Features) -> Side:
    local_BLD = features.local_BLD
    width, grid = (None, None) if local_BLD is None else (local_BLD.shape[2], features.grid)
    return Side(features.global_BD.shape[1], width, grid, describe(features))


@contextlib.contextmanager
def seeded(seed):
    """torch's global generator starts at `seed` inside, and is as before outside.

    Student, mapping and training each get their own start: whether a store had to be built must not change a weight.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
