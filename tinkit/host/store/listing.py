"""The stores below a folder, as a person asks for them: whose, how large, finished or not, used when."""

import contextlib
import os
import time
from dataclasses import dataclass

from tinkit.errors import TinkitError
from tinkit.host.store.identity import SCHEMA
from tinkit.host.store.mapped import is_finished
from tinkit.host.store.shards import IDENTITY, USED, paths_of, read_identity
from tinkit.host.store.size import told_size

FINISHED, UNFINISHED, DAMAGED, OLDER = "finished", "unfinished", "damaged", "another version"


@dataclass(frozen=True)
class Listed:
    """One store. `used`: seconds since the epoch, of the last opening. `bytes`: of its files."""

    path: str
    state: str
    bytes: int
    used: float
    teacher: str = "?"
    pictures: int = 0
    views: int = 0
    dtype: str = "?"

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def row(self) -> tuple[str, ...]:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        return (self.name, self.teacher, str(self.pictures), str(self.views), self.dtype, told_size(self.bytes),
                self.state, used)  # fmt: skip


def list_stores(root) -> list[Listed]:
    """All stores below `root`, the one that was used last first; other folders are left out."""
    found = []
    for path in paths_of(root):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            found.append(look_at(path))
    return sorted(found, key=lambda one: -one.used)


def look_at(path) -> Listed:
    """The store in this folder; one that cannot be read is `DAMAGED` or `OLDER`, and is no error."""
    known = {"path": path, "bytes": _bytes(path), "used": _used(path)}
    try:
        identity, layout = read_identity(path)
    except TinkitError:
        return Listed(state=OLDER if _is_older(path) else DAMAGED, **known)
    except (KeyError, TypeError, ValueError):
        return Listed(state=DAMAGED, **known)
    state = FINISHED if is_finished(path, layout) else UNFINISHED
    return Listed(
        state=state,
        teacher=str(identity["teacher"].get("name", "?")),
        pictures=layout.pictures,
        views=layout.views,
        dtype=identity["dtype"],
        **known,
    )


def _is_older(path) -> bool:
    """Whether the identity says that another version of tinkit wrote it."""
    from tinkit import files

    try:
        identity = files.read_json(os.path.join(path, IDENTITY), "The store's identity").get("identity")
    except TinkitError:
        return False
    schema = identity.get("schema") if isinstance(identity, dict) else None
    return isinstance(schema, str) and schema.startswith("tinkit-store-") and schema != SCHEMA


def _bytes(path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # removed meanwhile
                continue
    return total


def _used(path) -> float:
    stamp = os.path.join(path, USED)
    return os.path.getmtime(stamp if os.path.exists(stamp) else os.path.join(path, IDENTITY))
