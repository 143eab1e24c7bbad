"""Removes stores: those that no run can use any more, and those that were used longest ago until the rest fits a limit.

A store that is being read or written is held by the kernel's locks (`mapped.InUse`, `files.folder_lock`), and is never
removed. Removing begins with the identity: a folder that is half removed is no store.
"""

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator

from tinkit.errors import from_os_error
from tinkit.host.store.listing import DAMAGED, FINISHED, OLDER, Listed, list_stores
from tinkit.host.store.shards import IDENTITY, USED

DAY_S = 86_400.0


def collect(
    root,
    limit_bytes: int | None = None,
    unused_days: float | None = None,
    keep=None,
    say: Callable[[str], None] | None = None,
    remove: bool = True,
    useless: bool = True,
    now: Callable[[], float] = time.time,
) -> list["Collected"]:
    """Remove, or with `remove` False only name, what can go below `root`. `keep`: the path of a store to leave alone.

    With `useless` stores of another version and damaged ones go; with `unused_days` those not used for so long; with
    `limit_bytes` those used longest ago, until what is left takes no more. Unfinished stores go by the same two rules: a run
    may go on with them.
    """
    stores = [one for one in list_stores(root) if keep is None or not os.path.samefile(one.path, keep)]
    left, found = sum(one.bytes for one in stores), []
    for one in reversed(stores):  # used longest ago first
        reason = _reason(one, left, limit_bytes, unused_days, useless, now())
        if reason is None:
            continue
        with _nobody_else(one.path) as free:
            if not free:
                continue
            if remove:
                _remove(one.path)
        left -= one.bytes
        found.append(Collected(one, reason))
        if say and remove:
            say(f"feature store: removed {one.path}, {one.megabytes:.0f} MB, {reason}")
    return found


class Collected:
    """A store that went or could go, and why."""

    def __init__(self, store: Listed, reason: str):
        self.name, self.megabytes, self.reason = store.name, store.megabytes, reason


def _reason(one: Listed, left, limit_bytes, unused_days, useless, now) -> str | None:
    days = (now - one.used) / DAY_S
    if useless and one.state in (DAMAGED, OLDER):
        return f"{one.state}: no run can use it"
    state = "" if one.state == FINISHED else f"{one.state}, "
    if unused_days is not None and days > unused_days:
        return f"{state}not used for {days:.1f} days"
    if limit_bytes is not None and left > limit_bytes:
        return f"{state}used longest ago, {days:.1f} days"
    return None


@contextlib.contextmanager
def _nobody_else(path) -> Iterator[bool]:
    """True while no process reads or writes the store, and none can begin to."""
    handles = []
    try:
        for name in (".lock", USED):
            handles.append(os.open(os.path.join(path, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            fcntl.flock(handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        for handle in handles:
            os.close(handle)


def _remove(path) -> None:
    try:
        os.unlink(os.path.join(path, IDENTITY))
        shutil.rmtree(path)
    except OSError as error:
        raise from_os_error(error, f"removing {path}") from error
