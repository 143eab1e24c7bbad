"""log.jsonl, a line a step and one an epoch: what a run has seen, for people, plots and resumed runs."""

import contextlib
import json

from tinkit import files
from tinkit.errors import from_os_error


class Log:
    """log.jsonl: a line a step. A resumed run drops the lines after its step and takes up the sums of its epoch."""

    def __init__(self, path, step, epoch):
        self.sums, self.count = {}, 0
        lines = []
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as handle:
            lines = [line for line in handle if _step_of(line) <= step]
        for record in map(json.loads, lines):
            if "event" not in record and record["epoch"] == epoch:
                self._add(record)
        try:
            files.write_text(path, "".join(lines))
            self.handle = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise from_os_error(error, "opening the log") from error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(OSError):
            self.handle.close()

    def write(self, record):
        try:
            self.handle.write(json.dumps(record) + "\n")
            if "event" in record:
                self.handle.flush()
        except OSError as error:
            raise from_os_error(error, "writing the log") from error
        if "event" not in record:
            self._add(record)

    def _add(self, record):
        self.count += 1
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Means of the step records since the last call."""
        means = {name: total / max(self.count, 1) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def _step_of(line) -> float:
    try:
        return json.loads(line).get("step", 0)
    except ValueError:
        return float("inf")  # cut short by a kill
