"""Fills a store: pictures -> views -> teacher -> rows, batch after batch, in the shards that are this process's own.

The teacher never waits for the disk: rows are packed on its device, copied out and written by another thread, at most a
few batches behind. Rows that another store holds already are copied (`reuse`) and only the others computed; a batch is
then as many pictures as the teacher takes, and the copied ones between them.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tinkit.errors import TinkitError, from_os_error
from tinkit.host.features import LOCAL_ONLY, Features, resample_grid
from tinkit.host.memory import kept_memory
from tinkit.host.store.identity import TAP
from tinkit.host.store.pixels import Pixels, rendered
from tinkit.host.store.precision import DTYPES, SCALE, measured_loss, packed
from tinkit.host.store.reuse import Lenders
from tinkit.host.store.shards import Array, Layout, pictures_per_shard
from tinkit.host.store.writer import ShardWriter, Writing
from tinkit.host.teacher import Teacher
from tinkit.host.views import AllViews, Broken, refuse_broken

SPAN = 8  # a batch holds at most so many times the pictures that the teacher takes, copied ones included


@dataclass(frozen=True)
class Job:
    """What a store is made of and how: the teacher, the views, which arrays, in which dtype; `batch` views a pass.

    dtype: float16, float32 or int8 (a scale for each vector). grid: local features pooled to at most grid x grid.
    put_aside: a picture that cannot be read gets rows of zeros and is named, where otherwise it ends the work.
    """

    teacher: Teacher
    views: AllViews
    parts: tuple[str, ...] = LOCAL_ONLY  # what is stored besides the global feature: local, logits, taps
    dtype: str = "float16"
    workers: int = 0
    batch: int = 64
    grid: int | None = None
    put_aside: bool = False

    def __post_init__(self):
        if self.dtype not in DTYPES or (self.grid is not None and self.grid < 1):
            raise ValueError(f"dtype {self.dtype!r}, grid {self.grid!r}")

    @property
    def step(self) -> int:
        """Pictures a pass."""
        return max(1, self.batch // len(self.views.numbers))


def layout_of(job: Job, ranks: int) -> Layout:
    """How the store will lie on disk, seen on an empty picture."""
    size = job.views.sizes[0].size
    found, grid = wanted_arrays(job, job.teacher.features(torch.zeros(1, 3, size, size, dtype=torch.uint8), job.parts))
    arrays = {}
    for name, values in found.items():
        for stored, tensor in packed(name, values, job.dtype).items():
            arrays[stored] = Array(tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
    pictures, views = len(job.views.pictures), len(job.views.numbers)
    row_bytes = sum(array.row_bytes for array in arrays.values())
    return Layout(arrays, grid, pictures, views, pictures_per_shard(row_bytes, pictures, views, job.step, ranks))


def wanted_arrays(job: Job, features: Features) -> tuple[dict[str, torch.Tensor], tuple[int, int] | None]:
    """The arrays to store by name, and the grid of the local ones."""
    local, grid = features.local_BLD, features.grid
    if local is None or grid is None:
        grid = None
    elif job.grid is not None:
        wanted = (min(job.grid, grid[0]), min(job.grid, grid[1]))
        local, grid = resample_grid(local, tuple(grid), wanted), wanted
    found = {"global": features.global_BD, "local": local, "logits": features.logits_BC}
    found.update({TAP + name: tap for name, tap in features.taps.items()})
    return {name: values for name, values in found.items() if values is not None}, grid and (grid[0], grid[1])


@dataclass(frozen=True)
class Batch:
    """The pictures start..stop-1 of a shard; `missing`: those whose rows nobody lends, for the teacher."""

    writer: ShardWriter
    start: int
    stop: int
    missing: list[int]


def fill(job: Job, layout: Layout, folder, own: range, lenders: Lenders, tick, stop: Callable[[], bool] | None) -> None:
    """Compute or copy whatever is missing of the shards `own`.

    InterruptedError once `stop()` is true and TinkitError for a full disk, with all rows so far kept.
    """
    writers: list[ShardWriter] = []
    try:
        with kept_memory(), Writing() as writing:
            asked = deque[Batch]()
            batches = _noted(_batches(job, layout, folder, own, lenders, tick, writers, writing), asked)
            for pixels in rendered(job.views, (batch.missing for batch in batches), job.workers, stop):
                batch = asked.popleft()
                writing.submit(_write, batch, _computed(job, batch, pixels), lenders)
                tick(batch.stop - batch.start)
                if stop and stop():
                    raise InterruptedError
    except InterruptedError:
        raise
    except OSError as error:
        raise from_os_error(error, "writing the feature store") from error
    finally:
        for writer in writers:
            writer.close()


def _noted(batches, asked):
    for batch in batches:
        asked.append(batch)
        yield batch


def _batches(job, layout, folder, own, lenders, tick, writers, writing) -> Iterator[Batch]:
    """What is left to do, in order, shard after shard."""
    for shard in own:
        writer = ShardWriter(folder, layout, shard)
        writers[:] = [*(w for w in writers if not w.finished), writer]
        tick(writer.next - writer.pictures.start)
        if writer.finished:
            writer.close()
        elif writer.next == writer.pictures.stop:
            writing.submit(writer.finish)
        else:
            yield from _cut(writer, lenders, job.step)


def _cut(writer: ShardWriter, lenders: Lenders, step: int) -> Iterator[Batch]:
    """A shard's pictures from `next` on, `step` missing ones at a time."""
    start, missing = writer.next, []
    for picture in range(writer.next, writer.pictures.stop):
        if not lenders.has(picture):
            missing.append(picture)
        if len(missing) == step or picture + 1 - start == SPAN * step:
            yield Batch(writer, start, picture + 1, missing)
            start, missing = picture + 1, []
    if start < writer.pictures.stop:
        yield Batch(writer, start, writer.pictures.stop, missing)


@dataclass(frozen=True)
class Computed:
    """Rows on their way to the host: `ready()` waits for them. `bad`: {picture: reason}."""

    rows: dict[str, torch.Tensor]
    loss: dict[str, torch.Tensor]
    bad: dict[int, str]
    ready: Callable[[], Any]


def _computed(job: Job, batch: Batch, found: Pixels) -> Computed:
    bad = {batch.missing[place]: reason for place, reason in found.bad.items()}
    for picture, reason in bad.items():
        if not job.put_aside:
            refuse_broken(Broken(job.views.pictures[picture].path, reason))
    if not batch.missing:
        return Computed({}, {}, {}, lambda: None)
    values, _ = wanted_arrays(job, job.teacher.features(found.pixels.flatten(0, 1), job.parts))
    rows, loss = {}, {}
    for name, tensor in values.items():
        stored = packed(name, tensor, job.dtype)
        rows.update(stored)
        if job.dtype == "int8":
            loss[name] = measured_loss(name, tensor, stored)
    rows, ready = _to_host(rows)
    return Computed(rows, loss, bad, ready)


def _to_host(rows):
    """The rows in the host's memory, perhaps not yet arrived: the next batch's pass starts meanwhile."""
    if not any(tensor.is_cuda for tensor in rows.values()):
        return {name: tensor.contiguous() for name, tensor in rows.items()}, lambda: None
    moved = {}
    for name, tensor in rows.items():
        moved[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        moved[name].copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return moved, arrived.synchronize


def _write(batch: Batch, computed: Computed, lenders: Lenders) -> None:
    computed.ready()
    for name, tensor in computed.rows.items():
        _refuse_infinite(name, tensor)
    layout = batch.writer.layout
    rows = {name: tensor.numpy() for name, tensor in computed.rows.items()}
    places = (np.array(batch.missing, np.int64) - batch.start)[:, None] * layout.views + np.arange(layout.views)
    if len(batch.missing) < batch.stop - batch.start:
        borrowed = lenders.rows(np.setdiff1d(np.arange(batch.start, batch.stop), batch.missing))
        lent = np.setdiff1d(np.arange((batch.stop - batch.start) * layout.views), places)
        rows = {name: _merged(places.ravel(), rows.get(name), lent, borrowed[name]) for name in layout.arrays}
    elif computed.bad:
        rows = {name: array.copy() for name, array in rows.items()}
    for picture in computed.bad:
        first = (picture - batch.start) * layout.views
        for array in rows.values():
            array[first : first + layout.views] = 0
    loss = {name: measured.tolist() for name, measured in computed.loss.items()}
    batch.writer.append(batch.stop, rows, computed.bad, loss)


def _merged(places, computed, lent, borrowed):
    out = np.empty((len(places) + len(lent), *borrowed.shape[1:]), borrowed.dtype)
    out[lent] = borrowed
    if len(places):
        out[places] = computed
    return out


def _refuse_infinite(name, tensor):
    if tensor.is_floating_point() and tensor.numel() and not bool(torch.isfinite(torch.stack(tensor.aminmax())).all()):
        kind = "int8" if name.endswith(SCALE) else str(tensor.dtype).removeprefix("torch.")
        name = name.removesuffix(SCALE)
        raise TinkitError(
            f"The teacher's {name} features do not fit {kind}, or are not finite.",
            seen="NaN or infinite values",
            next_step="--store-dtype float32, or check the teacher's weights",
        )
