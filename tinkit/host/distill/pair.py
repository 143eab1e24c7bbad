"""What a distillation method is told: the shapes of teacher and student before training, and a batch at every step.

Legend: B pictures of a batch, D width, L positions of a grid, C classes (logits) or channels (taps), N training pictures.
"""

from dataclasses import dataclass

import torch

from tinkit.host.distill.gather import rank
from tinkit.host.features import Features


@dataclass(frozen=True)
class Tap:
    """A feature map inside a network: its name (timm's module), channels, and (height, width)."""

    name: str
    channels: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class Side:
    """One network of the pair. local_dim and grid are None without local features; taps run from shallow to deep."""

    dim: int
    local_dim: int | None = None
    grid: tuple[int, int] | None = None
    taps: tuple[Tap, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Teacher and student as a method sees them. `classes` is the width of both logits, None where there are none."""

    student: Side
    teacher: Side
    classes: int | None = None
    pictures: int = 0  # N, for memory banks: index_B runs over 0..N-1
    epochs: int = 1
    pooled: bool = False  # the teacher's global feature is its own pooled vector, not of the local features' space
    seed: int = 0


@dataclass
class Batch:
    """One step's worth. The teacher's features are those of exactly these views; nothing of it carries gradient.

    index_B are picture numbers, labels_B class numbers with -1 for a picture without a label (None: no labels at all).
    row_B tells the teacher's views apart (rows of the store): what a method works out of a view it may keep under that
    number. None with a live teacher.
    """

    student: Features
    teacher: Features
    index_B: torch.Tensor
    step: int
    epoch: int
    labels_B: torch.Tensor | None = None
    seed: int = 0
    row_B: torch.Tensor | None = None  # on the CPU

    def generator(self) -> torch.Generator:
        """Randomness of this step and process alone, on the CPU: the same after a resume, and on every device."""
        return torch.Generator().manual_seed(((self.seed * 1_000_003 + self.step) * 1_009 + rank()) % 2**63)
