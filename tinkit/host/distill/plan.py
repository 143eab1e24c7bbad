"""Which pictures and views make each batch: drawn from (seed, epoch), so a run can be replayed from any batch on.

Several processes draw the same batches, and each takes its share of every one: the first process the first rows. So the
order of the pictures is the same on any number of devices, and a run may go on with another number.
"""

from collections.abc import Iterator

import numpy as np


class Plan:
    """The batches of each epoch, as lists of (picture, view number); what is left over at the end is dropped.

    pictures: how many there are, or the numbers of those that can be used. With `views` 0 (online only) every epoch has
    a fresh view of each picture. batch_size is the whole batch; process `rank` of `ranks` gets its share of each.
    ValueError when the batch has no equal shares.
    """

    def __init__(
        self, pictures: int | np.ndarray, views: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ):
        if batch_size % ranks:
            raise ValueError(f"{ranks} processes cannot share {batch_size} pictures")
        self.numbers_N = np.arange(pictures) if isinstance(pictures, int) else np.asarray(pictures, np.int64)
        self.views, self.batch_size, self.seed = views, batch_size, seed
        share = batch_size // ranks
        self.share = slice(rank * share, (rank + 1) * share)

    @property
    def batches(self) -> int:
        """Of a whole epoch."""
        return len(self.numbers_N) // self.batch_size

    def of_epoch(self, epoch: int, first: int = 0) -> Iterator[list[tuple[int, int]]]:
        """The epoch's batches from number `first` on."""
        pictures = len(self.numbers_N)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(pictures)
        offset = np.random.default_rng([self.seed, 2]).integers(0, max(self.views, 1), pictures)
        view = (offset + epoch) % self.views if self.views else np.full(pictures, epoch)
        for batch in range(first, self.batches):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size][self.share]
            yield [(int(self.numbers_N[row]), int(view[row])) for row in rows]

    def onwards(self, epoch: int, first: int, epochs: int) -> Iterator[list[tuple[int, int]]]:
        """The batches from number `first` of `epoch` to the end of a run of `epochs`."""
        for number in range(epoch, epochs):
            yield from self.of_epoch(number, first if number == epoch else 0)
