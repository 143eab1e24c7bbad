"""The board's own tools, run without a shell: found by plain name, told nothing on stdin, ended in time, answers capped.

nvpmodel, jetson_clocks, tegrastats and trtexec are asked through here and nowhere else. A board to play back is a folder
with its own `usr/bin`: then only tools under that folder are run. A tool that is missing, hangs or shouts is an answer
(code 127, 124, or a cut text), not an exception. Rights of root only by `sudo -n`: it never asks for a password.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from typing import NamedTuple

FOLDERS = ("usr/local/bin", "usr/bin", "bin", "usr/sbin", "sbin", "usr/src/tensorrt/bin")
MAX_BYTES = 1 << 20  # of each of stdout and stderr; what comes after is read and dropped
MISSING, TIMED_OUT = 127, 124  # as a shell and timeout(1) say it
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*\Z")


class Ran(NamedTuple):
    """How a tool ended: its exit code (negative: the signal that ended it) and what it wrote, as text."""

    code: int
    out: str
    err: str


class Commands:
    """Runs tools of the board that lies under `root`."""

    def __init__(self, root="/"):
        self.root = os.path.abspath(os.fspath(root))

    def find(self, name):
        """The path of a tool, or None. ValueError for what is no plain file name: a path, an option, shell words."""
        if not PLAIN_NAME.match(name):
            raise ValueError("not the plain name of a tool: {!r}".format(name))
        on_path = shutil.which(name) if self.root == "/" else None
        if on_path:
            return os.path.abspath(on_path)
        paths = (os.path.join(self.root, folder, name) for folder in FOLDERS)
        return next((path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK)), None)

    def run(self, arguments, timeout_s=10.0, sudo=False):
        """Run a tool to its end: `arguments` are its plain name and its words, each passed as it is. Returns `Ran`.

        A tool that runs longer than timeout_s is killed with what it started (one that runs as root may refuse to be).
        """
        words, missing = self._words(arguments, sudo)
        if missing:
            return Ran(MISSING, "", "{}: not found under {}".format(missing, self.root))
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(os.environ, LC_ALL="C"),
                start_new_session=True,  # so that it can be killed with what it started, and has no terminal to ask on
            )
        except OSError as error:
            return Ran(MISSING, "", "{}: {}".format(words[0], error.strerror or error))
        return _ended(process, timeout_s)

    def start(self, arguments):
        """Start a tool that streams; its stdout is a pipe of bytes. None where it is missing. Ending it is the caller's."""
        words, missing = self._words(arguments, sudo=False)
        if missing:
            return None
        try:
            return subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=dict(os.environ, LC_ALL="C"),
            )
        except OSError:
            return None

    def _words(self, arguments, sudo):
        """(words to execute, the tool that is missing or "")."""
        names = ["sudo", arguments[0]] if sudo else [arguments[0]]
        paths = [self.find(name) for name in names]
        for name, path in zip(names, paths):
            if path is None:
                return [], name
        return paths[:-1] + ["-n", "--"] * sudo + paths[-1:] + [str(word) for word in arguments[1:]], ""


def _ended(process, timeout_s):
    """Wait for a tool, reading both pipes meanwhile. One that left something running with them is waited for no longer."""
    out, err = [], []
    readers = [_reader(process.stdout, out), _reader(process.stderr, err)]
    code, note = TIMED_OUT, "stopped after {:g} s".format(timeout_s)
    try:
        code, note = process.wait(timeout_s), ""
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.returncode is None:
            _kill(process)
    until = time.monotonic() + 1.0
    for reader in readers:
        reader.join(max(0.0, until - time.monotonic()))
    return Ran(code, _text(out), "\n".join(part for part in (_text(err), note) if part))


def _reader(pipe, blocks):
    def read():
        size = 0
        with contextlib.suppress(OSError, ValueError), pipe:
            for block in iter(lambda: os.read(pipe.fileno(), 65536), b""):
                blocks.append(block[: MAX_BYTES - size])
                size += len(blocks[-1])

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _text(blocks):
    return b"".join(list(blocks)).decode("utf-8", "replace")


def _kill(process):
    """End a tool and what it started. What runs as root may not be ours to end; it is left to itself after a second."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
