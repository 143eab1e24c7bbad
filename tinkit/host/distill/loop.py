"""The training loop, top to bottom in one function, and the few things it needs: plan, schedule, one wrapped module.

Every random choice has an address: the order of an epoch and the views it uses follow from (seed, epoch), the learning
rate from the step. So a run continued from a checkpoint gives the same bits as one that was never stopped (one process,
CPU, same number of threads).
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from tinkit.errors import TinkitError
from tinkit.host.distill.pair import Batch
from tinkit.host.distill.settings import Settings
from tinkit.host.features import Features
from tinkit.host.store import FeatureStore, ignore_interrupt
from tinkit.host.student import Student
from tinkit.host.views import Views, collate, normalise_on_device, refuse_broken


class FeatureSource(Protocol):
    """Where the teacher's features of a batch come from: the store reads them, the live teacher computes them."""

    def lookup(self, pixels: list[torch.Tensor], index_B, number_B) -> Features: ...


@dataclass
class Cached:
    store: FeatureStore

    def lookup(self, pixels, index_B, number_B) -> Features:
        return self.store.features(index_B.numpy(), number_B.numpy())


@dataclass
class Live:
    """The second size of each view is the teacher's; `parts` as in the store."""

    teacher: Any
    parts: tuple[str, ...]

    def lookup(self, pixels, index_B, number_B) -> Features:
        return self.teacher.features(pixels[1], self.parts)


@dataclass
class WithHead:
    """Logits by a linear head on the teacher's global features, fitted on labelled pictures."""

    source: FeatureSource
    head: nn.Linear

    def lookup(self, pixels, index_B, number_B) -> Features:
        features = self.source.lookup(pixels, index_B, number_B)
        with torch.no_grad():
            features.logits_BC = self.head(features.global_BD.to(self.head.weight.device))
        return features


class Distiller(nn.Module):
    """Student and method as one module, so that any wrapper (mixed precision, DDP) sees one forward."""

    def __init__(self, student, method, seed=0):
        super().__init__()
        self.student, self.method, self.seed = student, method, seed

    def forward(self, images_BCHW, teacher: Features, index_B, step, epoch, labels_B=None):
        return self.method(Batch(self.student(images_BCHW), teacher, index_B, step, epoch, labels_B, self.seed))


class Plan:
    """The batches of one epoch, as lists of (picture, view number); what is left over at the end is dropped.

    With `views` 0 (online only) every epoch has a fresh view of each picture.
    """

    def __init__(self, pictures: int, views: int, batch_size: int, seed: int):
        self.pictures, self.views, self.batch_size, self.seed = pictures, views, batch_size, seed
        self.epoch, self.first = 0, 0

    def __len__(self):
        return self.pictures // self.batch_size - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, 1, self.epoch]).permutation(self.pictures)
        offset = np.random.default_rng([self.seed, 2]).integers(0, max(self.views, 1), self.pictures)
        number = (offset + self.epoch) % self.views if self.views else np.full(self.pictures, self.epoch)
        for batch in range(self.first, self.pictures // self.batch_size):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(int(row), int(number[row])) for row in rows]


def peak_learning_rate(settings: Settings, student: Student) -> float:
    """As asked for; else the paper's where there is softmax attention, and what a validation split preferred for a CNN."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return 5e-4 if student.has_attention else 5e-3


def learning_rate(step: int, steps: int, peak: float, settings: Settings) -> float:
    """Linear warm-up over the first `warmup` share of steps, then a cosine down to 2 % (the paper: 1e-5 of 5e-4)."""
    warm = max(1, round(settings.warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; no decay on biases and norms (1-D parameters)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups)


@dataclass
class State:
    """Where training stands; all of it goes into the checkpoint."""

    distiller: Distiller
    optimizer: torch.optim.Optimizer
    average: ModelEmaV3 | None
    epoch: int = 0
    batch: int = 0  # batches of this epoch already done
    step: int = 0
    history: list[dict] | None = None
    seconds: float = 0.0

    @property
    def best(self) -> Distiller:
        """What is evaluated and shipped: the running average when there is one."""
        return self.distiller if self.average is None else self.average.module

    def state_dict(self) -> dict:
        return {
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "place": {"epoch": self.epoch, "batch": self.batch, "step": self.step, "seconds": self.seconds},
            "history": self.history or [],
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state) -> None:
        self.distiller.load_state_dict(state["distiller"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        for name, value in state["place"].items():
            setattr(self, name, value)
        self.history = state["history"]
        torch.set_rng_state(state["random"])


def train(
    state: State,
    views: Views,
    source: FeatureSource,
    settings: Settings,
    fabric: Fabric,
    after_step: Callable[[dict], None],
    after_epoch: Callable[[], None],
    stop: Callable[[], bool],
    labels_N: torch.Tensor | None = None,
) -> bool:
    """Train to the last epoch. Returns False when `stop()` ended it early (state is consistent either way).

    `after_step` gets a record of the step; `after_epoch` is called with the epoch complete and counted.
    Raises TinkitError when the loss is not finite, naming step, part and pictures.
    """
    plan = Plan(len(views), settings.views, settings.batch_size, settings.seed)
    per_epoch = len(plan)
    workers = worker_count(settings)
    loader = DataLoader(
        views,
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=ignore_interrupt,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),
    )  # its own: loaders draw a seed every epoch
    wrapped, optimizer = fabric.setup(state.distiller, state.optimizer)
    model = torch.compile(wrapped) if settings.compile else wrapped
    images = state.distiller.student.spec.preprocessing
    peak = peak_learning_rate(settings, state.distiller.student)
    state.history = state.history or []

    while state.epoch < settings.epochs:
        plan.epoch, plan.first = state.epoch, state.batch
        wrapped.train()
        for batch in loader:
            began = time.monotonic()
            pixels, index_B, number_B = refuse_broken(batch)
            teacher = source.lookup(pixels, index_B, number_B)
            to = fabric.device
            parts = model(
                normalise_on_device(pixels[0].to(to, non_blocking=True), images),
                teacher.to(to),
                index_B.to(to),
                state.step,
                state.epoch,
                None if labels_N is None else labels_N[index_B].to(to),
            )
            values = {name: float(value.detach()) for name, value in parts.items()}
            refuse_not_finite(values, state, views, index_B)
            rate = learning_rate(state.step, settings.epochs * per_epoch, peak, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            fabric.backward(parts["loss"])
            if settings.clip:
                norm = fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip, error_if_nonfinite=False)
                refuse_not_finite({"gradient": float(norm if norm is not None else 0)}, state, views, index_B)
            optimizer.step()
            optimizer.zero_grad()
            state.step, state.batch = state.step + 1, state.batch + 1
            if state.average is not None:
                state.average.update(state.distiller, step=state.step)
            after_step(
                {
                    "step": state.step,
                    "epoch": state.epoch,
                    "lr": rate,
                    **values,
                    "step_ms": 1e3 * (time.monotonic() - began),
                }
            )
            if stop():
                return False
        state.epoch, state.batch = state.epoch + 1, 0
        after_epoch()
    return True


def refuse_not_finite(values, state: State, views: Views, index_B) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        names = [views.pictures[int(index)].name for index in index_B]
        raise TinkitError(
            f"The loss or its gradient is not finite at step {state.step}.",
            where="part " + ", ".join(bad),
            seen="pictures of the batch: " + ", ".join(names),
            next_step="look at these pictures, or start a new run with a lower --learning-rate",
        )


def worker_count(settings: Settings) -> int:
    """Loader processes: as asked for, else one for every two cores, from 1 to 8."""
    return settings.workers if settings.workers is not None else min(8, max(1, (os.cpu_count() or 1) // 2))


@contextlib.contextmanager
def threads_beside(workers):
    """On a CPU, leave the loaders their cores: torch's threads wait for each other, and one that must share a core
    holds up all. The number is put back afterwards."""
    before = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
