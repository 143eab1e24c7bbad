"""The shards of a finished store, memory-mapped: rows by number, each checked against its hash before it counts.

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
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.store.precision import Loss, loss_of
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
    """Holds a store against removal for as long as this object lives, and with `stamp` marks it as used now.

    Without such a folder, and on a read-only disk, it does neither: nobody can remove a store there.
    """

    def __init__(self, path, stamp=True):
        with contextlib.suppress(OSError):
            handle = _shared(os.path.join(path, USED))
            weakref.finalize(self, os.close, handle)
            if stamp:
                os.utime(handle)


def _shared(path) -> int:
    """The file at `path`, locked with others; it may be removed, and another made, while this waits for the lock."""
    while True:
        handle = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
        )  # NFS shares a lock only of what can be read
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if files.is_still(path, handle):
                return handle
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


def open_shards(path, layout: Layout) -> Shards:
    """The shards of a finished store; their bytes are checked when they are first read, or by `check_if_small`."""
    try:
        return Shards(path, layout)
    except OSError as error:
        raise TinkitError("The feature store cannot be read.", where=path, seen=str(error)) from error


def check_if_small(shards: Shards, say) -> None:
    """Check all bytes now, up to CHECKED_AT_ONCE; above that say that it happens while reading."""
    size = shards.layout.total_bytes
    if size <= CHECKED_AT_ONCE:
        shards.check()
    else:
        say(f"feature store: {size / 1e9:.1f} GB, checked batch by batch when first read")


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
