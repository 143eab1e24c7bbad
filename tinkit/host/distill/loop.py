"""The training loop, top to bottom in one function.

Every random choice has an address: the order of an epoch and the views it uses follow from (seed, epoch), the learning
rate from the step. So a run continued from a checkpoint gives the same bits as one that was never stopped (one process,
CPU, same number of threads).
"""

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import islice

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from tinkit.host.decoders import EncodedViews, collate_encoded, decoded
from tinkit.host.distill.micro import Passes
from tinkit.host.distill.plan import Plan
from tinkit.host.distill.schedule import learning_rate, peak_learning_rate
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.source import FeatureSource
from tinkit.host.distill.state import State
from tinkit.host.distill.step import ahead, compiled, refuse_not_finite, take_step
from tinkit.host.distill.threads import worker_count
from tinkit.host.memory import kept_memory
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
    say: Callable[[str], None] | None = None,
) -> bool:
    """Train to the last epoch. Returns False when `stop()` ended it early (state is consistent either way).

    `after_step` gets a record of the step; `after_epoch` is called with the epoch complete and counted.
    `say` is told when the GPU is full and batches are taken in pieces. Raises TinkitError when the loss is not finite,
    naming step, part and pictures.
    """
    workers = worker_count(settings)
    loader = DataLoader(
        EncodedViews(views.pictures, views.policy, views.crop_pct) if views.reads_only else views,
        batch_sampler=plan.onwards(state.epoch, state.batch, settings.epochs),
        num_workers=workers,
        collate_fn=collate_encoded if views.reads_only else collate,
        worker_init_fn=ignore_interrupt,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),  # its own: a loader draws a seed
    )
    wrapped, optimizer = fabric.setup(state.distiller, state.optimizer)
    device, images = fabric.device, state.distiller.student.spec.preprocessing
    state.micro_batch = settings.micro_batch or state.micro_batch
    passes = Passes(compiled(wrapped, settings.compile, device), state, fabric, say or fabric.print)
    steps, peak = settings.epochs * plan.batches, peak_learning_rate(settings, state.distiller.student)
    state.history = state.history or []

    coming = ahead(decoded(loader, views), source)  # of all epochs: the next begins while one ends
    with kept_memory(), closing(coming) as batches:
        while state.epoch < settings.epochs:
            wrapped.train()
            for batch, teacher in islice(batches, plan.batches - state.batch):
                began = time.monotonic()
                pixels, index_B, number_B = refuse_broken(batch)
                inputs = (
                    normalise_on_device(pixels[0].to(device, non_blocking=True), images),
                    teacher.to(device),
                    index_B.to(device),
                    state.step,
                    state.epoch,
                    None if labels_N is None else labels_N[index_B].to(device),
                    source.rows(index_B, number_B),
                )
                rate = learning_rate(state.step, steps, peak, settings)
                refuse = partial(refuse_not_finite, state=state, views=views, index_B=index_B)
                values = take_step(passes, inputs, wrapped, optimizer, settings.clip, rate, refuse)
                state.step, state.batch = state.step + 1, state.batch + 1
                if state.average is not None:
                    state.average.update(state.distiller, step=state.step)
                taken = {"step_ms": 1e3 * (time.monotonic() - began)}
                after_step({"step": state.step, "epoch": state.epoch, "lr": rate, **values, **taken})
                if stop():
                    return False
            state.epoch, state.batch = state.epoch + 1, 0
            after_epoch()
    return True
