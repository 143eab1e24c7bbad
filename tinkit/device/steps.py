"""Seconds by step: where the time of a long command goes."""

import contextlib
import time


class Steps:
    """`with steps.of("exam"): ...` adds to `steps.seconds["exam"]`, in the order of the first use."""

    def __init__(self, clock=time.monotonic):
        self.seconds, self._clock = {}, clock

    @contextlib.contextmanager
    def of(self, name):
        begin = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + self._clock() - begin, 3)
