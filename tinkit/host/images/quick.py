"""The addresses of pictures that are not opened: a million of them before the first one could have been decoded.

A file's address is the sha256 of its name, size and time of change; that of a picture inside a tar or a table, of its name,
of where it lies there, and of the size and time of that file. So a changed file is another picture, and so is a copy,
which only its bytes would give away. What is no regular file, empty or not there is known without opening it.
"""

import hashlib
import os
import stat

import numpy as np

from tinkit.host.images.catalogue import ADDRESS_BYTES, Catalogue
from tinkit.host.images.reading import patiently

ADDRESS = "name, size and time"


def quick_addresses(pictures: Catalogue, done) -> np.ndarray:
    """(N, 32) uint8 addresses. `done(number, reason)` is called for each picture, with None for a usable one."""
    contents_N32 = np.zeros((len(pictures), ADDRESS_BYTES), np.uint8)
    holders = [_seen(pictures.root, holder.name) for holder in pictures.holders]
    for number in range(len(pictures)):
        name = pictures.name(number)
        if holders:
            status, reason = holders[pictures.holder_N[number]]
            place = f"{pictures.at_N[number]}:{pictures.size_N[number]}"
        else:
            (status, reason), place = _seen(pictures.root, name), ""
        if status is not None:
            told = f"\0{place}\0{status.st_size}\0{status.st_mtime_ns}"
            digest = hashlib.sha256(os.fsencode(name) + told.encode()).digest()
            contents_N32[number] = np.frombuffer(digest, np.uint8)
        done(number, reason)
    return contents_N32


def refusal(status) -> str | None:
    """Why something with this status is not opened: a pipe would be waited on for ever."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return None if status.st_size else "an empty file"


def _seen(root, name):
    """(status, None) of a file that may be opened, (None, reason) of another."""
    path = os.path.join(root, name)
    try:
        status = patiently(lambda: os.stat(path), path, root=root)
    except OSError as error:
        return None, (error.strerror or str(error)).lower()
    reason = refusal(status)
    return (status, None) if reason is None else (None, reason)
