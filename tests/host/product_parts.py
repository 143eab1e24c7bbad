"""What a product has in its folder: a finished run (by hand), a device profile that is quick, tinkit as a command, make."""

import json
import os
import subprocess
import sys
from pathlib import Path

from export_parts import ROOT, write_run

from tinkit.device.board import architecture

MAKEFILE = os.path.join(ROOT, "tinkit", "jetson.mk")
TINKIT = f"{sys.executable} -m tinkit.cli"
OF_MAKE = (
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEFILES",
    "HOST",
    "TARGET",
    "TARGETS",
    "MODES",
    "RUN",
    "BUDGET",
    "SSH_CONFIG",
    "BOARD_PYTHON",
    "RESTORE",
    "JETSON_FLAGS",
    "TINKIT",
)  # fmt: skip - the tests may run below a make themselves


def finished_run(folder, pictures):
    """A run that can go the whole way to a report; its path."""
    return write_run(folder, pictures)


def quick_profile(path, **changes):
    """A device profile of this machine that times quickly, as a TOML file; its path as text."""
    values = {
        "schema": "tinkit-device-1",
        "description": "this machine, quickly",
        "runtimes": ["onnxruntime"],
        "arch": architecture(),
        "threads": 1,
        "batches": [1],
        "streams": [1],
        "warmup_s": 0.05,
        "min_samples": 200,
        "min_seconds": 0.2,
        **changes,
    }
    Path(path).write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return str(path)


def tinkit_command(folder):
    """A folder for PATH in which `tinkit` is this checkout's."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    script(folder / "tinkit", f'exec {TINKIT} "$@"\n')
    return str(folder)


def script(path, text):
    """A program for sh; its path as text."""
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def make(*arguments, cwd, path="", **environment):
    """A finished process of make, with both its outputs in stdout. Nothing of a make around the tests reaches it."""
    clean = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    clean["PYTHONPATH"] = ROOT
    clean["PATH"] = os.pathsep.join(filter(None, (path, clean.get("PATH", ""))))
    return subprocess.run(
        ["make", *arguments],
        cwd=cwd,
        env={**clean, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
