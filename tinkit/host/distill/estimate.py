"""`tinkit distill --dry-run`: what a run will take, measured on a few pictures; nothing is written.

The teacher sees a handful of the pictures and the student takes a few steps on made-up features of the right shapes; what
these took is multiplied. Loader processes and machines that slow down when they are warm are not in it: an order of
magnitude to decide by, labelled so.
"""

import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from tinkit.errors import TinkitError
from tinkit.host.distill.networks import make_networks, make_pair, seeded
from tinkit.host.distill.objective import Objective, wanted
from tinkit.host.distill.prepare import store_root
from tinkit.host.distill.schedule import make_optimizer
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.state import Distiller
from tinkit.host.distill.threads import threads_beside, worker_count
from tinkit.host.features import Features
from tinkit.host.images import scan
from tinkit.host.store.size import bytes_per_row
from tinkit.host.views import AllViews, Broken, ViewPolicy, normalise_on_device

PICTURES, STEPS = 16, 3


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of a run. store_bytes is 0 with a live teacher; decoded_bytes is of all pictures, unlimited."""

    pictures: int
    views: int
    teacher_s: float
    store_bytes: int
    store_root: str
    free_bytes: int
    decoded_bytes: int
    step_s: float
    steps: int
    online: bool

    @property
    def seconds(self) -> float:
        return self.teacher_s + self.step_s * self.steps

    def in_words(self) -> list[str]:
        """Lines for a person."""
        if self.online:
            teacher = f"the teacher at every step: {_time(self.teacher_s)} of it in all"
        else:
            teacher = f"the teacher on {self.pictures} x {self.views} views, once: {_time(self.teacher_s)}"
        lines = [
            f"pictures {self.pictures}, listed and not opened; some of them were, to measure",
            teacher,
            f"training, {self.steps} steps of {1e3 * self.step_s:.0f} ms: {_time(self.step_s * self.steps)}",
            f"in all   about {_time(self.seconds)} on this machine as it is now",
        ]
        if not self.online:
            room = "fits" if self.store_bytes < 0.95 * self.free_bytes else "DOES NOT FIT"
            lines.append(
                f"disk     {_size(self.store_bytes)} in {self.store_root}, {_size(self.free_bytes)} are free: {room}"
            )
        lines.append(f"decoded  {_size(self.decoded_bytes)} of pixels, if all of them were kept")
        return lines


def estimate(images=None, out=None, **settings) -> Estimate:
    """What `tinkit distill` with these settings will take on this machine. Raises TinkitError for what would stop it."""
    if images is None:
        raise TinkitError("No pictures given.", next_step="tinkit distill FOLDER --dry-run")
    settings.pop("quiet", None)
    chosen = Settings(images=str(images), **settings)
    pictures = scan(chosen.images, mode="quick").usable
    if len(pictures) < chosen.batch_size:
        raise TinkitError(
            "There are fewer pictures than a batch holds.",
            where=chosen.images,
            seen=f"{len(pictures)} pictures, --batch-size {chosen.batch_size}",
            next_step="more pictures, or a smaller --batch-size",
        )
    terms = chosen.terms()
    needed = wanted(terms, chosen.local, chosen.logits, chosen.labels is not None)
    with threads_beside(worker_count(chosen)):
        student, teacher, parts = make_networks(chosen, terms, needed, "cuda" if torch.cuda.is_available() else "cpu")
        seen = _see(pictures, teacher, student, chosen)
        features, teacher_s = _teacher_pass(teacher, seen, parts)
        pair = make_pair(teacher, student, parts, None, needed, len(pictures), chosen)
        with seeded(chosen.seed):
            method = Objective(terms, pair, 0.0)
        step_s = _step(student, method, features, chosen)
    passes = len(pictures) * (chosen.epochs if chosen.online else chosen.views)
    root = store_root(chosen, out)
    return Estimate(
        pictures=len(pictures),
        views=chosen.views,
        teacher_s=passes * (teacher_s + seen.decode_s),
        store_bytes=0 if chosen.online else passes * bytes_per_row(features, chosen.store_dtype, chosen.store_grid),
        store_root=root,
        free_bytes=shutil.disk_usage(_existing(root)).free,
        decoded_bytes=round(seen.pixel_bytes * len(pictures)),
        step_s=step_s,
        steps=chosen.epochs * (len(pictures) // chosen.batch_size),
        online=chosen.online,
    )


@dataclass(frozen=True)
class _Seen:
    """A few pictures at the teacher's size, seconds to decode one, and the bytes of one as decoded pixels."""

    pixels_BCHW: torch.Tensor
    decode_s: float
    pixel_bytes: float


def _see(pictures, teacher, student, settings: Settings) -> _Seen:
    from tinkit.device.pictures import Unreadable, decode

    policy = ViewPolicy(scale_min=settings.scale_min, seed=settings.seed)
    step = max(1, len(pictures) // PICTURES)
    views = AllViews(pictures, policy, [teacher.preprocessing], student.spec.preprocessing.crop_pct, numbers=[0])
    pixels, sizes = [], []
    began = time.monotonic()
    for index in range(0, len(pictures), step):
        found = views[index]
        if not isinstance(found, Broken):
            pixels.append(found)
    seconds = (time.monotonic() - began) / max(len(pixels), 1)
    for index in range(0, len(pictures), step):
        try:
            image = decode(pictures[index].read())
        except (Unreadable, OSError):
            continue
        sizes.append(3 * image.width * image.height)
    if not pixels:
        raise TinkitError("None of the pictures that were tried can be read.", where=settings.images)
    return _Seen(torch.cat(pixels), seconds, statistics.mean(sizes))


def _teacher_pass(teacher, seen: _Seen, parts) -> tuple[Features, float]:
    """Features of the pictures seen, and seconds a picture: the better of two passes."""
    times = []
    for _ in range(2):
        began = time.monotonic()
        features = teacher.features(seen.pixels_BCHW, parts)
        _wait(features.global_BD)
        times.append((time.monotonic() - began) / len(seen.pixels_BCHW))
    return features, min(times)


def _step(student, method: Objective, features: Features, settings: Settings) -> float:
    """Seconds of a training step of the whole batch on blank pictures: the best of a few after the first."""
    device = features.global_BD.device
    size, batch = student.spec.size, settings.batch_size
    distiller = Distiller(student, method, settings.seed).to(device).to(memory_format=torch.channels_last).train()
    rows = torch.arange(batch) % len(features.global_BD)
    teacher = _take(features, rows)
    method.fit(lambda: iter([_take(features, rows[: min(batch, 16)])] * 4))
    optimizer = make_optimizer(distiller, settings)
    pixels = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=device)
    labels_B = None if settings.labels is None else torch.zeros(batch, dtype=torch.int64, device=device)
    times = []
    for number in range(STEPS + 1):
        began = time.monotonic()
        images = normalise_on_device(pixels, student.spec.preprocessing)
        loss = distiller(images, teacher, torch.arange(batch, device=device), number, 0, labels_B)["loss"]
        loss.backward()
        optimizer.zero_grad()  # no step: the weights do not matter, and blank pictures would spoil the statistics
        _wait(loss)
        times.append(time.monotonic() - began)
    return min(times[1:])


def _take(features: Features, rows) -> Features:
    local_BLD = None if features.local_BLD is None else features.local_BLD[rows]
    logits_BC = None if features.logits_BC is None else features.logits_BC[rows]
    taps = {name: tap[rows] for name, tap in features.taps.items()}
    return Features(features.global_BD[rows], local_BLD, features.grid, logits_BC, taps)


def _wait(tensor: torch.Tensor) -> None:
    """Until the device has really computed it."""
    float(tensor.detach().flatten()[0])


def _existing(path) -> Path:
    """The nearest folder above that is there."""
    found = Path(path).absolute()
    while not found.exists():
        found = found.parent
    return found


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
