"""Read small files of the system under a root: foreign text, never believed, and never waited for.

A file that is not there, cannot be read, is a pipe or holds nonsense is "", [] or None.
"""

import os
import re
import stat

MAX_TEXT = 1 << 16  # letters


def text(root, path, limit=MAX_TEXT):
    """A text file, as far as its first `limit` letters; "" where there is none."""
    try:
        with open_file(root, path) as handle:
            return handle.read(limit)
    except OSError:
        return ""


def number(root, path):
    """The whole number that a file of the kernel's holds; None where there is none."""
    found = re.match(r"\s*(-?[0-9]{1,15})\s*\Z", text(root, path, 64))
    return int(found.group(1)) if found else None


def strings(root, path):
    """Strings of the device tree (each ends in NUL), at most 32 of 200 letters, without what a terminal would obey."""
    parts = text(root, path).split("\0")
    cleaned = ("".join(letter for letter in part if letter.isprintable()).strip() for part in parts[:32])
    return [part[:200] for part in cleaned if part]


def names(root, folder):
    """Sorted names in a folder, at most 1024; [] where it is not there."""
    try:
        return sorted(os.listdir(os.path.join(root, folder)))[:1024]
    except OSError:
        return []


def open_file(root, path):
    """Open a file to read as text. OSError for everything else, a pipe without a writer too."""
    handle = os.open(os.path.join(root, path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("not a file: {}".format(path))
    return os.fdopen(handle, encoding="utf-8", errors="replace")
