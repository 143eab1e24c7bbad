"""Distillation methods, one module a paper. A literal dict is the registry.

A method is an `nn.Module` with its own train-only parts. `forward(batch)` returns {"loss": ..., named parts};
`map_teacher(features)` gives the teacher's global feature in the student's space, or None where there is no mapping.
"""

from dataclasses import dataclass

import torch

from tinkit.host.features import Features
from tinkit.host.methods.tintem import TinTeM


@dataclass
class Batch:
    """One step's worth. index_B are picture numbers; the teacher's features are those of exactly these views."""

    student: Features
    teacher: Features
    index_B: torch.Tensor
    step: int
    epoch: int
    labels_B: torch.Tensor | None = None


METHODS = {"tintem": TinTeM, "cospress": TinTeM}
