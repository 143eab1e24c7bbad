"""A sample of the training pictures for what is fitted once: PCA, a head on the teacher, a mapping after training."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from tinkit.host.features import Features
from tinkit.host.loop import worker_count
from tinkit.host.settings import Settings
from tinkit.host.store import ignore_interrupt
from tinkit.host.views import AllViews, collate, refuse_broken


class Sample:
    """The teacher on view 0 of at most `pca_pictures` training pictures, from the store or by the live teacher."""

    def __init__(self, teacher, pictures, policy, crop_pct, parts, store, settings: Settings, stop):
        self.teacher, self.parts, self.store, self.settings, self.stop = teacher, parts, store, settings, stop
        order = np.random.default_rng([settings.seed, 3]).permutation(len(pictures))
        self.chosen = np.sort(order[: settings.pca_pictures])
        self.pictures = [pictures[index] for index in self.chosen]
        self.policy, self.crop_pct = policy, crop_pct

    def __call__(self) -> Iterator[Features]:
        """Batches in the order of `chosen`; may be asked again."""
        for features in self._stored() if self.store is not None else self._live():
            yield features
            if self.stop():
                raise InterruptedError

    def _stored(self):
        for start in range(0, len(self.chosen), 256):
            rows = self.chosen[start : start + 256]
            yield self.store.features(rows, 0 * rows)

    def _live(self):
        for pixels in self.pixels(self.teacher.preprocessing):
            yield self.teacher.features(pixels, self.parts)

    def pixels(self, preprocessing) -> Iterator[torch.Tensor]:
        """Batches of uint8 (B,3,S,S) at a network's size."""
        views = AllViews(self.pictures, self.policy, [preprocessing], self.crop_pct, numbers=[0])
        loader = DataLoader(
            views,
            batch_size=64,
            num_workers=worker_count(self.settings),
            collate_fn=collate,
            worker_init_fn=ignore_interrupt,
        )
        for batch in loader:
            yield refuse_broken(batch)[:, 0]

    def globals(self) -> np.ndarray:
        """(N, D) float32 of the chosen pictures."""
        return np.concatenate([features.global_BD.cpu().numpy() for features in self()])
