"""Ctrl-C as a question that the loops ask between two steps, so that a run can save and say how to go on."""

import signal
import threading


class StopSignal:
    """Ctrl-C (and SIGTERM) as a question: `stop()` is true once somebody asked. A second Ctrl-C ends at once."""

    def __init__(self):
        self.asked = False
        self.previous = {}

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
