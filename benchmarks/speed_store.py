"""Stores of benchmarks/speed.py: being written beside the bare teacher, read at random, and of a million pictures."""

import os
import time

from speed_turns import device, in_turns, threads, workers


def store(work, teacher):
    """Pictures/s: the bare teacher on the loader, and the store being written; then its size, and random reads."""
    import numpy as np

    from tinkit.host.images import scan
    from tinkit.host.teacher import load_teacher

    name, size = teacher.split()
    count, folder = (10_000, "all") if int(size) < 128 else (300, "some")
    pictures = scan(os.path.join(work, folder)).usable[:count]
    teacher = load_teacher(name, size=int(size)).to(device())
    rounds = 3
    part = pictures[: min(len(pictures), 2000)]
    rates = in_turns({"bare": lambda: _bare_teacher(part, teacher), "written": lambda: _written(work, part, teacher)[0]},
                     rounds)  # fmt: skip
    rate, kept = _written(work, pictures, teacher)
    random = np.random.default_rng(0)
    reads = []
    for _ in range(60):
        rows = random.integers(0, len(pictures), 64)
        began = time.monotonic()
        kept.features(rows, 0 * rows)
        reads.append(64 / (time.monotonic() - began))
    rates.update(in_turns({"given back": lambda: _given_back(work, part, teacher)}, rounds))
    return {**rates, "whole": rate, "pictures": len(pictures), "reads": reads[10:], "bytes": _bytes(kept, len(pictures)),
            "int8": _int8(work, part[:500], teacher)}  # fmt: skip


def _all_views(pictures, teacher):
    from tinkit.host.views import AllViews, ViewPolicy

    return AllViews(pictures, ViewPolicy(), [teacher.preprocessing], 0.9, numbers=[0])


def _bare_teacher(pictures, teacher):
    from torch.utils.data import DataLoader

    from tinkit.host.memory import kept_memory
    from tinkit.host.store import ignore_interrupt
    from tinkit.host.views import collate

    began = time.monotonic()
    with threads(), kept_memory():
        for pixels in DataLoader(_all_views(pictures, teacher), batch_size=64, num_workers=workers(), collate_fn=collate,
                                 worker_init_fn=ignore_interrupt):  # fmt: skip
            teacher.features(pixels.flatten(0, 1), ("local",))
    return len(pictures) / (time.monotonic() - began)


def _written(work, pictures, teacher, **options):
    """(pictures/s, the store) of a store written anew."""
    import shutil

    from tinkit.host.store import open_or_build

    root = os.path.join(work, "stores")
    shutil.rmtree(root, ignore_errors=True)
    began = time.monotonic()
    with threads():
        kept = open_or_build(root, teacher, _all_views(pictures, teacher), workers=workers(), **options)
    return len(pictures) / (time.monotonic() - began), kept


def _given_back(work, pictures, teacher):
    """Pictures/s of a store that is written while memory goes back to the system after every batch."""
    from contextlib import nullcontext
    from unittest import mock

    with mock.patch("tinkit.host.store.build.kept_memory", nullcontext):
        return _written(work, pictures, teacher)[0]


def _bytes(kept, pictures):
    return (
        sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(kept.path) for name in names)
        / pictures
    )


def _int8(work, pictures, teacher):
    """Bytes a picture as int8, and the cosine of each vector to what the teacher said: mean and worst, as tinkit tells it."""
    kept = _written(work, pictures, teacher, dtype="int8")[1]
    loss = {name: {"mean": one.cosine_mean, "worst": one.cosine_worst} for name, one in kept.loss.items()}
    return {"bytes": _bytes(kept, len(pictures)), **loss}


def memory(work, count):
    """Peak memory in MB while a store of `count` made-up pictures is built; pictures/s with a teacher that costs nothing."""
    import shutil

    import numpy as np
    import torch

    from tinkit.device.board import peak_memory_mb
    from tinkit.host.features import Features
    from tinkit.host.images.catalogue import catalogue_of
    from tinkit.host.store import open_or_build
    from tinkit.host.views import AllViews, ViewPolicy
    from tinkit.pixels import Preprocessing

    class Blank(AllViews):
        def __getitem__(self, index):
            return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    class Instant:
        def __init__(self):
            self.identity = {"name": "instant"}

        def features(self, pixels_BCHW, parts=()):
            return Features(torch.ones(len(pixels_BCHW), 64))

    count, began = int(count), time.monotonic()
    addresses = np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)
    names = (f"folder-{n % 1000:03d}/picture-{n:07d}.jpg" for n in range(count))
    pictures = catalogue_of("/made-up", names, addresses)
    listed_s, listing_mb = time.monotonic() - began, peak_memory_mb()
    root = os.path.join(work, "stores")
    shutil.rmtree(root, ignore_errors=True)
    own = Preprocessing(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    began = time.monotonic()
    open_or_build(root, Instant(), Blank(pictures, ViewPolicy(), [own], 1.0, numbers=[0]), parts=(), batch=512)
    seconds, peak_mb = time.monotonic() - began, peak_memory_mb()
    return {
        "pictures": count,
        "listed_s": listed_s,
        "listing_mb": listing_mb,
        "peak_mb": peak_mb,
        "per_s": count / seconds,
    }
