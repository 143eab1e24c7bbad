"""A batch in pieces, where it does not fit the GPU: the same loss and the same gradient, in less memory and more time.

The loss compares the pictures of the whole batch, so summing the losses of pieces would be another loss. As in GradCache
(Gao, Zhang, Han, Callan 2021, arXiv 2101.06983): the student's features of every piece without a graph; the loss of all
of them, once, down to the features; then each piece again with its graph, and its share of that gradient. Random draws
are replayed. The features of the whole batch must fit. What differs from the whole batch: batch norm sees the pieces'
statistics (its running ones take in each piece once), and random depth or dropout draws for a piece.
"""

from typing import NamedTuple

import torch
import torch.distributed as processes

from tinkit.errors import TinkitError
from tinkit.host.distill.gather import count
from tinkit.host.distill.objective import tensors_of
from tinkit.host.features import joined


class Random(NamedTuple):
    """The state of torch's generators: the CPU's and one GPU's."""

    cpu: torch.Tensor
    gpu: torch.Tensor | None

    @classmethod
    def now(cls, device) -> "Random":
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None)

    def restore(self, device) -> None:
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, device)


class Passes:
    """Forward and backward of a batch, in pieces of `state.micro_batch`; on a GPU that is full the pieces are halved.

    `model` is the wrapped distiller, used for the whole batch. The step that failed is done again as if it had begun with
    smaller pieces. TinkitError when a single picture does not fit, and with several processes, which must agree.
    """

    def __init__(self, model, state, fabric, say):
        self.model, self.state, self.fabric, self.say = model, state, fabric, say
        self.before = Before(state.distiller) if can_run_out(fabric.device) else None

    def __call__(self, images_BCHW, *rest) -> dict[str, torch.Tensor]:
        """The parts of the loss, from the arguments of `Distiller`; gradients are added to the parameters'."""
        while True:
            size = min(self.state.micro_batch or len(images_BCHW), len(images_BCHW))
            if self.before is None:
                return self._pass(size, images_BCHW, *rest)
            self.before.keep(self.fabric.device)
            try:
                return self._pass(size, images_BCHW, *rest)
            except torch.OutOfMemoryError as error:
                seen = (str(error).splitlines() or [""])[0][:200]
            self._take_less(size, seen)  # outside of except: the error holds on to the tensors of the failed pass

    def _pass(self, size, images_BCHW, *rest):
        if size < len(images_BCHW):
            return in_pieces(self.state.distiller, self.fabric, size, images_BCHW, *rest)
        parts = self.model(images_BCHW, *rest)
        self.fabric.backward(parts["loss"])
        return parts

    def _take_less(self, size, seen):
        half = (size + 1) // 2
        if count() > 1 and size > 1:
            raise TinkitError(
                "The GPU of one process is full, and all must work on pieces of one size.",
                seen=seen,
                next_step=f"--resume with --micro-batch {half}",
            )
        if size == 1:
            raise TinkitError(
                "The GPU is full, even with one picture at a time.",
                seen=seen,
                next_step="a smaller --student-size or --batch-size, --no-local, or a GPU with more memory",
            )
        self.before.restore(self.fabric.device)
        for parameter in self.state.distiller.parameters():
            parameter.grad = None
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()
        self.state.micro_batch = half
        self.say(
            f"the GPU is full: {half} pictures at a time from here on. The loss still compares the whole batch; "
            "batch norm sees the smaller pieces"
        )


def can_run_out(device) -> bool:
    """Whether running out of memory is an error that can be mended: on a GPU; a CPU swaps or kills."""
    return device.type == "cuda"


class Before:
    """What a failed pass may have changed: the buffers (running statistics, memory banks) and the random state."""

    def __init__(self, module):
        self.buffers = [buffer for buffer in module.buffers() if buffer.numel()]
        self.copies = [torch.empty_like(buffer) for buffer in self.buffers]
        self.random: Random | None = None

    @torch.no_grad()
    def keep(self, device) -> None:
        _copy(self.copies, self.buffers)
        self.random = Random.now(device)

    @torch.no_grad()
    def restore(self, device) -> None:
        _copy(self.buffers, self.copies)
        if self.random is not None:
            self.random.restore(device)


def _copy(to, of):
    """In a few kernels rather than hundreds: those of one dtype together."""
    for dtype in {tensor.dtype for tensor in of}:
        chosen = [number for number, tensor in enumerate(of) if tensor.dtype == dtype]
        torch._foreach_copy_([to[number] for number in chosen], [of[number] for number in chosen])


def in_pieces(distiller, fabric, size: int, images_BCHW, *rest) -> dict[str, torch.Tensor]:
    """The parts of the whole batch's loss, `size` pictures at a time through the student.

    Gradients are added to the parameters', averaged over processes. `rest` are the other arguments of `Distiller`.
    """
    student, device, pieces = distiller.student, fabric.device, images_BCHW.split(size)
    draws, found = [], []
    with torch.no_grad(), fabric.autocast():
        for images in pieces:
            draws.append(Random.now(device))
            found.append(student(images))
    whole = joined(found)
    del found
    for leaf in tensors_of(whole).values():
        leaf.requires_grad_()
    with fabric.autocast():
        parts = distiller.loss(whole, *rest)
    fabric.backward(parts["loss"])
    after, statistics = Random.now(device), Before(student)
    statistics.keep(device)
    gradients = {name: leaf.grad for name, leaf in tensors_of(whole).items() if leaf.grad is not None}
    for number, images in enumerate(pieces):
        draws[number].restore(device)
        with fabric.autocast():
            again = tensors_of(student(images))
        shares = [gradient.split(size)[number] for gradient in gradients.values()]
        torch.autograd.backward([again[name] for name in gradients], shares)
    statistics.restore(device)  # the first round took these pieces in already
    after.restore(device)
    if count() > 1:
        _average([p for p in distiller.parameters() if p.requires_grad])
    return parts


def _average(parameters) -> None:
    """What DDP does behind its own backward pass; a parameter that one process did not use counts there as zero."""
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    processes.all_reduce(used, processes.ReduceOp.MAX)
    for parameter, anywhere in zip(parameters, used.tolist()):
        if anywhere:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            processes.all_reduce(parameter.grad)
            parameter.grad /= count()
