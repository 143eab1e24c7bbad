"""How the cores are shared between the loaders' processes and torch's threads."""

import contextlib
import os

import torch

from tinkit.host.distill.settings import Settings


def worker_count(settings: Settings) -> int:
    """Loader processes of a device: as asked for, else one for every two of its share of the cores, from 1 to 8."""
    cores = (os.cpu_count() or 1) // settings.devices
    return settings.workers if settings.workers is not None else min(8, max(1, cores // 2))


@contextlib.contextmanager
def threads_beside(workers, devices=1):
    """On a CPU, leave the loaders and the processes of other devices their cores: torch's threads wait for each other,
    and one that must share a core holds up all. The number is put back afterwards."""
    before = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, min(before, (os.cpu_count() or 1) // devices - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
