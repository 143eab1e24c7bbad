"""Memory of a training step, kept for the next one: on a CPU glibc gives large blocks back to the system and takes them anew,
hundreds of megabytes a step, which the kernel must fill with zeros each time. Measured in docs/speed.md.
"""

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt(3)
NEVER, LARGEST_THRESHOLD, DEFAULT_MMAP_MAX, DEFAULT_TRIM = -1, 32 << 20, 65536, 128 << 10


@contextlib.contextmanager
def kept_memory(device: str):
    """Freed blocks stay with the process until the end, then go back. On a GPU, or without glibc, nothing is changed.

    Afterwards malloc has its defaults again, but for the threshold of large blocks: 32 MiB, where glibc's own adjusting ends.
    """
    malloc = _glibc() if device == "cpu" else None
    if malloc is None:
        yield
        return
    malloc.mallopt(MMAP_MAX, 0)
    malloc.mallopt(TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        malloc.mallopt(MMAP_MAX, DEFAULT_MMAP_MAX)
        malloc.mallopt(MMAP_THRESHOLD, LARGEST_THRESHOLD)
        malloc.mallopt(TRIM_THRESHOLD, DEFAULT_TRIM)
        malloc.malloc_trim(0)


def _glibc():
    """The C library of this process when it is glibc: others have no mallopt, or one that means something else."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
