"""Memory that stays with the process: on a CPU glibc gives large blocks back to the system and takes them anew, hundreds of
megabytes a batch of a network, which the kernel must fill with zeros each time. Measured in docs/speed.md.
"""

import contextlib
import ctypes
import threading

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
NEVER, LARGEST_THRESHOLD, DEFAULT_MMAP_MAX, DEFAULT_TRIM = -1, 32 << 20, 65536, 128 << 10

_lock, _users = threading.Lock(), 0


@contextlib.contextmanager
def kept_memory():
    """Freed blocks stay with the process until the last of these contexts ends, then go back.

    Nothing is changed with a GPU, where torch keeps memory itself, or without glibc. Afterwards malloc has its defaults
    again, but for the threshold of large blocks: 32 MiB, where glibc's own adjusting ends.
    """
    malloc = None if torch.cuda.is_available() else _glibc()
    if malloc is None:
        yield
        return
    _count(+1, malloc)
    try:
        yield
    finally:
        _count(-1, malloc)


def _count(change, malloc):
    global _users
    with _lock:
        before, _users = _users, _users + change
        if not before:
            malloc.mallopt(MMAP_MAX, 0)
            malloc.mallopt(TRIM_THRESHOLD, NEVER)
        elif not _users:
            malloc.mallopt(MMAP_MAX, DEFAULT_MMAP_MAX)
            malloc.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
            malloc.mallopt(TRIM_THRESHOLD, DEFAULT_TRIM)
            malloc.malloc_trim(0)


def _glibc():
    """The C library of this process when it is glibc: others have no mallopt, or one that means something else."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
