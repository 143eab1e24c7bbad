"""One step of training: forward, loss, backward, the gradient's length, the optimiser; and what goes around it for speed.

The numbers of a step come to the CPU at once, after the backward pass: on a GPU each look at a number waits for all that
was started before. The teacher's rows of the next batch are read while this one is worked on.
"""

import math
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import torch

from tinkit.errors import TinkitError
from tinkit.host.distill.micro import Passes
from tinkit.host.distill.state import State
from tinkit.host.views import Broken, Views


def ahead(loader, source) -> Generator[tuple, None, None]:
    """(batch of the loader, its teacher features) in order; where they are only read, one batch ahead in a thread.

    Errors come where the batch would have come. A batch that holds a broken picture comes without features.
    """
    batches = iter(loader)

    def fetch():
        for batch in batches:
            return batch, None if isinstance(batch, Broken) else source.lookup(*batch)
        return None

    if not source.reads:
        yield from iter(fetch, None)
        return
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(fetch)
        while (found := coming.result()) is not None:
            coming = thread.submit(fetch)
            yield found


def compiled(model, wish: str, device):
    """The model with its student compiled as `--compile` wants it. "auto" is off until it was measured to pay.

    "cuda-graphs" (torch's "reduce-overhead") is for small students, whose kernels are shorter than their launch.
    TinkitError for CUDA graphs without a GPU.
    """
    if wish == "cuda-graphs" and device.type != "cuda":
        raise TinkitError("CUDA graphs need a GPU.", seen=f"device {device}", next_step="--compile on, or off")
    if wish == "on":
        return torch.compile(model)
    return torch.compile(model, mode="reduce-overhead") if wish == "cuda-graphs" else model


def take_step(passes: Passes, inputs: tuple, wrapped, optimizer, clip: float, rate: float, refuse) -> dict[str, float]:
    """One step at learning rate `rate` with the arguments of `Distiller`. Returns the parts of the loss as numbers.

    `refuse(values)` is called with the parts, and then with the gradient's length, before a weight is changed.
    """
    parts = passes(*inputs)
    tensors = list(parts.values())
    if clip:
        norm = passes.fabric.clip_gradients(wrapped, optimizer, max_norm=clip, error_if_nonfinite=False)
        tensors += [norm] if norm is not None else []
    numbers = torch.stack([tensor.detach().float() for tensor in tensors]).tolist()
    values = dict(zip(parts, numbers))
    refuse(values)
    refuse({"gradient": numbers[-1]})
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return values


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
