"""Where the teacher's features of a batch come from: the store reads them, the live teacher computes them."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from tinkit.host.features import Features
from tinkit.host.store import FeatureStore


class FeatureSource(Protocol):
    """Where the teacher's features of a batch come from: the store reads them, the live teacher computes them."""

    def lookup(self, pixels: list[torch.Tensor], index_B, number_B) -> Features: ...


@dataclass
class Cached:
    store: FeatureStore

    def lookup(self, pixels, index_B, number_B) -> Features:
        return self.store.features(index_B.numpy(), number_B.numpy())


@dataclass
class Live:
    """The second size of each view is the teacher's; `parts` as in the store."""

    teacher: Any
    parts: tuple[str, ...]

    def lookup(self, pixels, index_B, number_B) -> Features:
        return self.teacher.features(pixels[1], self.parts)


@dataclass
class WithHead:
    """Logits by a linear head on the teacher's global features, fitted on labelled pictures."""

    source: FeatureSource
    head: nn.Linear

    def lookup(self, pixels, index_B, number_B) -> Features:
        features = self.source.lookup(pixels, index_B, number_B)
        with torch.no_grad():
            features.logits_BC = self.head(features.global_BD.to(self.head.weight.device))
        return features
