"""Puts back a thread's stack for signals, which OpenVINO replaces and takes away again.

Compiling a model gives the calling thread an alternate signal stack in memory that goes with the model (seen with OpenVINO
2026 on a processor with AMX). Python's handlers run on it: Ctrl-C, or the end of a child process, then kills the process
with a segmentation fault. Linux and macOS; elsewhere nothing is done.
"""

import contextlib
import ctypes
import sys

DISABLED = 2 if sys.platform.startswith("linux") else 4  # SS_DISABLE


class _Stack(ctypes.Structure):
    _fields_ = (
        [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
        if sys.platform.startswith("linux")
        else [("start", ctypes.c_void_p), ("size", ctypes.c_size_t), ("flags", ctypes.c_int)]
    )


@contextlib.contextmanager
def own_signal_stack():
    """Afterwards this thread has the signal stack that it had before, or none."""
    library = ctypes.CDLL(None) if sys.platform.startswith(("linux", "darwin")) else None
    if library is None or not hasattr(library, "sigaltstack"):
        yield
        return
    before = _Stack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


def signal_stack():
    """The address of this thread's alternate signal stack, None where it has none."""
    now = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    return None if now.flags & DISABLED else now.start
