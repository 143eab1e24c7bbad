"""A host made of pipes: starts the packed agent as a board would and talks to it, one ask after the other."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

from tinkit.device.wire import Reader, StreamEnded, write_frame
from tinkit.host.board.agent_file import agent_file

PATIENCE_S = 60


def kept_agent(cache):
    """The agent's file where the bootstrap would have put it, below XDG_CACHE_HOME = `cache`."""
    data, sha256 = agent_file()
    path = Path(cache, "tinkit", "agent", "agents", sha256 + ".pyz")
    for parent in reversed(path.parents[:3]):
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)
        os.utime(path, (1e9, 1e9))  # long before any agent started
    return path


def planted_agent(folder, more=None):
    """The agent with another `profile`: the job's option `behave` is what it does; then it writes a small report.

    more: name in the zipapp -> code that is added at the end of that module.
    """
    path = Path(folder) / "planted.pyz"
    with zipfile.ZipFile(io.BytesIO(agent_file()[0])) as real, zipfile.ZipFile(path, "w") as planted:
        for name in real.namelist():
            code = PLANTED.encode() if name == "tinkit/device/profile.py" else real.read(name)
            planted.writestr(name, code + (more or {}).get(name, "").encode())
    return path


PLANTED = '''"""Planted by a test."""
import os, signal, subprocess, sys, time
from tinkit import files
from tinkit.errors import CannotJudge, TinkitError

def profile(bundle=None, device=None, out=None, require_target_runtime=False, say=None, root="/", engines=None,
            behave="", layers=True):
    assert require_target_runtime and device.name == "here"
    engine = {}
    say("began {}".format(os.getpid()))
    exec(behave)
    files.write_json(os.path.join(out, "report.json"), {"machine": {"engine": engine}, "bundle": sorted(os.listdir(bundle))})
'''


class Board:
    """The agent in a process. `ask` and `hear`; `close` ends its standard input. Everything it told is in `heard`."""

    def __init__(self, cache, root="/", silence_s=60, name="", path=None, limit=None):
        self.cache, self.heard = Path(cache), []
        values = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TINKIT_RUN")}
        values.update({"XDG_CACHE_HOME": str(cache), "TINKIT_MEASURING": name or f"test-{cache}"})
        command = [sys.executable, "-W", "error", str(path or kept_agent(cache)), "serve", "--root", str(root)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(
            [*command, "--silence", str(silence_s)], env=values, bufsize=0, cwd=str(cache), preexec_fn=limit, **pipes
        )
        self.reader = Reader(self.process.stdout)
        self.limit = threading.Timer(2 * PATIENCE_S, self.process.kill)  # a test that hangs fails
        self.limit.daemon = True
        self.limit.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.limit.cancel()
            self.process.kill()
            self.errors = self.process.stderr.read().decode()
            for stream in (self.process.stdout, self.process.stderr):
                stream.close()

    @property
    def folder(self):
        return self.cache / "tinkit" / "agent"

    def send(self, ask, data=b"", **parts):
        write_frame(self.process.stdin, {"ask": ask, **parts}, data)

    def hear(self, max_bytes=1 << 26):
        message, payload = self.reader.read(max_bytes)
        message["data"] = payload.read(max_bytes) if payload.size else b""
        self.heard.append(message)
        return message

    def until(self, *tells):
        """The next message that tells one of these; what comes before is in `heard`."""
        while True:
            message = self.hear()
            if message["tell"] in tells:
                return message

    def ask(self, ask, data=b"", **parts):
        """Send, and hear until the last word of the answer."""
        self.send(ask, data, **parts)
        return self.until("hello", "kept", "done", "error", "bye")

    def begin(self, job):
        """Start a job; returns the number of the child's process, once it is in the middle of it."""
        self.send("profile", job=job)
        while not any(line.startswith("began ") for line in self.lines()):
            assert self.hear()["tell"] == "say", self.heard[-1]
        return int(self.lines()[-1].split()[1])

    def rest(self):
        """Everything that is told until the end of the stream."""
        told = []
        with contextlib.suppress(StreamEnded):
            while True:
                told.append(self.hear())
        return told

    def lines(self):
        return [message["line"] for message in self.heard if message["tell"] == "say"]

    def ended(self):
        """The exit code, once it has ended."""
        return self.process.wait(PATIENCE_S)

    def send_bundle(self, bundle, **changes):
        """Send the files of a bundle; returns the job for it on this machine."""
        hashes = {}
        for path in sorted(Path(bundle).iterdir()):
            hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            assert self.ask("blob", path.read_bytes(), sha256=hashes[path.name])["tell"] == "kept"
        return job_of(hashes, **changes)


def job_of(hashes, device=None, **changes):
    from small_parts import this_machine

    device = device or this_machine(batches=(1,))
    return {
        "bundle": {"name": "small", "files": hashes},
        "device": json.loads(json.dumps(device.to_json())),
        "options": {"layers": False},
        **changes,
    }


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds=30):
    """Until it is true; whether it became so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
