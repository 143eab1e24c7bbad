"""Far sides: a real sshd on loopback, programs that pretend to be a board, a bare Python, and a small bundle to send.

The sshd has its own configuration, host key, user key and port, and an ssh configuration for `-F`; nothing of the user's own
is read or written. A pretended board is a program that takes the place of the far Python, so that it works with and
without ssh: it is called as `PROGRAM -c CODE SHA SIZE serve`.
"""

import contextlib
import functools
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
from small_parts import PREPROCESSING, SIZE, small_exam, small_model, small_target, this_machine

from tinkit.bundle import MODEL, write_bundle
from tinkit.device.latency import summary
from tinkit.fidelity import PASSED, Fidelity
from tinkit.results import Latency, Report

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
NO_SSHD = "" if SSHD and shutil.which("ssh") and shutil.which("ssh-keygen") else "there is no sshd here"
NAME = "board"

# What every pretended board begins with; `talk` is a board that behaves, but for the asks that are given another answer.
PRELUDE = r"""
import json, os, sys, time
sha, size = sys.argv[3], int(sys.argv[4])
folder = os.path.dirname(os.path.abspath(__file__))
def out(data):
    while data:
        data = data[os.write(1, data):]
def tell(message, data=b""):
    out(json.dumps(dict(message, **({"size": len(data)} if data else {}))).encode() + b"\n" + data)
def ask():
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit(1)
    message = json.loads(line)
    sys.stdin.buffer.read(message.get("size", 0))
    return message
def have():
    out(("\ntinkit-have " + sha + "\n").encode())
HELLO = {"tell": "hello", "wire": 1, "tinkit": "0", "python": "3.8", "numpy": "1.17", "machine": {"arch": os.uname()[4]},
         "board": {}, "runtimes": {"onnxruntime": "1"}, "have": [], "cache": "/nowhere", "free_bytes": 10**9}
def report():
    with open(os.path.join(folder, "report.json"), "rb") as handle:
        return handle.read()
def send_report(data=None):
    tell({"tell": "file", "name": "report.json"}, report() if data is None else data)
def done(message=None):
    tell({"tell": "done", "steps": {"exam": 0.5}})
def measure(message):
    tell({"tell": "say", "line": "exam     passed"})
    send_report()
    done()
def talk(**answers):
    have()
    while True:
        message = ask()
        name = message["ask"]
        with open(os.path.join(folder, "asked.jsonl"), "a") as handle:
            handle.write(json.dumps(message) + "\n")
        if name in answers:
            answers[name](message)
        elif name == "hello":
            tell(HELLO)
        elif name == "blob":
            tell({"tell": "kept", "sha256": message["sha256"]})
        elif name == "profile":
            measure(message)
        elif name == "bye":
            tell({"tell": "bye", "removed": True, "left_mb": 0})
            return
"""


def fake_far_side(folder, script="talk()\n", bundle=None, report=None):
    """A program that pretends to be the board's Python; its path. `script` follows PRELUDE.

    report: what it sends as report.json, by default a good one of `bundle`. What it was asked lies in asked.jsonl.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if report is None and bundle is not None:
        report = json.dumps(good_report(bundle)).encode()
    (folder / "report.json").write_bytes(report or b"")
    return program(folder / "python", PRELUDE + script)


def program(path, text):
    """An executable Python program; returns its path as text."""
    path.write_text(f"#!{sys.executable} -S\n{text}")
    path.chmod(0o755)
    return str(path)


def asked(far_side):
    """The messages that a pretended board was asked, but those that only say that we live."""
    path = Path(far_side).parent / "asked.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def board_bundle(folder, **manifest):
    """A small bundle with an exam, opened."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = small_target()
    value = {
        "name": "small",
        "created": "2025-01-01T00:00:00+00:00",
        "target": target.to_json(),
        "preprocessing": PREPROCESSING.to_json(),
        "tensors": {
            "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, SIZE, SIZE]}],
            "outputs": [{"name": "embedding", "dtype": "float32", "shape": ["batch", 8]}],
        },
        "chain": [hop("pytorch -> onnx").to_json()],
        "host_gate": {"verdict": PASSED},
    }
    return write_bundle(folder / "bundle", small_model(folder / "small.onnx"), {**value, **manifest}, small_exam())


def hop(name, verdict=PASSED):
    return Fidelity(name, "embedding", 6, 1.0, 1.0, 1.0, 0.0, 0.0, [], verdict)


@functools.cache
def timed(batch=1):
    """A `Latency` of 200 runs, from 2 to 4 ms."""
    times = summary(np.linspace(2, 4, 200))
    del times["block"]
    return Latency(batch=batch, threads=1, samples=200, seconds=1.0, warmup_runs=20, stable=True, contended=False,
                   wall_per_cpu=1.0, **times)  # fmt: skip


def good_report(bundle, /, **changes):
    """What an honest board would send of this bundle, as plain data."""
    report = Report(
        title="small on a board",
        verdict=PASSED,
        rehearsal="",
        bundle={"model_sha256": bundle.manifest["files"][MODEL]["sha256"]},
        device={},
        chain=[hop("pytorch -> onnx"), hop("onnx -> onnxruntime")],
        latency=[timed()],
        budgets=[],
        load_ms=1.0,
        peak_mb=20.0,
        machine={"arch": "x86_64"},
        versions={"onnxruntime": "1"},
        created="2025-01-01T00:00:00+00:00",
    )
    return {**report.to_json(), **changes}


def quick_device(**changes):
    return this_machine(**{"batches": (1,), **changes})


class Sshd:
    """One sshd. `config` is the file for ssh -F, in which the board is called `board`; `cache` is its XDG_CACHE_HOME."""

    def __init__(self, folder, cache):
        self.folder, self.cache = Path(folder), Path(cache)
        self.config, self.known_hosts = str(self.folder / "ssh_config"), self.folder / "known_hosts"
        self.port, self._process = _free_port(), None

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        os.chmod(self.folder, 0o700)
        host_key, user_key = self.folder / "host_key", self.folder / "user_key"
        for key in (host_key, user_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (self.folder / "authorized_keys").write_text(Path(f"{user_key}.pub").read_text())
        self.know(Path(f"{host_key}.pub").read_text())
        (self.folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {host_key}\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nLogLevel VERBOSE\n"
            f"SetEnv XDG_CACHE_HOME={self.cache}\n"
        )
        self.write_config()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where Debian's sshd locks itself in
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, what="sshd answers")
        return self

    def __exit__(self, *error):
        for pid in [*self.sessions(), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        self._process.wait(10)

    def know(self, public_key):
        """From now on this is the only host key that ssh knows; "" for none."""
        kind_and_key = " ".join(public_key.split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind_and_key}\n" if public_key else "")

    def write_config(self, **changes):
        """The file for -F; changes: other values of its options."""
        options = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": getpass.getuser(),
            "IdentityFile": self.folder / "user_key",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            **changes,
        }
        lines = [f"  {name} {value}" for name, value in options.items()]
        Path(self.config).write_text("\n".join([f"Host {NAME}", *lines, ""]))

    def sessions(self):
        """Process numbers of the sshd's own children: one for each connection."""
        return children(self._process.pid)

    def _answers(self):
        if self._process.poll() is not None:
            raise RuntimeError((self.folder / "log").read_text())
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def at_a_terminal():
    """For Popen's preexec_fn: Ctrl-C is not ignored, as it is in what a script started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until(question, seconds=30, what="it"):
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := question():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


def children(pid):
    """Numbers of the direct children of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.parent.name))
    return sorted(found)


def descendants(pid):
    """[(number, command line)] of everything below a process."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            found.append((child, Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()))
        found += descendants(child)
    return found


def bare_python(folder, packages=("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "google", "packaging", "PIL",
                                  "pillow.libs")):  # fmt: skip
    """A virtual environment with only these packages, linked from the one that runs here; the path of its Python.

    It has neither torch nor tinkit, and no pip was needed.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    here = Path(sysconfig.get_paths()["purelib"])
    there = next(Path(folder).glob("lib/python3.*/site-packages"))
    for name in packages:
        for path in [*here.glob(name), *here.glob(f"{name.replace('.libs', '')}-*.dist-info")]:
            with contextlib.suppress(FileExistsError):
                (there / path.name).symlink_to(path)
    return str(Path(folder) / "bin" / "python")
