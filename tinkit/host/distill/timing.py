"""The two networks timed on a few pictures, before a run: how long a view, the teacher and a step of training take.

The teacher sees a handful of the pictures; the student takes a few steps on noise, with features of the right shapes.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinkit.device.pictures import Unreadable, decode
from tinkit.errors import TinkitError
from tinkit.host.distill.objective import Objective
from tinkit.host.distill.schedule import make_optimizer
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.state import Distiller
from tinkit.host.features import Features
from tinkit.host.images import Picture
from tinkit.host.labels import Labels
from tinkit.host.memory import kept_memory
from tinkit.host.views import AllViews, Broken, ViewPolicy, Views, normalise_on_device

PICTURES, STEPS = 16, 3


@dataclass(frozen=True)
class Seen:
    """A few pictures at the teacher's size; seconds to make of one picture its stored views, and one view to train on,
    in one process; and the bytes of a picture as decoded pixels."""

    pixels_BCHW: torch.Tensor
    all_views_s: float
    view_s: float
    pixel_bytes: float


def see(pictures: Sequence[Picture], teacher, student, settings: Settings) -> Seen:
    policy, own = ViewPolicy(scale_min=settings.scale_min, seed=settings.seed), student.spec.preprocessing
    numbers = [0] if settings.online else list(range(settings.views))
    stored = AllViews(
        pictures, policy, [teacher.preprocessing], own.crop_pct, numbers=numbers, decoder=settings.decoder
    )
    sizes = [own, teacher.preprocessing] if settings.online else [own]
    trained = Views(pictures, policy, sizes, own.crop_pct, decoder=settings.decoder)
    chosen = np.unique(np.linspace(0, len(pictures) - 1, PICTURES).round().astype(int)).tolist()
    pixels, stored_s, trained_s, sizes_N = [], [], [], []
    for index in chosen:
        try:
            image = decode(pictures[index].read())
        except (Unreadable, OSError):
            continue
        sizes_N.append(3 * image.width * image.height)
        seconds, found = _timed(lambda index=index: stored[index])
        trained_s.append(_timed(lambda index=index: trained[index, 0])[0])
        if not isinstance(found, Broken):
            pixels.append(found[:1])
            stored_s.append(seconds)
    if not pixels:
        raise TinkitError(
            "None of the pictures that were tried can be read.",
            where=settings.images,
            seen=f"{len(chosen)} tried, the first {pictures[chosen[0]].path}",
            next_step="see that these are pictures; --scan full names what is wrong with each",
        )
    return Seen(torch.cat(pixels), statistics.median(stored_s), statistics.median(trained_s), statistics.mean(sizes_N))


def time_teacher(teacher, pixels_BCHW, parts) -> tuple[Features, float]:
    """Features of the pictures seen, and seconds a picture: the better of two passes."""
    times = []
    for _ in range(2):
        seconds, features = _timed(lambda: _waited_for(teacher.features(pixels_BCHW, parts)))
        times.append(seconds / len(pixels_BCHW))
    return features, min(times)


def time_step(student, method: Objective, features: Features, labels: Labels | None, settings: Settings) -> float:
    """Seconds of a training step of one device's share of the batch, on noise: the best of a few after the first.

    In pieces (--micro-batch) every picture goes through the student forward once more: a third of a step.
    """
    device, size = features.global_BD.device, student.spec.size
    share = settings.batch_size // settings.processes
    batch = min(settings.micro_batch or share, share)
    pieces = math.ceil(share / batch) * (4 / 3 if batch < share else 1)
    distiller = Distiller(student, method, settings.seed).to(device).to(memory_format=torch.channels_last).train()
    teacher = _like(features, batch)
    method.fit(lambda: iter([_like(features, batch)] * 4))
    optimizer = make_optimizer(distiller, settings)
    pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    index_B = torch.arange(batch, device=device)
    labels_B = None if labels is None else index_B % len(labels.classes)

    def step():
        images = normalise_on_device(pixels, student.spec.preprocessing)
        loss = distiller(images, teacher, index_B, 0, 0, labels_B, index_B)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    try:
        with kept_memory():
            return pieces * min([_timed(step)[0] for _ in range(STEPS + 1)][1:])
    except torch.OutOfMemoryError as error:
        raise TinkitError(
            "A batch does not fit the GPU.",
            seen=str(error).splitlines()[0][:200],
            next_step=f"--micro-batch {max(1, batch // 2)} (a run without it finds what fits by itself)",
        ) from None


def _like(features: Features, count: int) -> Features:
    """Noise in the shapes of these features, for `count` pictures."""

    def noise(tensor):
        return None if tensor is None else torch.randn(count, *tensor.shape[1:], device=tensor.device)

    taps = {name: noise(tap) for name, tap in features.taps.items()}
    return Features(
        noise(features.global_BD), noise(features.local_BLD), features.grid, noise(features.logits_BC), taps
    )


def _timed(action):
    """(seconds, result)."""
    began = time.monotonic()
    result = action()
    return time.monotonic() - began, result


def _waited_for(features: Features) -> Features:
    """These features, once the device has really computed them."""
    float(features.global_BD.detach().flatten()[0])
    return features
