"""A sample of the training pictures for what is fitted once: PCA, a head on the teacher, a mapping after training."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from tinkit.host.distill.settings import Settings
from tinkit.host.distill.threads import worker_count
from tinkit.host.features import Features
from tinkit.host.store import FeatureStore
from tinkit.host.store.pixels import readable
from tinkit.host.teacher import Teacher
from tinkit.host.views import AllViews, Views


class Sample:
    """The teacher on view 0 of at most `pca_pictures` of the training views' pictures.

    From the store, or by the live teacher where there is none. `among`: numbers of the pictures to draw from.
    """

    def __init__(
        self,
        teacher: Teacher,
        views: Views,
        store: FeatureStore | None,
        settings: Settings,
        stop: Callable[[], bool],
        among: Sequence[int] | np.ndarray | None = None,
    ):
        numbers = np.arange(len(views)) if among is None else np.asarray(among)
        order = np.random.default_rng([settings.seed, 3]).permutation(len(numbers))
        self.chosen = numbers[np.sort(order[: settings.pca_pictures])]
        self.pictures = [views.pictures[int(number)] for number in self.chosen]
        self.teacher, self.views, self.store, self.settings, self.stop = teacher, views, store, settings, stop

    def __call__(self) -> Iterator[Features]:
        """Global and local features in batches, in the order of `chosen`; may be asked again."""
        return self._batches(("local",) if self.settings.local else ())

    def globals(self) -> np.ndarray:
        """The global features, (N, D) float32."""
        return np.concatenate([features.global_BD.cpu().numpy() for features in self._batches(())])

    def pixels(self, preprocessing) -> Iterator[torch.Tensor]:
        """Batches of uint8 (B,3,S,S) at a network's size. InterruptedError when asked to stop."""
        views = AllViews(
            self.pictures,
            self.views.policy,
            [preprocessing],
            self.views.crop_pct,
            self.views.cache,
            self.views.decoder,
            self.views.device,
            numbers=[0],
        )
        for pixels in readable(views, worker_count(self.settings), self.stop):
            yield pixels[:, 0]

    def _batches(self, parts):
        if self.store is None:
            for pixels in self.pixels(self.teacher.preprocessing):
                yield self.teacher.features(pixels, parts)
            return
        for start in range(0, len(self.chosen), 256):
            rows = self.chosen[start : start + 256]
            yield self.store.features(rows, 0 * rows, parts)
            if self.stop():
                raise InterruptedError
