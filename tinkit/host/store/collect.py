"""Removes stores: those that no run can use any more, and those that were used longest ago until the rest fits a limit.

A store that is being read or written is held by the kernel's locks (`mapped.InUse`, `files.folder_lock`), and is never
removed; nor is a folder with anything in it that no store writes. Removing begins with another name: whoever opens the
store from then on finds none and makes it anew, and what a kill leaves goes the next time.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator

from tinkit.errors import from_os_error
from tinkit.host.store.listing import DAMAGED, FINISHED, OLDER, Listed, list_stores
from tinkit.host.store.shards import IDENTITY, REMOVED, USED
from tinkit.host.store.size import told_size

DAY_S = 86_400.0
OWN = re.compile(
    r"((identity|chunks)\.jsonl?|\d+\.jsonl|[\w.-]+\.bin)(\.\d+\.partial)?|used|\.lock"
)  # names of a store's files


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
    if remove:
        _remove_leftovers(root)
    kept = keep and os.path.realpath(keep)
    stores = [one for one in list_stores(root) if os.path.realpath(one.path) != kept and _only_ours(one.path)]
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
            say(f"feature store: removed {one.path}, {told_size(one.bytes)}, {reason}")
    return found


class Collected:
    """A store that went or could go, and why."""

    def __init__(self, store: Listed, reason: str):
        self.name, self.bytes, self.reason = store.name, store.bytes, reason


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


def _only_ours(path) -> bool:
    """Whether all there is are a store's files, of this version or of an older one, and more than an identity."""
    try:
        names = os.listdir(path)
    except OSError:
        return False
    return not os.path.islink(path) and names != [IDENTITY] and all(OWN.fullmatch(name) for name in names)


def _remove(path) -> None:
    aside = f"{path}.{os.getpid()}{REMOVED}"
    try:
        os.rename(path, aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise from_os_error(error, f"removing {path}") from error


def _remove_leftovers(root) -> None:
    """What was begun to be removed; another process may be at it now."""
    for name in os.listdir(root) if os.path.isdir(root) else []:
        path = os.path.join(root, name)
        if name.endswith(REMOVED) and _only_ours(path):
            shutil.rmtree(path, ignore_errors=True)
