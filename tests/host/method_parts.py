"""A made-up pair of networks and batches of random features, for the laws of the methods."""

from dataclasses import replace

import torch

from tinkit.host.distill.pair import Batch, Pair, Side, Tap
from tinkit.host.features import Features

STUDENT = Side(5, 5, (2, 3), (Tap("s1", 3, (4, 6)), Tap("s2", 4, (2, 3))))
TEACHER = Side(7, 7, (2, 3), (Tap("t0", 4, (8, 8)), Tap("t1", 5, (5, 5)), Tap("t2", 6, (3, 3))))


def pair(**changes) -> Pair:
    """Student 5 wide on a 2 x 3 grid with two taps, teacher 7 wide on the same grid with three, 4 classes."""
    return replace(Pair(STUDENT, TEACHER, classes=4, pictures=20, epochs=3, seed=0), **changes)


def features(side: Side, classes, count, generator, dtype) -> Features:
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    local_BLD = normal(count, side.grid[0] * side.grid[1], side.local_dim) if side.grid else None
    return Features(
        normal(count, side.dim),
        local_BLD,
        side.grid,
        normal(count, classes) if classes else None,
        {tap.name: normal(count, tap.channels, *tap.grid) for tap in side.taps},
    )


def batch(of: Pair, seed=0, dtype=torch.float64, B=6, labels=False) -> Batch:
    """Random features; the student's tensors are leaves that want gradient."""
    generator = torch.Generator().manual_seed(seed)
    student = features(of.student, of.classes, B, generator, dtype)
    teacher = features(of.teacher, of.classes, B, generator, dtype)
    for tensor in leaves(student):
        tensor.requires_grad_(True)
    labels_B = torch.randint(0, of.classes, (B,), generator=generator) if labels else None
    return Batch(student, teacher, torch.arange(B), step=0, epoch=0, labels_B=labels_B, seed=seed)


def leaves(of: Features) -> list[torch.Tensor]:
    """All tensors of the features that are there."""
    return [t for t in (of.global_BD, of.local_BLD, of.logits_BC, *of.taps.values()) if t is not None]
