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
    """runtime -> version of those that are installed here; looked up without importing them, so whether they work is open."""
    found = {}
    for runtime, names in RUNTIMES.items():
        for name in names:
            with contextlib.suppress(ImportError, ValueError):
                if find_spec(name) is not None:
                    found.setdefault(runtime, _version(name))
    return found


def _version(name):
    """What the package's own metadata say; the distribution is often called otherwise (onnxruntime-gpu)."""
    metadata = import_module("importlib.metadata")
    for suffix in ("", "-gpu", "-openvino", "-cu12", "-cu13"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return str(metadata.version(name + suffix))
    return "unknown"
