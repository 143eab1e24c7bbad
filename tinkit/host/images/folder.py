"""What is below a folder: one walk that opens nothing, and asks the disk about links only.

Hidden files and folders are left out; linked folders are followed, loops are not. The names of a million files are listed
in seconds, because the directory itself says what is a file.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from tinkit.device.pictures import suffixes
from tinkit.host.images.reading import patiently

TAR_ENDING, TABLE_ENDINGS = ".tar", (".parquet", ".arrow")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


@dataclass
class Contents:
    """Names relative to the folder: pictures by their ending, files without one (`unnamed`), tars, tables.

    others: counts the rest; lost: (folder, reason) that could not be listed.
    """

    pictures: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    tars: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    compressed: list[str] = field(default_factory=list)
    others: int = 0
    lost: list[tuple[str, str]] = field(default_factory=list)


def look_into(root, stop: Callable[[], bool] | None = None) -> Contents:
    """Everything below `root`, each list sorted. InterruptedError once `stop()` is true; TinkitError for a lost share."""
    found, endings, seen = Contents(), suffixes(), set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        path = os.path.join(root, inside) if inside else root
        if stop and stop():
            raise InterruptedError
        try:
            identity, entries = patiently(lambda path=path: _entries(path), path, root=root)  # type: ignore[misc]
        except OSError as error:
            found.lost.append((inside or ".", "cannot be listed: " + (error.strerror or str(error)).lower()))
            continue
        if identity in seen:
            continue
        seen.add(identity)
        prefix = inside + os.sep if inside else ""
        for name, is_folder, is_file in entries:
            if is_folder:
                if not name.startswith("."):
                    waiting.append(prefix + name)
            elif name.startswith(".") or not is_file:
                found.others += 1
            else:
                _sort_in(found, prefix + name, name, endings)
    for names in (found.pictures, found.unnamed, found.tars, found.tables, found.compressed):
        names.sort()
    return found


def _entries(path):
    """((device, inode) of the folder, [(name, is a folder, is a file or a broken link)])."""
    status = os.stat(path)
    with os.scandir(path) as entries:
        found = [(entry.name, *_kind(entry)) for entry in entries]
    return (status.st_dev, status.st_ino), found


def _kind(entry):
    try:
        if entry.is_dir():
            return True, False
        if entry.is_file():
            return False, True
        return False, entry.is_symlink() and not os.path.exists(entry.path)
    except OSError:  # a link to itself: it is tried, and told with its reason
        return False, True


def _sort_in(found: Contents, name, own, endings):
    ending = os.path.splitext(own)[1].lower()
    if ending in endings:
        found.pictures.append(name)
    elif ending == "":
        found.unnamed.append(name)
    elif ending == TAR_ENDING:
        found.tars.append(name)
    elif ending in TABLE_ENDINGS:
        found.tables.append(name)
    elif own.lower().endswith(COMPRESSED):
        found.compressed.append(name)
    else:
        found.others += 1
