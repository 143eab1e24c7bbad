"""The processes of one run, seen from inside one of them.

Every process has its device and its share of each batch. Lightning Fabric joins them (NCCL between GPUs, gloo between
CPUs); a second group of gloo, patient for a week, is for what is slow or uneven: the first process scans, evaluates and
writes alone, and the others wait for it. Whoever dies closes its sockets, and that ends the waiting of all others.
"""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as processes
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from tinkit.errors import TinkitError

STEP_TIMEOUT, PATIENCE = timedelta(minutes=30), timedelta(days=7)
T = TypeVar("T")
# What newer versions of torch call broadcast_buffers.
_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(nn.parallel.DistributedDataParallel).parameters
)


@dataclass(frozen=True)
class Ranks:
    """This process among the others. `control` is the patient group, None for a process that is alone."""

    fabric: Fabric
    control: Any = None

    @property
    def number(self) -> int:
        return self.fabric.global_rank

    @property
    def count(self) -> int:
        return self.fabric.world_size

    @property
    def first(self) -> bool:
        """Whether this is the one that scans, prints, logs and writes."""
        return self.number == 0

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def barrier(self) -> None:
        """Wait until all processes are here, however long the slowest takes."""
        if self.control is not None:
            self.any(False)

    def any(self, flag: bool) -> bool:
        """Whether it is true in one of the processes; all must ask at the same point."""
        if self.control is None:
            return flag
        seen = torch.tensor([int(flag)])
        processes.all_reduce(seen, processes.ReduceOp.MAX, group=self.control)
        return bool(seen)

    def share(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them. It must be plain data; when making it fails, all fail."""
        if self.control is None:
            return make()
        box = [make() if self.first else None]
        processes.broadcast_object_list(box, 0, group=self.control)
        return box[0]  # type: ignore[return-value]

    def share_on_node(self, make: Callable[[], T]) -> T:
        """What the first process of each node makes, in all processes of that node."""
        if self.control is None:
            return make()
        node = self.fabric.node_rank
        box: list[Any] = [None] * self.count
        own = (node, make()) if self.fabric.local_rank == 0 else None
        processes.all_gather_object(box, own, group=self.control)
        return next(found[1] for found in box if found is not None and found[0] == node)

    def equalise(self, module: nn.Module) -> None:
        """Every parameter and buffer as the first process has it: what is computed twice may differ in its last bits."""
        if self.control is None:
            return
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                whole = tensor.detach().to(self.device).contiguous()
                processes.broadcast(whole, 0)
                tensor.copy_(whole)


def started_by_others() -> tuple[int, int] | None:
    """(processes a node, nodes) when torchrun or SLURM has started this process and others; None for a process alone."""
    environment = _environment()
    if environment is None or environment.world_size() == 1:
        return None
    told = "LOCAL_WORLD_SIZE" if isinstance(environment, TorchElasticEnvironment) else "SLURM_NTASKS_PER_NODE"
    world = environment.world_size()
    devices = int(os.environ.get(told, world))
    if world % devices:
        raise TinkitError("The nodes must run equally many processes.", seen=f"{told} {devices}, {world} in all")
    return devices, world // devices


def speaks() -> bool:
    """Whether this process is the one that tells the user what came out: the first of those torchrun or SLURM started."""
    environment = _environment()
    return environment is None or environment.global_rank() == 0


def _environment() -> ClusterEnvironment | None:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    return SLURMEnvironment() if SLURMEnvironment.detect() else None


def alone() -> Ranks:
    """A run in one process."""
    return Ranks(Fabric(devices=1, precision=_precision()))


@contextlib.contextmanager
def join(devices: int, nodes: int, meeting: str | None = None, rank: int = 0) -> Iterator[Ranks]:
    """Meet the other processes, and leave them at the end. Raises TinkitError when this machine has too few GPUs.

    meeting: a file by which `rank` finds the others of this machine; None: as torchrun or SLURM told.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu and torch.cuda.device_count() < devices:
        raise TinkitError(
            "This machine has fewer GPUs than --devices.",
            seen=f"--devices {devices}, {torch.cuda.device_count()} GPUs",
            next_step="give fewer, or CUDA_VISIBLE_DEVICES= for the CPU",
        )
    if meeting is not None:
        _meet(meeting, rank, devices, on_gpu)
    # Methods may leave parameters of the student unused; buffers are equal without being sent round at every step.
    options: dict[str, Any] = {"find_unused_parameters": True, _BUFFERS: False}
    strategy = DDPStrategy(timeout=STEP_TIMEOUT, **options)
    accelerator = "cuda" if on_gpu else "cpu"
    fabric = Fabric(
        accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=nodes, precision=_precision()
    )
    complete = False
    try:
        fabric.launch()
        yield Ranks(fabric, processes.new_group(backend="gloo", timeout=PATIENCE))
        complete = True
    finally:  # one of our own that failed ends at once: it must have said why before its sockets close
        if processes.is_initialized() and (complete or meeting is None):
            processes.destroy_process_group()


def _meet(meeting: str, rank: int, count: int, on_gpu: bool) -> None:
    """Found by a file, so that no port must be free; Fabric takes the group as it finds it."""
    os.environ["LOCAL_RANK"] = str(rank)  # for Fabric: processes are there already
    if on_gpu:
        torch.cuda.set_device(rank)
    processes.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=processes.FileStore(meeting, count),
        rank=rank,
        world_size=count,
        timeout=STEP_TIMEOUT,
        device_id=torch.device("cuda", rank) if on_gpu else None,
    )


def is_loss(error: RuntimeError) -> bool:
    """Whether it says that another process has gone, in the words of gloo, NCCL or torch."""
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "peer", "Timed out")
    return isinstance(error, processes.DistError) or any(word in str(error) for word in words)


def _precision():
    return "bf16-mixed" if torch.cuda.is_available() else "32-true"
