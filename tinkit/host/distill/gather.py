"""The whole batch of several processes, with gradient; a single process gets its own rows back.

Each process computes the same loss over all rows, and the gradient of a gathered row comes back summed over the
processes; DDP's mean over processes then gives exactly the gradient of one process with the whole batch.
"""

import torch
import torch.distributed as processes


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(B, ...) of every process, in rank order, as (B * processes, ...). All must bring the same B."""
    return _Gather.apply(rows) if several() else rows


def several() -> bool:
    """Whether this is one of several processes."""
    return processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1


def rank() -> int:
    """The number of this process among several; 0 when it is alone."""
    return processes.get_rank() if several() else 0


def count() -> int:
    """How many processes work on one batch."""
    return processes.get_world_size() if several() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(processes.get_world_size())]
        processes.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous().clone()
        processes.all_reduce(total)
        return total.chunk(processes.get_world_size())[processes.get_rank()]
