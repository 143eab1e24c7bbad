"""The training loop, top to bottom in one function.

Every random choice has an address: the order of an epoch and the views it uses follow from (seed, epoch), the learning
rate from the step. So a run continued from a checkpoint gives the same bits as one that was never stopped (one process,
CPU, same number of threads).
"""

import math
import time
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from tinkit.errors import TinkitError
from tinkit.host.distill.plan import Plan
from tinkit.host.distill.schedule import learning_rate, peak_learning_rate
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.source import FeatureSource
from tinkit.host.distill.state import State
from tinkit.host.distill.threads import worker_count
from tinkit.host.store import ignore_interrupt
from tinkit.host.views import Views, collate, normalise_on_device, refuse_broken


def train(
    state: State,
    plan: Plan,
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
    per_epoch = plan.batches
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
    model = torch.compile(wrapped) if settings.compile in ("on", "cuda-graphs") else wrapped
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
