"""The pixels of batches of pictures, for the teacher: rendered in guarded processes, or here where there are no workers.

A picture that cannot be read, or that ends or hangs the process that decodes it, costs itself alone: the batch it was in is
tried again one picture at a time, and its pixels are zeros with the reason beside them.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tinkit.host.decoders import decode_all, encoded_views
from tinkit.host.guard import Guarded, Lost
from tinkit.host.images.reading import LIMIT_S
from tinkit.host.views import AllViews, Broken, refuse_broken

TIMEOUT_S = 60.0 + LIMIT_S  # a batch may also wait for its network share


@dataclass(frozen=True)
class Pixels:
    """uint8 (B, K, 3, S, S), and why a picture of the batch has none: {place in the batch: reason}."""

    pixels: torch.Tensor
    bad: dict[int, str]


@dataclass(frozen=True)
class Render:
    """Picture numbers -> `Pixels`. Travels to worker processes."""

    views: AllViews

    def __call__(self, numbers: list[int]) -> Pixels:
        pixels, bad = self._zeros(len(numbers)), {}
        for place, number in enumerate(numbers):
            found = self.views[number]
            if isinstance(found, Broken):
                bad[place] = found.reason
            else:
                pixels[place] = found
        return Pixels(pixels, bad)

    def nothing(self, reason: str) -> Pixels:
        """For one picture that has no pixels."""
        return Pixels(self._zeros(1), {0: reason})

    def _zeros(self, pictures) -> torch.Tensor:
        size = self.views.sizes[0].size
        return torch.zeros(pictures, len(self.views.numbers), 3, size, size, dtype=torch.uint8)


@dataclass(frozen=True)
class Read:
    """Picture numbers -> their bytes and views (`decoders.encoded_views`), for pictures that are decoded on a GPU."""

    views: AllViews

    def __call__(self, numbers: list[int]) -> list:
        return encoded_views(self.views, numbers)

    def nothing(self, reason: str) -> list:
        return [reason]


def rendered(views: AllViews, batches: Iterable[list[int]], workers: int, stop=None) -> Iterator[Pixels]:
    """The pixels of each batch of picture numbers, in order; `batches` is asked a few batches ahead.

    On the views' device where pictures are decoded there.
    """
    found = _guarded(Read(views) if views.reads_only else Render(views), batches, workers, stop)
    return (Pixels(*decode_all(one, views)) for one in found) if views.reads_only else found


def readable(views: AllViews, workers: int, stop=None, size: int = 64) -> Iterator[torch.Tensor]:
    """The pixels of all pictures, uint8 (B, K, 3, S, S). TinkitError for one that cannot be read, InterruptedError."""
    batches = [list(range(start, min(start + size, len(views)))) for start in range(0, len(views), size)]
    for numbers, found in zip(batches, rendered(views, batches, workers, stop)):
        for place, reason in found.bad.items():
            refuse_broken(Broken(views.pictures[numbers[place]].path, reason))
        yield found.pixels


def _guarded(work: Render | Read, batches: Iterable[list[int]], workers: int, stop) -> Iterator:
    """What `work` makes of each batch; of a batch that was lost, of each picture alone."""
    asked = deque[list[int]]()

    def noted():
        for numbers in batches:
            asked.append(numbers)
            yield numbers

    with Guarded(work, workers, TIMEOUT_S) as guarded:
        for found in guarded.map(noted(), stop=stop):
            numbers = asked.popleft()
            yield _one_by_one(work, numbers) if isinstance(found, Lost) else found


def _one_by_one(work: Render | Read, numbers: list[int]) -> Any:
    found: list[Any] = []
    with Guarded(work, 1, TIMEOUT_S) as guarded:
        for answer in guarded.map([number] for number in numbers):
            found.append(work.nothing(answer.reason) if isinstance(answer, Lost) else answer)
    if isinstance(work, Read):
        return [one for (one,) in found]
    bad = {place: reason for place, one in enumerate(found) for reason in one.bad.values()}
    return Pixels(torch.cat([one.pixels for one in found]), bad)
