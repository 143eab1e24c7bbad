"""Where the teacher's features of a batch come from: the store reads them, the live teacher computes them."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from tinkit.host.features import Features, joined
from tinkit.host.store import FeatureStore


class FeatureSource(Protocol):
    """Where the teacher's features of a batch come from: the store reads them, the live teacher computes them.

    `reads`: a look-up costs little and may be made ahead, in a thread. `rows` are numbers of the views, None where the
    teacher is live.
    """

    @property
    def reads(self) -> bool: ...

    def lookup(self, pixels: list[torch.Tensor], index_B, number_B) -> Features: ...

    def rows(self, index_B, number_B) -> torch.Tensor | None: ...


@dataclass
class Cached:
    """Reads the store."""

    store: FeatureStore
    reads = True

    def lookup(self, pixels, index_B, number_B) -> Features:
        return self.store.features(index_B.numpy(), number_B.numpy())

    def rows(self, index_B, number_B):
        return index_B * self.store.views + number_B


@dataclass
class Live:
    """The second size of each view is the teacher's; `parts` as in the store; `batch` pictures at a time (None: all)."""

    teacher: Any
    parts: tuple[str, ...]
    batch: int | None = None
    reads = False

    def lookup(self, pixels, index_B, number_B) -> Features:
        found = [self.teacher.features(some, self.parts) for some in pixels[1].split(self.batch or len(pixels[1]))]
        return found[0] if len(found) == 1 else joined(found)

    def rows(self, index_B, number_B):
        return None


@dataclass
class WithHead:
    """Logits by a linear head on the teacher's global features, fitted on labelled pictures."""

    source: FeatureSource
    head: nn.Linear

    @property
    def reads(self) -> bool:
        return self.source.reads

    def rows(self, index_B, number_B):
        return self.source.rows(index_B, number_B)

    def lookup(self, pixels, index_B, number_B) -> Features:
        features = self.source.lookup(pixels, index_B, number_B)
        with torch.no_grad():
            features.logits_BC = self.head(features.global_BD.to(self.head.weight.device))
        return features
