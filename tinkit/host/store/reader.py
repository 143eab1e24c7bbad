"""A finished store, opened for reading: rows by picture and view out of memory-mapped shards.

Sizes and journals are checked on opening; the bytes against their hashes at once in a small store, and in a large one batch
by batch when first read, so that opening a terabyte takes seconds and a flipped bit is refused all the same.
"""

import contextlib
import fcntl
import hashlib
import os
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tinkit.errors import TinkitError
from tinkit.host.features import Features
from tinkit.host.store.identity import TAP
from tinkit.host.store.precision import SCALE, Loss, loss_of, unpacked
from tinkit.host.store.shards import USED, Layout, damaged, file_of, journal_of, read_journal

CHECKED_AT_ONCE = 4 << 30  # bytes
OPEN_MAPS = 256


class Shards:
    """The arrays of a store over all its shards, in the dtypes that are stored. Raises TinkitError for damage.

    `bad`: {number of a picture put aside: reason}. `loss`: what int8 cost, by array.
    """

    def __init__(self, path, layout: Layout):
        self.path, self.layout = path, layout
        self.maps: OrderedDict[tuple[int, str], np.ndarray] = OrderedDict()
        self.bad: dict[int, str] = {}
        self.loss: dict[str, Loss] = {}
        self.journals = [self._journal(shard) for shard in range(layout.shards)]

    def _journal(self, shard) -> "Hashes":
        pictures = self.layout.pictures_of(shard)
        try:
            with open(journal_of(self.path, shard), "rb") as handle:
                journal = read_journal(handle.read(), pictures)
        except FileNotFoundError:
            raise damaged(self.path, shard, "the journal is missing") from None
        if not journal.finished:
            raise damaged(self.path, shard, "the journal has a line that is cut or changed")
        for name, array in self.layout.arrays.items():
            where, expected = file_of(self.path, shard, name), len(pictures) * self.layout.views * array.row_bytes
            seen = os.path.getsize(where) if os.path.exists(where) else 0
            if seen != expected:
                raise damaged(self.path, shard, f"{seen} bytes, expected {expected}", where)
        for line in journal.lines:
            self.bad.update(line.bad)
            for name, measured in line.loss.items():
                own = loss_of(measured)
                self.loss[name] = self.loss[name] + own if name in self.loss else own
        ends = np.array([(line.stop - pictures.start) * self.layout.views for line in journal.lines], np.int64)
        names = list(self.layout.arrays)
        hashes = b"".join(bytes.fromhex(line.sha256[name]) for line in journal.lines for name in names)
        table = np.frombuffer(hashes, np.uint8).reshape(len(ends), len(names), 32)
        return Hashes(ends, table, np.zeros((len(ends), len(names)), bool))

    def check(self) -> None:
        """Hold all bytes against their hashes now."""
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            list(threads.map(self._check_shard, range(self.layout.shards)))

    def _check_shard(self, shard):
        rows = np.arange(self.journals[shard].ends[-1])
        for name in self.layout.arrays:
            self._check_rows(shard, name, rows)

    def _check_rows(self, shard, name, rows) -> None:
        """Check the batches that hold these rows of the shard, those that were not checked before."""
        journal, column = self.journals[shard], list(self.layout.arrays).index(name)
        if journal.checked[:, column].all():
            return
        batches = np.unique(np.searchsorted(journal.ends, rows, "right"))
        for batch in batches[~journal.checked[batches, column]]:
            start = int(journal.ends[batch - 1]) if batch else 0
            data: Any = self._map(shard, name)[start : int(journal.ends[batch])]
            if hashlib.sha256(memoryview(data).cast("B")).digest() != journal.table[batch, column].tobytes():
                seen = f"the rows {start}..{journal.ends[batch]} have another hash than when they were written"
                raise damaged(self.path, shard, seen, file_of(self.path, shard, name))
            journal.checked[batch, column] = True

    def _map(self, shard, name) -> np.ndarray:
        key = (shard, name)
        found = self.maps.get(key)
        if found is None:
            array = self.layout.arrays[name]
            shape = (len(self.layout.pictures_of(shard)) * self.layout.views, *array.shape)
            found = np.asarray(np.memmap(file_of(self.path, shard, name), array.dtype, "r", shape=shape))
            self.maps[key] = found
            while len(self.maps) > OPEN_MAPS:
                with contextlib.suppress(KeyError):
                    self.maps.popitem(last=False)
        return found

    def __len__(self):
        return self.layout.pictures * self.layout.views

    def rows(self, name, rows_B) -> np.ndarray:
        """The rows of one array, a copy; of any shards in any order."""
        rows_B = np.asarray(rows_B, np.int64)
        if rows_B.size and not 0 <= rows_B.min() <= rows_B.max() < len(self):
            raise IndexError(f"rows {rows_B.min()}..{rows_B.max()} of {len(self)}")
        shards_B, within_B = np.divmod(rows_B, self.layout.rows_per_shard)
        first = int(shards_B[0]) if len(rows_B) else 0
        if (shards_B == first).all():
            return self._gathered(first, name, within_B)
        array = self.layout.arrays[name]
        out = np.empty((len(rows_B), *array.shape), array.dtype)
        order = np.argsort(shards_B, kind="stable")
        edges = np.flatnonzero(np.diff(shards_B[order])) + 1
        for places in np.split(order, edges):
            out[places] = self._gathered(int(shards_B[places[0]]), name, within_B[places])
        return out

    def _gathered(self, shard, name, within) -> np.ndarray:
        self._check_rows(shard, name, within)
        return self._map(shard, name).take(within, axis=0)

    def view(self, name, rows: range) -> np.ndarray | None:
        """The rows as a view of the memory map, where they lie in one shard."""
        if not len(rows) or rows[0] // self.layout.rows_per_shard != rows[-1] // self.layout.rows_per_shard:
            return None
        shard, start = divmod(rows[0], self.layout.rows_per_shard)
        self._check_rows(shard, name, np.array(rows) - (rows[0] - start))
        return self._map(shard, name)[start :: rows.step][: len(rows)] if rows.step > 0 else None


@dataclass(frozen=True)
class Hashes:
    """Of one shard: where each batch's rows end, sha256 (batches, arrays, 32), and which were held against the bytes."""

    ends: np.ndarray
    table: np.ndarray
    checked: np.ndarray


class InUse:
    """Stamps a store as used now, and holds it against removal for as long as this object lives.

    On a read-only disk it does neither: nobody can remove the store there.
    """

    def __init__(self, path):
        with contextlib.suppress(OSError):
            handle = os.open(os.path.join(path, USED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, handle)
            os.utime(handle)
            fcntl.flock(handle, fcntl.LOCK_SH)


@dataclass(frozen=True)
class FeatureStore:
    """A finished store, opened for reading.

    `views`: K, of each picture. `grid`: (height, width) of the local features. `bad`: sorted numbers of pictures put aside,
    whose rows are zeros; `bad_reasons` says why. `pictures_N`, `offsets_K`: where this store's pictures and views are in the
    shards, None for in order.
    """

    path: str
    views: int
    shards: Shards
    pictures_N: np.ndarray | None = None
    offsets_K: np.ndarray | None = None
    in_use: InUse | None = field(default=None, repr=False)

    def __len__(self):
        return self.shards.layout.pictures if self.pictures_N is None else len(self.pictures_N)

    @property
    def grid(self) -> tuple[int, int] | None:
        return self.shards.layout.grid

    @property
    def loss(self) -> dict[str, Loss]:
        """What int8 cost when it was written, by array; empty for other dtypes."""
        return self.shards.loss

    @property
    def bad(self) -> np.ndarray:
        return np.array(sorted(self.bad_reasons), np.int64)

    @property
    def bad_reasons(self) -> dict[int, str]:
        # A store opened through another's rows holds none of its bad pictures.
        return self.shards.bad if self.pictures_N is None else {}

    @property
    def arrays(self) -> dict[str, "Column"]:
        """Every array by name, a row for each view of each picture: row = picture * K + view."""
        return {name: Column(self, name) for name in self.shards.layout.arrays if not name.endswith(SCALE)}

    def features(self, pictures_B, views_B, parts=None, dtype: torch.dtype | None = torch.float32) -> Features:
        """`Features` of the given picture indices and view numbers; all that is stored, or the named parts.

        dtype None: as stored (float16 to be widened on the GPU, say); int8 comes as float32 then.
        """
        rows_B = self._stored_rows(np.asarray(pictures_B, np.int64), np.asarray(views_B, np.int64))
        taken = {
            name: self._tensor(name, rows_B, dtype)
            for name in self.arrays
            if parts is None or name == "global" or name in parts or (name.startswith(TAP) and "taps" in parts)
        }
        taps = {name[len(TAP) :]: rows for name, rows in taken.items() if name.startswith(TAP)}
        return Features(taken["global"], taken.get("local"), self.grid, taken.get("logits"), taps)

    def _stored_rows(self, pictures_B, views_B) -> np.ndarray:
        if self.pictures_N is not None:
            pictures_B = self.pictures_N[pictures_B]
        if self.offsets_K is not None:
            views_B = self.offsets_K[views_B]
        return pictures_B * self.shards.layout.views + views_B

    def _tensor(self, name, rows_B, dtype) -> torch.Tensor:
        scale = name + SCALE
        scales = torch.from_numpy(self.shards.rows(scale, rows_B)) if scale in self.shards.layout.arrays else None
        return unpacked(torch.from_numpy(self.shards.rows(name, rows_B)), scales, dtype)

    def global_rows(self, view=0) -> np.ndarray:
        """The global features of one view of all pictures, (N, D); float16 or float32 as stored, int8 as float32."""
        return self.arrays["global"][view :: self.views]


@dataclass(frozen=True)
class Column:
    """One array of a store as if it were in memory: length, shape, dtype, indexing by number, slice or numbers."""

    store: FeatureStore
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.store.shards.layout.arrays[self.name].shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        own = np.dtype(self.store.shards.layout.arrays[self.name].dtype)
        return np.dtype(np.float32) if own == np.int8 else own

    def __len__(self):
        return len(self.store) * self.store.views

    def __getitem__(self, which) -> np.ndarray:
        if isinstance(which, slice):
            rows = range(len(self))[which]
            in_place = None if self._is_moved else self.store.shards.view(self.name, rows)
            return self._rows(np.arange(rows.start, rows.stop, rows.step)) if in_place is None else in_place
        if isinstance(which, tuple):
            return self[which[0]][(slice(None),) + which[1:]]
        which = np.asarray(which)
        rows = np.arange(len(self))[which] if which.dtype == bool else np.where(which < 0, which + len(self), which)
        return self._rows(rows.ravel()).reshape(*rows.shape, *self.shape[1:])

    @property
    def _is_moved(self) -> bool:
        store = self.store
        return store.pictures_N is not None or store.offsets_K is not None or self.dtype != self._stored_dtype

    @property
    def _stored_dtype(self) -> np.dtype:
        return np.dtype(self.store.shards.layout.arrays[self.name].dtype)

    def _rows(self, rows) -> np.ndarray:
        stored = self.store._stored_rows(*np.divmod(rows, self.store.views))
        return self.store._tensor(self.name, stored, None).numpy()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self[:], dtype)


def open_shards(path, layout: Layout, say=None) -> Shards:
    """The shards of a finished store, their bytes checked now or, above CHECKED_AT_ONCE, when they are first read."""
    try:
        shards = Shards(path, layout)
        if layout.total_bytes <= CHECKED_AT_ONCE:
            shards.check()
        elif say:
            say(f"feature store: {layout.total_bytes / 1e9:.0f} GB, checked batch by batch when first read")
    except OSError as error:
        raise TinkitError("The feature store cannot be read.", where=path, seen=str(error)) from error
    return shards


def is_finished(path, layout: Layout) -> bool:
    """Whether every shard's journal says so."""
    for shard in range(layout.shards):
        journal = journal_of(path, shard)
        if not os.path.exists(journal):
            return False
        with open(journal, "rb") as handle:
            if not read_journal(handle.read(), layout.pictures_of(shard)).finished:
                return False
    return True
