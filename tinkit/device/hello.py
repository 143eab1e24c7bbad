"""What the agent says of a board when it is asked for nothing else: versions, machine, board, runtimes.

Read-only, and no runtime is imported: that one is installed does not say that it works.
"""

import contextlib
import platform
from importlib import import_module
from importlib.util import find_spec

import numpy as np

import tinkit
from tinkit.device import board
from tinkit.device.jetson import board_facts
from tinkit.device.wire import WIRE

SUFFIXES = ("", "-gpu", "-openvino", "-cu12", "-cu13")  # of the distribution's name
RUNTIMES = {"onnxruntime": ("onnxruntime",), "tensorrt": ("tensorrt", "tensorrt_bindings"), "openvino": ("openvino",)}


def hello(root="/", commands=None):
    """The hello frame, less what the cache holds. root: where the board's files and tools are looked up."""
    return {
        "tell": "hello",
        "wire": WIRE,
        "tinkit": tinkit.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": board.machine(root),
        "board": board_facts(root, commands),
        "runtimes": runtimes(),
    }


def runtimes():
    """runtime -> version of those that are installed here; looked up without importing them, so whether they work is open.

    A distribution that is not called like its runtime is there under its own name as well (onnxruntime-gpu).
    """
    found = {}
    for runtime, names in RUNTIMES.items():
        for name in names:
            with contextlib.suppress(ImportError, ValueError):
                if find_spec(name) is not None:
                    versions = _versions(name)
                    found.setdefault(runtime, next(iter(versions.values()), "unknown"))
                    found.update({runtime + suffix: version for suffix, version in versions.items() if suffix})
    return found


def _versions(name):
    """suffix -> version of every distribution that may have brought the package, by its metadata; the plain one first."""
    metadata = import_module("importlib.metadata")
    found = {}
    for suffix in SUFFIXES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[suffix] = str(metadata.version(name + suffix))
    return found
