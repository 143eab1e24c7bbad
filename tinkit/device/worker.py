"""The agent's child that measures: a process of its own, so that no library's crash, print or hang reaches the host's ear.

Parent to child: the run's folder with job.json, and a pipe as standard input that says nothing and is closed when the parent
dies, however it dies: then the child has the board put back and kills itself with all that it started. Child to parent:
frames (say, then error or done) on a pipe of their own; standard output and error are another pipe, kept as lines. What the
child starts carries a mark in its environment, by which it is found in whatever session it runs.
"""

import contextlib
import faulthandler
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque

import tinkit
from tinkit.device.state_file import NAME
from tinkit.device.wire import FrameError, Reader, StreamEnded, write_frame
from tinkit.errors import TinkitError

JOB, OUT, BUNDLE = "job.json", "out", "bundle"
LINE = 1000  # characters of a line that is told
END_S = 10.0  # for the kernel to let a killed child go
LAST_LINES, MOST_LINES = 5, 200  # of what is printed: kept, told
MARK = "TINKIT_RUN"  # in the environment of the child and of everything that it starts
OURS = ("bundle", "device", "out", "require_target_runtime", "say", "root", "engines")  # no option may name these


class Worker:
    """The parent's hold on the child: `told_fd` and `output_fd` to select on; `end()` it in any case."""

    def __init__(self, run, cache, root="/"):
        told, child = os.pipe()
        self._mark = run
        command = [sys.executable, "-m", "tinkit.device.agent", "work", run, "--tell", str(child), "--root", root]
        try:
            self._process = subprocess.Popen(
                command + ["--cache", cache.folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(child,),
                start_new_session=True,
                cwd=run,
                env=_environment(run, cache),
            )
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(child)
        self._told = os.fdopen(told, "rb", buffering=0)
        self._reader, self.told_fd, self.output_fd = Reader(self._told), told, self._process.stdout.fileno()

    def frames(self):
        """The frames that have come since `told_fd` was ready; None after the child's last."""
        try:
            found = [self._reader.read()[0]]
            while self._reader.waiting():
                found.append(self._reader.read()[0])
            return found
        except StreamEnded:
            return None
        except FrameError as error:
            seen = "{} {}".format(error.what, error.seen or "")
            raise TinkitError("The child that measures says what cannot be read.", seen=seen) from None

    def ended(self):
        """Whether the child has ended; it stays a zombie, so that its group's number stays its own."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def end(self):
        """Kill what is left of the child and its children; its exit code, None where the kernel does not let it go."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            kill_marked(self._mark)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        for stream in (self._process.stdin, self._process.stdout, self._told):
            stream.close()
        return self._process.returncode


def kill_marked(run):
    """Kill every process of this user that has the mark of `run` in its environment, but not this one.

    Tools are started in sessions of their own, so that killing the child's group does not reach them; and what is an orphan
    by now no longer has a parent to be found by. A tool that sudo runs has neither our mark nor our user: out of reach.
    A process that is just becoming another program shows no environment for a moment, so it takes two looks without any.
    """
    mark, quiet = os.fsencode("{}={}".format(MARK, run)), 0
    for _ in range(20):
        found = [pid for pid in _processes() if pid != os.getpid() and mark in _environment_of(pid)]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if found else quiet + 1
        if quiet == 2:
            return
        time.sleep(0.05)


def _processes():
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _environment_of(pid):
    try:
        with open("/proc/{}/environ".format(pid), "rb") as handle:
            return handle.read().split(b"\0")
    except OSError:  # gone, or another user's
        return []


class Printed:
    """What the child and its libraries print: the first lines are told, the last are kept for a child that dies."""

    def __init__(self):
        self._half, self._told, self._last = b"", 0, deque(maxlen=LAST_LINES)

    def lines(self, data):
        """The lines in `data` (bytes, b"" at the end) that are worth telling."""
        *whole, self._half = (self._half + data).split(b"\n")
        if len(self._half) > LINE or not data:
            whole, self._half = whole + [self._half], b""
        found = [line.decode("utf-8", "replace").rstrip()[:LINE] for line in whole]
        found = [line for line in found if line.strip(" ^~")]  # nor the marks that Python puts below a line
        self._last.extend(found)
        room = max(0, MOST_LINES - self._told)
        self._told += len(found)
        if room and self._told >= MOST_LINES:
            return found[:room] + ["(what else libraries print is not told)"]
        return found[:room]

    def ended_without_a_word(self, code):
        """The TinkitError for a child that ended with this exit code and told neither a report nor an error."""
        how = "it could not be ended" if code is None else "it ended with exit code {}".format(code)
        next_step = "run it again; if it stays so, this is a mistake in tinkit or a library: see the lines above"
        if code is not None and code < 0:
            how = "it was ended by {}".format(_signal_name(-code))
        if code == -signal.SIGKILL:
            next_step = (
                "the board may have run out of memory (see `dmesg` there): close other programs, or a smaller batch"
            )
        seen = "; ".join([how] + [line.strip() for line in self._last])[-4 * LINE :]
        return TinkitError("The measurement on the board ended without a report.", seen=seen, next_step=next_step)


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal {}".format(number)


def _environment(run, cache):
    """Where this code is found, and caches and temporary files of libraries in our folder: the board stays as it was."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(tinkit.__file__)))
    others = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return dict(
        os.environ,
        PYTHONPATH=os.pathsep.join([own] + others),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONUNBUFFERED="1",
        TMPDIR=os.path.join(run, "tmp"),
        XDG_CACHE_HOME=os.path.join(run, "tmp"),
        CUDA_CACHE_PATH=cache.path("cuda"),
        **{MARK: run},
    )


def work(run, tell, root, cache):
    """The child: run the job in the folder `run`, tell on the file descriptor `tell`; returns the exit code."""
    os.set_inheritable(tell, False)
    _watch_the_parent(os.path.join(cache, "state"), root)
    faulthandler.enable()
    sys.excepthook = traceback.print_exception  # the built-in one shows lines of other files for code in a zip
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as handle:
        handle.write("500")  # where memory runs out, this one goes and the parent is left to tell
    lock, stream = threading.Lock(), os.fdopen(tell, "wb")

    def say(line):
        with lock:
            write_frame(stream, {"tell": "say", "line": str(line)[:LINE]})

    try:
        with open(os.path.join(run, JOB), encoding="utf-8") as handle:
            job = json.load(handle)
        _profile(job, run, root, cache, say)
        with lock:
            write_frame(stream, {"tell": "done"})
    except TinkitError as error:
        with lock:
            write_frame(stream, error_frame(error))
        return error.exit_code
    finally:
        stream.close()
    return 0


def _profile(job, run, root, cache, say):
    from tinkit.device.profile import profile
    from tinkit.recipes import DeviceProfile

    options = job["options"]
    known = [name for name in inspect.signature(profile).parameters if name not in OURS]
    wrong = sorted(set(options) - set(known))
    if wrong:
        raise TinkitError("The job has an option that this agent does not know.", seen=", ".join(wrong)[:LINE])
    profile(
        os.path.join(run, BUNDLE),
        device=DeviceProfile.from_json(job["device"]),
        out=os.path.join(run, OUT),
        require_target_runtime=True,
        say=say,
        root=root,
        engines=os.path.join(cache, "engines"),
        **options,
    )


def error_frame(error):
    """A TinkitError as the message of a frame."""
    parts = {"where": error.where, "seen": error.seen, "next": error.next_step}
    told = {key: str(value)[: 4 * LINE] for key, value in parts.items() if value is not None}
    return dict({"tell": "error", "what": str(error.what)[: 4 * LINE], "exit_code": error.exit_code}, **told)


def _watch_the_parent(state, root):
    """From now on standard input is empty, and a thread waits for the end of what it was."""
    life, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_end_with_the_parent, args=(life, state, root), daemon=True).start()


def _end_with_the_parent(life, state, root):
    while os.read(life, 1):
        pass
    if os.path.lexists(os.path.join(state, NAME)):
        command = [sys.executable, "-m", "tinkit.device.agent", "restore", state, "--root", root]
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        others = {name: value for name, value in os.environ.items() if name != MARK}
        subprocess.Popen(command, cwd="/", start_new_session=True, env=others, **quiet)  # it outlives us
    kill_marked(os.environ[MARK])
    os.killpg(0, signal.SIGKILL)
