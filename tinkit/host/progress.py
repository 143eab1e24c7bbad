"""What a person sees while it works: a bar on a terminal, plain lines in a log.

`Progress` is a context manager; `bar(what, total)` gives a function to call with every advance.
"""

import sys
import time


class Progress:
    """say(line) prints above the bar. On a terminal the bar shows rate, time left and a free text; else it stays quiet."""

    def __init__(self, quiet=False):
        self.quiet = quiet
        self._rich = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._rich = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(stderr=True),
            )

    def __enter__(self):
        if self._rich:
            self._rich.start()
        return self

    def __exit__(self, *exception):
        if self._rich:
            self._rich.stop()

    def say(self, line):
        if self.quiet:
            return
        if self._rich:
            self._rich.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def counter(self, what):
        """tick(total): a bar for work whose total is known only once it runs."""
        bars = []

        def tick(total):
            if not bars:
                bars.append(self.bar(what, total))
            bars[0](1)

        return tick

    def bar(self, what, total, start=0):
        """advance(n, text="") for one bar; it is removed when `total` is reached."""
        if not self._rich:
            return lambda n, text="": None
        task = self._rich.add_task(what, total=total, completed=start, rate="", text="")
        began, done = time.monotonic(), 0

        def advance(n, text=""):
            nonlocal done
            done += n
            rate = f"{done / max(time.monotonic() - began, 1e-6):.0f}/s"
            self._rich.update(task, advance=n, rate=rate, text=text)
            if start + done >= total:
                self._rich.remove_task(task)

        return advance
