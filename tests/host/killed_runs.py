"""Runs that meet a fault at a chosen moment, for test_faults: one process imports torch and forks a child for each run.

A moment is the n-th event of a kind below a root folder: "open", "write", "fsync", "rename" or "remove" of a file, or a
training "step". A write meets its fault half-way. Faults: "kill" (SIGKILL), "full" (no space left, from then on) and "gone"
(a file is removed, and the run goes on).

    python killed_runs.py < JOBS > ANSWERS      a JSON object a line
"""

import builtins
import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

AUDITED = {"open": "open", "os.rename": "rename", "os.remove": "remove", "os.rmdir": "remove", "os.truncate": "write"}
KINDS = ("open", "write", "fsync", "rename", "remove", "step")


class Moments:
    """Counts the events below `root` in this process, and lets the fault happen at the `number`-th of a `kind`."""

    def __init__(self, root, kind=None, number=0, fault="kill", victim=None):
        self.root, self.kind, self.number, self.fault, self.victim = root, kind, number, fault, victim
        self.counters = {kind: itertools.count(1) for kind in KINDS}
        self.counts = dict.fromkeys(KINDS, 0)
        self.process, self.full = os.getpid(), False

    def comes(self, kind) -> bool:
        """Count one event; whether its moment has come."""
        if os.getpid() != self.process:
            return False
        self.counts[kind] = number = next(self.counters[kind])
        return self.kind == kind and number == self.number

    def happen(self):
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "gone":
            os.unlink(self.victim)
        else:
            self.full = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.root)

    def event(self, kind):
        if self.comes(kind):
            self.happen()

    def write(self, data, real, flush):
        """A write: half of it is done when its moment comes."""
        if self.comes("write"):
            real(data[: len(data) // 2])
            flush()
            self.happen()
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.root)
        return real(data)

    def below(self, path) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.root)

    def watch(self):
        """From now on, for the rest of this process."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        sys.addaudithook(self._audit)
        real_open, real_fsync, real_pwrite = builtins.open, os.fsync, os.pwrite

        def watched_open(path, mode="r", *arguments, **options):
            handle = real_open(path, mode, *arguments, **options)
            return Torn(handle, self) if self.below(path) and set(mode) & set("wax+") else handle

        def fsync(handle):
            self.event("fsync")
            return real_fsync(handle)

        def pwrite(handle, data, offset):
            return self.write(data, lambda part: real_pwrite(handle, part, offset), lambda: None)

        builtins.open, os.fsync, os.pwrite = watched_open, fsync, pwrite
        register_optimizer_step_post_hook(lambda *_: self.event("step"))

    def _audit(self, name, arguments):
        if name in AUDITED and arguments and self.below(arguments[0]):
            self.event(AUDITED[name])


class Torn:
    """A file open for writing, whose write can break off half-way."""

    def __init__(self, handle, moments):
        self.handle, self.moments = handle, moments

    def __getattr__(self, name):
        return getattr(self.handle, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.handle.close()

    def write(self, data):
        return self.moments.write(data, self.handle.write, self.handle.flush)

    def writelines(self, lines):
        for line in lines:
            self.write(line)


def answer(job) -> dict:
    """Run a job in a forked child: {"code": exit code, or -9, "counts": events by kind, "error": text}."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_child(job, writing))
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, **(json.loads(told) if told else {})}


def _child(job, writing) -> int:
    import tinkit
    from tinkit.errors import TinkitError
    from tinkit.host.store import shards

    shards.SHARD_ROWS = 16  # several shards for so few pictures
    moments = Moments(job["root"], *job.get("moment", (None, 0)), job.get("fault", "kill"), job.get("victim"))
    if "clock_step_s" in job:
        clock = itertools.count(2_000_000_000, job["clock_step_s"])
        time.time = lambda: float(next(clock))
    code, error = 0, ""
    try:
        moments.watch()
        if os.path.exists(os.path.join(job["out"], "run.json")):
            tinkit.distill(out=job["out"], resume=True, quiet=True)
        else:
            tinkit.distill(job["photos"], out=job["out"], **job["settings"])
    except TinkitError as found:
        code, error = 1, str(found)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent shall see it
        code, error = 2, traceback.format_exc()
    os.write(writing, json.dumps({"counts": moments.counts, "error": error}).encode())
    return code


@contextlib.contextmanager
def forking():
    """A function that has a job done in a fork of one process with torch in it."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def ask(**job):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        try:
            yield ask
        finally:
            process.stdin.close()


def main():
    import timm  # noqa: F401 - the imports that take long, once
    import torch

    import tinkit.host.distill.command  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
