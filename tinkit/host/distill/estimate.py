"""`tinkit distill --dry-run`: what a run will take, measured on a few pictures; nothing is written.

Teacher and student are timed on a handful of pictures (`timing`) and multiplied. What loader processes cost the others, what
devices tell each other, machines that slow down when they are warm, and a store that has some of the rows already are not
in it: an order of magnitude to decide by, labelled so. Rows and bytes are exact, but for files that turn out unreadable
and for copies of a picture, which are held out together and known only by their bytes.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from tinkit.errors import TinkitError
from tinkit.host.distill.networks import make_networks, make_pair, seeded
from tinkit.host.distill.objective import Objective, label_weight, wanted
from tinkit.host.distill.pictures import Found, find_labels, refuse_too_few
from tinkit.host.distill.prepare import store_root
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.threads import threads_beside, worker_count
from tinkit.host.distill.timing import see, time_step, time_teacher
from tinkit.host.features import Features
from tinkit.host.heads import check_head
from tinkit.host.images import scan, split
from tinkit.host.labels import require_labels
from tinkit.host.progress import Progress
from tinkit.host.store.size import bytes_per_row, told_size


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of a run.

    pictures: all; train: those to train on, the others are held out. views: stored of each; 0 with a live teacher.
    teacher_s: the teacher's part of the run, before training or (online) in its steps. step_s: of a training step, with
    the teacher's part where it is live. loading_s: what the loader processes need for a batch meanwhile; without them it
    is in step_s. store_bytes: of rows, with those of the held-out pictures; free_bytes: of the disk they go to.
    decoded_bytes: of all pictures as pixels.
    """

    pictures: int
    train: int
    views: int
    teacher_s: float
    store_bytes: int
    store_root: str
    free_bytes: int
    decoded_bytes: int
    step_s: float
    loading_s: float
    steps: int
    online: bool

    @property
    def training_s(self) -> float:
        """Of all steps; the slower of network and loaders sets the pace."""
        return self.steps * max(self.step_s, self.loading_s)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.training_s + (0 if self.online else self.teacher_s)

    def in_words(self) -> list[str]:
        """Lines for a person."""
        waits = f", waiting for pictures: {_ms(self.loading_s)} a batch" if self.loading_s > self.step_s else ""
        lines = [f"pictures {self.pictures}, {self.pictures - self.train} of them held out; listed, a few opened"]
        if not self.online:
            lines.append(f"teacher  {self.train} x {self.views} views, once: {_time(self.teacher_s)}")
        lines.append(f"training {self.steps} steps of {_ms(self.step_s)}{waits}: {_time(self.training_s)}")
        if self.online:
            lines.append(f"teacher  at every step, {_time(self.teacher_s)} of these")
        lines.append(f"in all   about {_time(self.seconds)}, if this machine stays as busy as it is now")
        if not self.online:
            room = "fits" if self.store_bytes < 0.95 * self.free_bytes else "DOES NOT FIT"
            lines.append(
                f"disk     {told_size(self.store_bytes)} in {self.store_root}, {told_size(self.free_bytes)} are free: {room}"
            )
        lines.append(f"memory   {told_size(self.decoded_bytes)} of decoded pictures, if all of them are kept")
        return lines


def estimate(images=None, out=None, resume=False, **settings) -> Estimate:
    """What `tinkit distill` with these settings will take on this machine. Raises TinkitError for what would stop it."""
    if resume:
        raise TinkitError(
            "--dry-run is for a run that has not begun: a resumed one has its measured times in its log.",
            next_step="leave --dry-run or --resume out",
        )
    if images is None:
        raise TinkitError("No pictures given.", next_step="tinkit distill FOLDER --dry-run")
    settings.pop("quiet", None)
    chosen = Settings(images=str(images), **settings)
    terms = chosen.terms()
    needed = wanted(terms, chosen.local, chosen.logits, chosen.labels is not None)
    if chosen.labels is not None:
        require_labels(chosen.labels)
    pictures = scan(chosen.images, mode="quick")
    found = Found(pictures, *split(pictures.usable, chosen.seed))
    train, held_out = found.train, found.held_out
    refuse_too_few(len(train), len(held_out), pictures.root, chosen)
    labels = find_labels(chosen, found, Progress(quiet=True))
    with seeded(chosen.seed), threads_beside(worker_count(chosen), chosen.devices):
        student, teacher, parts = make_networks(chosen, terms, needed)
        label_share = 0.0 if labels is None else label_weight(terms, chosen.label_weight)
        has_head = "logits" in needed or label_share > 0
        check_head(terms, has_head, chosen.keep_head)
        classes = len(labels.classes) if labels else teacher.classes
        if has_head:
            student.set_head(torch.nn.Linear(student.dim, classes))
        method = Objective(terms, make_pair(teacher, student, parts, labels, needed, len(train), chosen), label_share)
        seen = see(train, teacher, student, chosen)
        features, teacher_s = time_teacher(teacher, seen.pixels_BCHW, parts)
        stored_row = bytes_per_row(features, chosen.store_dtype, chosen.store_grid)
        held_row = bytes_per_row(Features(features.global_BD), chosen.store_dtype)
        if labels is not None and "logits" in needed:
            features.logits_BC = features.global_BD.new_zeros(len(features.global_BD), classes)
        step_s = time_step(student, method, features, labels, chosen)
    steps = chosen.epochs * (len(train) // chosen.batch_size)
    share = chosen.batch_size // chosen.processes  # of a batch, for each device
    step_s += share * teacher_s if chosen.online else 0
    loading_s = share * seen.view_s
    workers = worker_count(chosen)
    root = store_root(chosen, out)
    if chosen.online:
        views, store_bytes, all_teacher_s = 0, 0, steps * share * teacher_s
    else:
        views, store_bytes = chosen.views, len(train) * chosen.views * stored_row + len(held_out) * held_row
        making_s, beside = views * teacher_s, seen.all_views_s
        making_s = max(making_s, beside / workers) if workers else making_s + beside
        all_teacher_s = len(train) * making_s / chosen.processes
    return Estimate(
        pictures=len(pictures.usable),
        train=len(train),
        views=views,
        teacher_s=all_teacher_s,
        store_bytes=store_bytes,
        store_root=root,
        free_bytes=shutil.disk_usage(_existing(root)).free,
        decoded_bytes=round(seen.pixel_bytes * len(pictures.usable)),
        step_s=step_s if workers else step_s + loading_s,
        loading_s=loading_s / workers if workers else 0.0,
        steps=steps,
        online=chosen.online,
    )


def _existing(path) -> Path:
    """The nearest folder above that is there."""
    found = Path(path).absolute()
    while not found.exists():
        found = found.parent
    return found


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
