"""Starts the processes of a run on this machine, and watches them.

Fabric's own launchers start a user's script once more for every process, or import it anew; a library must not. So each
process is `rank_main` in a fresh Python with this one's module path: a job comes in by its standard input and an outcome
goes out by a file. The input stays open: when the starter dies, its processes see the end of it and leave. Fabric joins
them inside. Where torchrun or SLURM have started the processes already, nothing is started here.

A process that fails ends the run: the others get a few seconds to leave by themselves and are killed then.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tinkit import files
from tinkit.errors import CannotJudge, Interrupted, TinkitError
from tinkit.host.interruption import StopSignal
from tinkit.results import DistillResult

GRACE_S = 10.0  # for the others to leave once one has failed
POLL_S = 0.1
ERRORS = {cls.__name__: cls for cls in (TinkitError, CannotJudge, Interrupted)}
MAIN = "import sys; sys.path[:] = {path!r}; from tinkit.host.distill.launch import rank_main; rank_main()"


@dataclass
class Process:
    """One process of the run as the one that started it sees it."""

    rank: int
    handle: subprocess.Popen
    log: str  # what it printed; the first one prints to the terminal
    outcome_path: str

    def outcome(self) -> dict:
        """What it said when it left; empty when it could not."""
        with contextlib.suppress(TinkitError):
            return files.read_json(self.outcome_path, "The outcome of a process")
        return {}

    def failed(self) -> bool:
        """Whether it has ended other than by finishing or by being asked to stop."""
        return self.handle.poll() is not None and self.outcome().get("kind") not in ("finished", "interrupted")


def start(count: int, job: dict, out) -> DistillResult:
    """Run `count` processes of a job (the arguments of `command.run_rank`) to their end; the first one's result.

    Raises the TinkitError of the process that failed first, one that names the rank if it was killed, InterruptedError
    after Ctrl-C. No process is left, however it ends.
    """
    with tempfile.TemporaryDirectory(prefix="tinkit-") as scratch, StopSignal() as stop:
        started: list[Process] = []
        try:
            for rank in range(count):
                started.append(_start(rank, count, job, scratch))
            _watch(started, stop)
            return _result(started, stop(), out)
        finally:
            for process in started:
                _kill(process)


def _start(rank: int, count: int, job: dict, scratch: str) -> Process:
    log = os.path.join(scratch, f"{rank}.log")
    outcome = os.path.join(scratch, f"{rank}.json")
    told = {"rank": rank, "count": count, "meeting": os.path.join(scratch, "meeting"), "outcome": outcome, "job": job}
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}  # advice on DDP that is for programmers
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine: whatever its name resolves to
    with open(log, "wb") as handle:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN.format(path=sys.path), "tinkit-rank", str(rank)],  # the last two are for ps
            stdin=subprocess.PIPE,
            stdout=None if rank == 0 else handle,
            stderr=None if rank == 0 else handle,
            env=environment,
            start_new_session=True,  # Ctrl-C comes from here, once, and a kill reaches its loaders too
        )
    with contextlib.suppress(OSError):  # it has died already, and will be found so
        _pipe(process).write(json.dumps(told).encode() + b"\n")
        _pipe(process).flush()
    return Process(rank, process, log, outcome)


def _watch(started: list[Process], stop: Callable[[], bool]) -> None:
    """Return when all have ended, or when one has failed and the others have had their time to leave."""
    told, leave_at = False, None
    while any(process.handle.poll() is None for process in started):
        if stop() and not told:
            told = True
            for process in started:
                with contextlib.suppress(OSError):
                    process.handle.send_signal(signal.SIGINT)
        if leave_at is None and any(process.failed() for process in started):
            leave_at = time.monotonic() + GRACE_S
        if leave_at is not None and time.monotonic() > leave_at:
            return
        time.sleep(POLL_S)


def _result(started: list[Process], stopped: bool, out) -> DistillResult:
    """The result of the first process, or the error of the one that failed first.

    Where the run or one process was asked to stop, whoever notices last finds the others gone, or was still starting:
    no failure.
    """
    lost = [p for p in started if (p.handle.poll() or 0) < 0 and p.handle.returncode != -signal.SIGABRT]
    if lost:
        raise _killed(lost[0], len(started), out)
    outcomes = {process.rank: process.outcome() for process in started if process.handle.poll() is not None}
    left = sorted(
        (found["at"], found["kind"]) for found in outcomes.values() if found.get("kind") not in (None, "finished")
    )
    stopped = stopped or (bool(left) and left[0][1] == "interrupted")
    counted = ("error",) if stopped else ("error", "failed")
    errors = sorted((found["at"], rank) for rank, found in outcomes.items() if found.get("kind") in counted)
    if errors:
        raise _error(outcomes[errors[0][1]], errors[0][1], len(started), out)
    if all(found.get("kind") == "finished" for found in outcomes.values()) and len(outcomes) == len(started):
        return DistillResult(**outcomes[0]["result"])
    silent = [process for process in started if not outcomes.get(process.rank)]
    if silent and not stopped:
        raise _killed(silent[0], len(started), out)
    raise InterruptedError


def _killed(process: Process, count: int, out) -> TinkitError:
    code = process.handle.poll()
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return TinkitError(
        f"Process {process.rank} of {count} {how}; the others were stopped.",
        where=out,
        seen=_last_lines(process.log) or "nothing printed (a kill -9 may come from the kernel, out of memory)",
        next_step=how_to_go_on(out),
    )


def _error(found: dict, rank: int, count: int, out) -> TinkitError:
    if found["kind"] == "error":
        return ERRORS[found["class"]](found["what"], found["where"], found["seen"], found["next_step"])
    return TinkitError(
        f"Process {rank} of {count} failed; the others were stopped.",
        where=out,
        seen=found["what"],
        next_step=how_to_go_on(out),
    )


def how_to_go_on(out) -> str:
    return f"tinkit distill --out {out} --resume, also with another --devices"


def _last_lines(path, count=3) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as handle:
        return " | ".join(line.strip() for line in handle.read()[-4000:].splitlines()[-count:])
    return ""


def _kill(process: Process) -> None:
    """The process and its loaders; a process that has ended has taken its loaders with it, or they notice soon."""
    if process.handle.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.handle.pid, signal.SIGKILL)
    process.handle.wait()
    with contextlib.suppress(OSError):
        _pipe(process.handle).close()


def _pipe(handle: subprocess.Popen):
    """The pipe to its standard input."""
    if handle.stdin is None:
        raise ValueError("started without a pipe")
    return handle.stdin


def rank_main() -> None:
    """What each started process does: its job, and then leave at once.

    Not by way of Python's own end: gloo's threads outlive a group, and one was seen to abort a finished process.
    """
    told = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with_starter, daemon=True).start()
    files.write_json(told["outcome"], _outcome(told))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _outcome(told: dict) -> dict:
    from tinkit.host.distill.command import run_rank

    try:
        result = run_rank(told["rank"], told["count"], told["meeting"], **told["job"])
    except TinkitError as error:
        if isinstance(error, Interrupted):
            return {"kind": "interrupted", "at": time.monotonic()}
        texts = {name: None if (v := getattr(error, name)) is None else str(v) for name in ("what", "where", "seen")}
        name = type(error).__name__
        return {
            "kind": "error",
            "class": name if name in ERRORS else "TinkitError",
            **texts,
            "next_step": error.next_step,
            "at": time.monotonic(),
        }
    except BaseException as error:  # noqa: BLE001 - whatever it is, the one that started this process must be told
        at = time.monotonic()
        traceback.print_exc()
        return {"kind": "failed", "what": f"{type(error).__name__}: {error}"[:2000], "at": at}
    return {"kind": "finished", "result": asdict(result)}


def _leave_with_starter() -> None:
    """The starter holds the other end of standard input: at its end there is nobody left to work for."""
    while os.read(0, 1024):
        pass
    os._exit(1)
