"""How much comes out when several streams work at once: pictures a second, and what each run then takes.

One thread a stream, each with a runtime of its own from `runtime.again()`, warmed up and then let go together. The window
is a time, not a number of runs; only runs that began and ended inside it are counted, so that the last ones, which have
the machine to themselves, add nothing. Threads are Python's: what a runtime does while it holds the interpreter's lock
(tinkit's own copies of inputs and outputs) takes turns, as in a product written like this.
"""

import contextlib
import threading
import time

import numpy as np

WARM_RUNS = 3  # of each stream: a new context's first run costs more, and a CUDA graph is recorded after it
GIVE_UP = 10  # times the seconds asked for, where there are too few runs


def throughput(runtime, feeds, batch, streams, seconds, min_samples=50, clock=time.perf_counter, window=None):
    """{"streams", "batch", "pictures_per_s", "runs", "seconds", "p50_ms", "p99_ms"} of `streams` at once.

    feeds: one batch, the same for all. The window is `seconds` long, or longer until `min_samples` runs are complete
    (at most 10 times as long; with fewer runs then, `runs` says so). window: a context manager that is
    entered when all streams are warm and let go. Raises what a run raises, and ValueError for a
    runtime that cannot do more than one stream.
    """
    if streams < 1 or seconds <= 0:
        raise ValueError("at least one stream and some time")
    if streams > 1 and not hasattr(runtime, "again"):
        raise ValueError("{} has no second stream".format(type(runtime).__name__))
    with contextlib.ExitStack() as opened:
        runtimes = [runtime] + [opened.enter_context(runtime.again()) for _ in range(streams - 1)]
        runs, start = _run_together(runtimes, feeds, seconds, min_samples, clock, window or contextlib.nullcontext())
    window = _window(runs, start, seconds, min_samples)
    inside = [run for run in runs if run[0] >= start and run[1] - start <= window]
    times_ms = [(done - begun) * 1e3 for begun, done in inside]
    p50, p99 = np.percentile(times_ms, (50, 99))
    return {
        "streams": streams,
        "batch": batch,
        "pictures_per_s": len(inside) * batch / window,
        "runs": len(inside),
        "seconds": window,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
    }


def _window(runs, start, seconds, min_samples):
    """How long the window is: the time asked for, or until that many runs were complete."""
    ended = sorted(end - start for _, end in runs)
    return max(seconds, ended[min(min_samples, len(ended)) - 1])


def _run_together(runtimes, feeds, seconds, min_samples, clock, window):
    """([(begin, end) of every run], when all were let go)."""
    shared = _Shared(len(runtimes), seconds, min_samples, clock)
    threads = [
        threading.Thread(target=shared.work, args=(runtime, feeds), name="stream-{}".format(number), daemon=True)
        for number, runtime in enumerate(runtimes)
    ]
    try:
        for thread in threads:
            thread.start()
        shared.let_go.wait()
        with window:
            for thread in threads:
                thread.join()
    finally:  # also on Ctrl-C: nothing goes on running behind the caller's back
        shared.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if shared.errors:
        raise shared.errors[0]
    return [run for runs in shared.finished for run in runs], shared.start


class _Shared:
    """What the threads of one measurement have in common. Appending to a list is one step under Python's lock."""

    def __init__(self, streams, seconds, min_samples, clock):
        self._seconds, self._min_samples, self._clock = seconds, min_samples, clock
        self._barrier = threading.Barrier(streams, action=self._let_go)
        self._over, self.start, self.finished, self.errors = False, 0.0, [], []
        self.let_go = threading.Event()  # also when there is nothing to let go any more

    def work(self, runtime, feeds):
        try:
            for _ in range(WARM_RUNS):
                runtime.run(feeds)
            runs = []
            self.finished.append(runs)
            self._barrier.wait()
            while not self._over:
                begin = self._clock()
                runtime.run(feeds)
                end = self._clock()
                runs.append((begin, end))
                self._over = self._over or self._enough(end - self.start)
        except threading.BrokenBarrierError:
            pass  # another stream has said why
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self.errors.append(error)
            self.stop()

    def stop(self):
        self._over = True
        self._barrier.abort()
        self.let_go.set()

    def _let_go(self):
        self.start = self._clock()
        self.let_go.set()

    def _enough(self, passed):
        if passed < self._seconds:
            return False
        return passed >= GIVE_UP * self._seconds or sum(map(len, self.finished)) >= self._min_samples
