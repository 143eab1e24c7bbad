"""Engines kept by what they were made of, so that a board builds one once and never runs a stranger's.

Every part of an engine's identity (tinkit/device/engine_identity.py) is compared again when it is loaded. Loading one
runs what is in it, so the folder is this user's alone: owned, 0700, no links, nothing shared. Beside each `KEY.plan` lies
`KEY.json` with the identity, the plan's hash and what is good to know (the build's seconds, the power mode); it is
written last, and its time is that of the last use. TensorRT's timing caches lie there the same way.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import time

from tinkit import files
from tinkit.device.engine_identity import differences
from tinkit.device.own_folder import check_owner, not_ours, own_folder, user_cache
from tinkit.errors import TinkitError, from_os_error

LIMIT_GB = 2.0
PLAN, RECORD = ".plan", ".json"
STALE_S = 3600  # a partial file of a process that died
OPEN_NO_LINK = os.O_RDONLY | os.O_NOFOLLOW


class EngineCache:
    """A folder of engines; the user's own cache folder unless another is given. `say(line)` hears what is not used and why.

    Raises TinkitError where the folder is not this user's alone.
    """

    def __init__(self, folder=None, limit_gb=LIMIT_GB, say=None):
        self.folder, self.limit_gb = os.path.abspath(os.fspath(folder or user_cache("engines"))), limit_gb
        self._say = say or (lambda line: None)
        _own(self.folder)

    def path(self, identity):
        """Where what has this identity lies, or would."""
        return os.path.join(self.folder, "{}-{}{}".format(identity["kind"], files.sha256_of_json(identity)[:32], PLAN))

    def lookup(self, identity):
        """The plan (bytes) of exactly this identity, or None; a damaged or foreign one is not used, and told."""
        path = self.path(identity)
        with files.folder_lock(self.folder, "the engine cache", wait=True):
            if not os.path.lexists(_record_of(path)):
                return None
            try:
                plan = open_foreign(path, identity)
            except TinkitError as error:
                self._say("{} is not used: {} {}".format(path, error.what, error.seen or "").rstrip())
                return None
            os.utime(_record_of(path))
        return plan

    def keep(self, identity, plan, facts=None):
        """Write a plan with its record; `facts` are plain data that are no part of its identity. Returns its path.

        Beyond the limit the engines that were not used for longest are removed, and told; never this one.
        """
        path, data = self.path(identity), bytes(plan)
        record = {"identity": identity, "sha256": _sha256(data), "facts": dict(facts or {})}
        with files.folder_lock(self.folder, "the engine cache", wait=True):
            _write(path, data)
            _write(_record_of(path), (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())
            self._remove_oldest(path)
        return path

    def facts(self, identity):
        """What was kept beside the plan of this identity; {} where there is none."""
        with contextlib.suppress(TinkitError):
            return dict(_record(_record_of(self.path(identity))).get("facts", {}))
        return {}

    def _remove_oldest(self, newest):
        sizes, used = {}, {}
        for name in os.listdir(self.folder):
            path = os.path.join(self.folder, name)
            if name.endswith(".partial") and time.time() - os.lstat(path).st_mtime > STALE_S:
                os.unlink(path)
            elif name.endswith(PLAN):
                newer = _record_of(path) if os.path.lexists(_record_of(path)) else path
                sizes[path], used[path] = os.lstat(path).st_size, os.lstat(newer).st_mtime
        for path in sorted(set(sizes) - {newest}, key=used.get):
            if sum(sizes.values()) <= self.limit_gb * 1e9:
                return
            for gone in (_record_of(path), path):  # the record first: a plan without one is nothing
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(gone)
            told = "the engine cache is over {:g} GB: {} ({:.1f} MB) was not used for longest and is removed"
            self._say(told.format(self.limit_gb, path, sizes.pop(path) / 1e6))


def open_foreign(path, identity):
    """The plan in a file, where its record beside it says that it was made for exactly this identity.

    Raises TinkitError with the parts that differ, and for damage, links, and files that others can write.
    """
    path = os.fspath(path)
    record = _record(_record_of(path))
    seen = record.get("identity")
    wrong = differences(seen, identity) if isinstance(seen, dict) else ["its record names no identity"]
    if wrong:
        raise TinkitError(
            "The engine was made elsewhere or for something else.",
            where=path,
            seen="; ".join(wrong),
            next_step="engines are built on the machine that runs them: profile the bundle here",
        )
    plan = _read(path)
    if _sha256(plan) != record.get("sha256"):
        raise TinkitError(
            "The engine is damaged.", where=path, seen="its hash is not the recorded one", next_step="remove it"
        )
    return plan


def _own(folder):
    try:
        return own_folder(folder)
    except OSError as error:
        raise TinkitError(
            "There is no place to keep engines.",
            where=folder,
            seen=error.strerror,
            next_step="set XDG_CACHE_HOME to a folder of your own",
        ) from error


def _record_of(path):
    return path[: -len(PLAN)] + RECORD if path.endswith(PLAN) else path + RECORD


def _record(path):
    try:
        value = json.loads(_read(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TinkitError("The engine's record cannot be read.", where=path, seen=str(error)) from None
    if not isinstance(value, dict):
        raise TinkitError("The engine's record cannot be read.", where=path, seen=type(value).__name__)
    return value


def _read(path):
    """The bytes of a file of ours; a link is refused by the kernel, and the rights are those of the opened file."""
    try:
        with os.fdopen(os.open(path, OPEN_NO_LINK), "rb") as handle:
            check_owner(path, os.fstat(handle.fileno()), stat.S_ISREG, stat.S_IRWXG | stat.S_IRWXO, {os.geteuid()})
            return handle.read()
    except FileNotFoundError:
        raise TinkitError("The engine or its record is missing.", where=path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise not_ours(path, "a link") from None
        raise from_os_error(error, "reading {}".format(path)) from error


def _write(path, data):
    with files.atomic(path) as partial:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)  # of a process that died with our number
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(partial, flags, 0o600), "wb") as handle:
            handle.write(data)


def _sha256(data):
    return hashlib.sha256(data).hexdigest()
