"""Which pictures and views make each batch: drawn from (seed, epoch), so an epoch can be replayed from any batch on."""

from collections.abc import Iterator

import numpy as np


class Plan:
    """The batches of one epoch, as lists of (picture, view number); what is left over at the end is dropped.

    With `views` 0 (online only) every epoch has a fresh view of each picture.
    """

    def __init__(self, pictures: int, views: int, batch_size: int, seed: int):
        self.pictures, self.views, self.batch_size, self.seed = pictures, views, batch_size, seed
        self.epoch, self.first = 0, 0

    def __len__(self):
        return self.pictures // self.batch_size - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, 1, self.epoch]).permutation(self.pictures)
        offset = np.random.default_rng([self.seed, 2]).integers(0, max(self.views, 1), self.pictures)
        number = (offset + self.epoch) % self.views if self.views else np.full(self.pictures, self.epoch)
        for batch in range(self.first, self.pictures // self.batch_size):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(int(row), int(number[row])) for row in rows]
