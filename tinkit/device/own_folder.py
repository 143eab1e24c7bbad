"""Folders that are this user's alone: engines and agents are code, and running them runs what somebody put there.

Owned, 0700, no links, in a parent that others cannot write to, and not below a shared temporary folder.
"""

import contextlib
import os
import stat

from tinkit.errors import TinkitError


def user_cache(name):
    """`~/.cache/tinkit/NAME`; XDG_CACHE_HOME counts where it is absolute (its specification says so)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser(os.path.join("~", ".cache"))
    if not os.path.isabs(base):
        raise TinkitError(
            "There is no home folder to keep a cache in.", next_step="set XDG_CACHE_HOME to a folder of your own"
        )
    return os.path.join(base, "tinkit", name)


def own_folder(folder):
    """Make a folder (0700) where it is not there, and check that nobody else can put anything into it; returns it.

    Raises TinkitError where somebody can, OSError where it cannot be made, or is removed just now.
    """
    parent = os.path.dirname(folder)
    os.makedirs(os.path.dirname(parent), exist_ok=True)
    for path in (parent, folder):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    above = os.stat(os.path.dirname(parent))  # a link is fine here: a home folder may lie on another disk
    if above.st_mode & stat.S_IWOTH:
        raise not_ours(os.path.dirname(parent), "everybody can write there: a shared temporary folder")
    check_owner(parent, os.lstat(parent), stat.S_ISDIR, stat.S_IWOTH, {0, os.geteuid()})
    check_owner(folder, os.lstat(folder), stat.S_ISDIR, stat.S_IRWXG | stat.S_IRWXO, {os.geteuid()})
    return folder


def check_owner(path, status, right_kind, forbidden, owners):
    """status: os.lstat or os.fstat of it; right_kind: stat.S_ISDIR or S_ISREG; forbidden: mode bits; owners: user numbers."""
    if not right_kind(status.st_mode):
        raise not_ours(path, "a link or another kind of file")
    if status.st_uid not in owners:
        raise not_ours(path, "it belongs to user {}, this is user {}".format(status.st_uid, os.geteuid()))
    if status.st_mode & forbidden:
        raise not_ours(path, "others have rights there: mode {:o}".format(stat.S_IMODE(status.st_mode)))


def not_ours(path, seen):
    return TinkitError(
        "Engines and agents are kept only where nobody else can put one: using one runs what is in it.",
        where=path,
        seen=seen,
        next_step="remove it or give it to this user alone (chmod go-rwx), or set XDG_CACHE_HOME to a folder of your own",
    )
