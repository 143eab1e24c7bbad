"""log.jsonl, a line a step and one an epoch: what a run has seen, for people, plots and resumed runs.

Lines reach the file every two seconds, and before every checkpoint: a killed run loses no more than that of them, and
those up to the checkpoint that it goes on from are there.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator

from tinkit import files
from tinkit.errors import from_os_error
from tinkit.host.distill.writing import write_patiently

FLUSH_S = 2.0


class Log:
    """log.jsonl: a line a step. A resumed run drops the lines after its step and takes up the sums of its epoch."""

    def __init__(self, path, step, epoch, say=None, clock=time.monotonic):
        self.path, self.say, self.clock = os.fspath(path), say, clock
        self.sums: dict[str, float] = {}
        self.count = 0
        self.lines: list[str] = []  # not yet in the file
        try:
            self._keep_up_to(step, epoch)
            self.length = os.path.getsize(self.path)
        except OSError as error:
            raise from_os_error(error, "opening the log") from error
        self.flushed = self.clock()

    def __enter__(self):
        return self

    def __exit__(self, kind, *exception):
        if kind is None:
            self.flush()
            return
        with contextlib.suppress(OSError):  # the error under way is the one to tell
            self._append()

    def write(self, record):
        """Note one record; events and what is older than two seconds are in the file afterwards."""
        self.lines.append(json.dumps(record) + "\n")
        if "event" not in record:
            self._add(record)
        if "event" in record or self.clock() - self.flushed >= FLUSH_S:
            self.flush()

    def flush(self, sync=False):
        """Bring all lines into the file; with `sync` they survive a power cut too."""
        write_patiently(lambda: self._append(sync), os.path.dirname(self.path), "writing the log", self.say)
        self.flushed = self.clock()

    def means(self) -> dict[str, float]:
        """Means of the step records since the last call."""
        means = {name: total / max(self.count, 1) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def _append(self, sync=False):
        """Write after the last line known to be whole: a try that broke off half-way leaves nothing behind."""
        with open(self.path, "ab") as handle:
            if handle.tell() > self.length:
                handle.truncate(self.length)
            end = min(handle.tell(), self.length)
            data = "".join(self.lines).encode()
            handle.write(data)
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
        self.length, self.lines = end + len(data), []

    def _add(self, record):
        self.count += 1
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self.sums[name] = self.sums.get(name, 0.0) + value

    def _keep_up_to(self, step, epoch):
        """The file without the lines after `step`, and without those that a kill cut short; read line by line."""
        with files.atomic(self.path, "opening the log") as partial, open(partial, "w", encoding="utf-8") as kept:
            for line in _lines(self.path):
                record = _record_of(line)
                if record is not None and _is_past(record, step, epoch):
                    kept.write(line)
                    if "event" not in record and record["epoch"] == epoch:
                        self._add(record)


def _lines(path) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as handle:
        yield from handle


def _is_past(record, step, epoch) -> bool:
    """Whether a run at `step`, with `epoch` epochs counted, has been there. A step may be done and its epoch not counted."""
    if record.get("event") == "epoch" and record["epoch"] > epoch:
        return False
    return record.get("step", 0) <= step


def _record_of(line) -> dict | None:
    """The record in a line; None for one cut short by a kill, or damaged."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and line.endswith("\n") else None
