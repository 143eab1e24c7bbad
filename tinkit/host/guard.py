"""Work in processes that may be killed: one item that crashes or hangs its process is lost, and nothing else is.

A damaged picture can end the process that decodes it (a signal out of a C library) or keep it busy for ever. So the
work is done by processes, each with a pipe of its own: there is no shared queue whose lock a killed process could keep.
Such a process is replaced, its other items are given to the next one, and the item it died of is answered by `Lost`.
Time counts only while this process waits for an answer, so neither a long training step nor a stopped or suspended
machine makes an item late. Large results travel through shared memory (`tinkit.host.channel`).
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from tinkit.errors import TinkitError
from tinkit.host.worker import Failure, Sent, Worker

TICK_S = 1.0  # the longest wait without a look at the time
TRIES = 3  # of an item whose process was ended from outside, and of processes that end before they begin


class Lost(NamedTuple):
    """The answer for an item that took its process with it, or too long."""

    reason: str


class WorkFailed(RuntimeError):
    """The work raised an exception: the cause of this one. The text holds the worker's traceback."""


class Guarded:
    """`work(item)` in `workers` processes; a context manager, and no process is left after it.

    `workers` 0: in this process, unguarded. An item may take `timeout_s` seconds. Items should be small (numbers, names);
    results may be large; `work` is a function or object that can be pickled where processes are not forked. Tensors
    arrive contiguous and without gradient. One `map` at a time.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        workers: int,
        timeout_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        context: str | None = None,
    ):
        if workers < 0 or timeout_s <= 0:
            raise ValueError(f"workers {workers}, timeout_s {timeout_s}")
        self.work, self.count, self.timeout_s, self.clock = work, workers, timeout_s, clock
        self._context = multiprocessing.get_context(context)
        self._workers: list[Worker] = []
        self._found: dict[int, Any] = {}
        self._given = self._early_ends = 0
        self._busy = self._closed = False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """End all processes, whatever they are doing."""
        self._closed = True
        self._end()

    def map(self, items: Iterable, ahead: int = 2, stop: Callable[[], bool] | None = None) -> Iterator:
        """The results (or `Lost`), in the order of the items; `ahead` items a worker are taken in advance.

        InterruptedError once `stop()` is true, even while an item hangs.
        Raises WorkFailed, from the original, in place of an item whose work raised; a TinkitError is raised as it is.
        """
        stop = stop or (lambda: False)
        return self._here(items, stop) if self.count == 0 else self._away(items, ahead, stop)

    def _here(self, items, stop):
        for item in items:
            if stop():
                raise InterruptedError
            try:
                result = self.work(item)
            except Exception as error:  # noqa: BLE001 - whatever the work raises is handed on
                _raise(error, "")
            yield result

    def _away(self, items, ahead, stop):
        if self._busy:
            raise ValueError("another map is not at its end")
        self._busy, self._given, self._found = True, 0, {}
        source, number, whole = enumerate(items), 0, False
        try:
            while True:
                if stop():
                    raise InterruptedError
                self._give(source, number + ahead * self.count, ahead)
                if number == self._given:
                    whole = True
                    return
                if number not in self._found:
                    self._wait()
                    continue
                result = self._found.pop(number)
                if isinstance(result, Failure):
                    _raise(result.error, result.text)
                number += 1
                yield result
        finally:
            self._busy = False
            if not whole:  # what is still in flight belongs to nobody
                self._end()

    def _give(self, source, limit, ahead):
        if self._closed:
            raise ValueError("this guard is closed")
        while len(self._workers) < self.count:
            self._workers.append(Worker(self._context, self.work))
        while self._given < limit:
            worker = min(self._workers, key=lambda worker: len(worker.waiting))
            if len(worker.waiting) >= ahead:
                return
            pair = next(source, None)
            if pair is None:
                return
            taken = {sent.slot for sent in worker.waiting}
            worker.give(Sent(*pair, slot=next(slot for slot in range(ahead) if slot not in taken)))
            self._given += 1

    def _wait(self):
        """Until something was heard, or a tick has passed; judge those that were not heard of."""
        before = self.clock()
        ready = wait([worker.connection for worker in self._workers], min(TICK_S, self.timeout_s / 4))
        passed = min(max(self.clock() - before, 0.0), 2 * TICK_S)  # more than that: we were stopped, and so were they
        for place, worker in enumerate(self._workers):
            ended = worker.process.exitcode is not None
            if ended or worker.connection in ready:
                if not self._read(worker) or ended:  # what it said before it ended counts
                    self._replace(place, None)
            elif worker.started:
                worker.spent_s += passed
                if worker.spent_s > self.timeout_s:
                    self._replace(place, f"took more than {self.timeout_s:g} s")

    def _read(self, worker) -> bool:
        """All that the worker has sent; False at the end of its pipe."""
        try:
            while worker.connection.poll():
                kind, number, value = worker.inbox.receive()
                worker.started, worker.spent_s = kind == "started", 0.0
                if kind != "started":
                    worker.waiting.popleft()
                    self._found[number] = value
                    self._early_ends = 0
        except (EOFError, OSError):
            return False
        return True

    def _replace(self, place, reason):
        """A fresh worker with what the old one left undone, but for the item that it died of."""
        old = self._workers[place]
        old.end()
        ended_from_outside = reason is None and old.process.exitcode == -signal.SIGTERM
        if old.started and ended_from_outside and old.waiting[0].tries < TRIES:
            old.waiting[0].tries += 1
        elif old.started:
            self._found[old.waiting.popleft().number] = Lost(reason or old.ending())
        else:
            self._early_ends += 1
            if self._early_ends >= TRIES:
                raise TinkitError(
                    "The worker processes end before they begin.",
                    seen=old.ending(),
                    next_step="look for a limit on memory or processes, or work without them (--workers 0)",
                )
        self._workers[place] = Worker(self._context, self.work)
        for sent in old.waiting:
            self._workers[place].give(sent)

    def _end(self):
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.end()
        self._workers = []


def _raise(error, text):
    """The original as the cause; an error that is meant for the user needs no other around it."""
    if isinstance(error, TinkitError):
        raise error
    raise WorkFailed(f"The work on an item failed: {error!r}\n{text}") from error
