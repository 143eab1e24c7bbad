"""Student and method as one module, and where their training stands: all that a checkpoint holds."""

from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import nn

from tinkit.host.distill.pair import Batch
from tinkit.host.features import Features


class Distiller(nn.Module):
    """Student and method as one module, so that any wrapper (mixed precision, DDP) sees one forward."""

    def __init__(self, student, method, seed=0):
        super().__init__()
        self.student, self.method, self.seed = student, method, seed

    def forward(self, images_BCHW, teacher: Features, index_B, step, epoch, labels_B=None, row_B=None):
        return self.loss(self.student(images_BCHW), teacher, index_B, step, epoch, labels_B, row_B)

    @torch.compiler.disable  # only the student is compiled: methods look at numbers and draw
    def loss(self, student: Features, teacher: Features, index_B, step, epoch, labels_B=None, row_B=None):
        """The parts of the loss of the student's features."""
        return self.method(Batch(student, teacher, index_B, step, epoch, labels_B, self.seed, row_B))


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
    micro_batch: int | None = None  # pictures of one pass through the student, where the batch does not fit

    @property
    def best(self) -> Distiller:
        """What is evaluated and shipped: the running average when there is one."""
        return self.distiller if self.average is None else self.average.module

    def state_dict(self) -> dict:
        return {
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "place": {name: getattr(self, name) for name in ("epoch", "batch", "step", "seconds", "micro_batch")},
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
