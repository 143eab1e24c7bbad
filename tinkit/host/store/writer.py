"""Writes one shard, in a thread of its own beside the teacher, so that a kill at any moment costs the batch in flight.

Rows are written with plain writes at known places (a full disk is an error, never a signal; a write that failed is safe
to repeat), then the batch's line in the journal. What the system has not put on disk when the power fails shows: on
resuming, an unfinished shard's lines are held against its bytes and the longest good run is kept.
"""

import fcntl
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from tinkit import files
from tinkit.host.images.reading import patiently
from tinkit.host.store.shards import Journal, Layout, Line, file_of, finished_text, journal_of, read_journal

SYNC_S = 5.0  # a power cut costs at most the rows of this time
AHEAD = 4  # batches that may wait for the disk
READ_BYTES = 1 << 22


class Writing:
    """One thread that writes in order while the teacher computes. The first error comes back at the next call."""

    def __enter__(self):
        self.thread, self.waiting = ThreadPoolExecutor(1, "store"), deque[Future]()
        return self

    def submit(self, work: Callable, *arguments) -> None:
        """Have `work` done after everything submitted before; waits while AHEAD pieces are waiting."""
        self.waiting.append(self.thread.submit(work, *arguments))
        while len(self.waiting) > AHEAD:
            self.waiting.popleft().result()

    def __exit__(self, kind, *error):
        """All that was submitted is written, also when the teacher failed or somebody pressed Ctrl-C."""
        try:
            while self.waiting and kind is None:
                self.waiting.popleft().result()
        finally:
            self.thread.shutdown(wait=True, cancel_futures=kind is None)


class ShardWriter:
    """A shard that is being written, this process's alone. `next`: the first picture that is not yet in it."""

    def __init__(self, folder, layout: Layout, shard: int):
        self.folder, self.layout, self.shard = folder, layout, shard
        self.pictures = layout.pictures_of(shard)
        self.files = [_Appended(journal_of(folder, shard), lock=True)]
        try:
            with open(journal_of(folder, shard), "rb") as handle:
                journal = read_journal(handle.read(), self.pictures)
            self.finished, self.next = journal.finished or journal.damaged, self.pictures.stop
            if not self.finished:  # a damaged one is refused on opening
                self._resume(journal)
        except BaseException:
            self.close()
            raise

    def _resume(self, journal: Journal) -> None:
        """Keep the longest run of batches whose bytes are there, cut off the rest."""
        self.arrays = {name: _Appended(file_of(self.folder, self.shard, name)) for name in self.layout.arrays}
        self.files += self.arrays.values()
        kept = 0
        for line in journal.lines:
            if any(self._found(name, line) != line.sha256.get(name) for name in self.arrays):
                break
            kept += 1
        self.next = journal.lines[kept - 1].stop if kept else self.pictures.start
        for name, file in self.arrays.items():
            file.cut(self._offset(name, self.next))
        self.files[0].cut(sum(journal.sizes[:kept]))
        self.synced = time.monotonic()

    def _offset(self, name, picture) -> int:
        return (picture - self.pictures.start) * self.layout.views * self.layout.arrays[name].row_bytes

    def _found(self, name, line) -> str:
        digest, stop = hashlib.sha256(), self._offset(name, line.stop)
        for start in range(self._offset(name, line.start), stop, READ_BYTES):
            digest.update(os.pread(self.arrays[name].handle, min(READ_BYTES, stop - start), start))
        return digest.hexdigest()

    def append(self, stop: int, rows: dict, bad: dict[int, str], loss: dict[str, list[float]]) -> None:
        """The rows of the pictures next..stop-1, contiguous numpy arrays by name, and then their line."""
        hashes = {}
        for name, file in self.arrays.items():
            data = memoryview(rows[name]).cast("B") if rows[name].size else memoryview(b"")
            if len(data) != self._offset(name, stop) - self._offset(name, self.next):
                raise ValueError(f"{name}: {len(data)} bytes for the pictures {self.next}..{stop}")
            hashes[name] = hashlib.sha256(data).hexdigest()
            file.append(data)
        self.files[0].append(Line(self.next, stop, hashes, bad, loss).to_text(self.layout.views).encode())
        self.next = stop
        if stop == self.pictures.stop:
            self.finish()
        elif time.monotonic() - self.synced > SYNC_S:
            self._sync()

    def finish(self) -> None:
        """Put everything on disk, then say so: whoever reads the last line may rely on all before it."""
        self._sync()
        self.files[0].append(finished_text(self.pictures).encode())
        self.files[0].sync()
        files.sync_folder(self.folder)
        self.finished = True
        self.close()

    def _sync(self):
        for file in reversed(self.files):  # the journal last
            file.sync()
        self.synced = time.monotonic()

    def close(self) -> None:
        for file in self.files:
            file.close()


class _Appended:
    """A file that grows at its end; opened anew, at the same place, when a network file system lost it."""

    def __init__(self, path, lock=False):
        self.path, self.lock, self.handle, self.size = path, lock, -1, 0
        patiently(self._open, f"opening {path}")

    def _open(self):
        if self.handle < 0:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if self.lock:
                fcntl.flock(self.handle, fcntl.LOCK_EX)

    def _retried(self, action, what):
        def attempt():
            self._open()
            try:
                return action()
            except OSError:
                self.close()
                raise

        patiently(attempt, f"{what} {self.path}")

    def cut(self, size):
        self._retried(lambda: os.ftruncate(self.handle, size), "writing")
        self.size = size

    def append(self, data):
        self._retried(lambda: _write_all(self.handle, data, self.size), "writing")
        self.size += len(data)

    def sync(self):
        self._retried(lambda: os.fsync(self.handle), "writing")

    def close(self):
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def _write_all(handle, data, offset):
    written = 0
    while written < len(data):
        written += os.pwrite(handle, data[written:], offset + written)
