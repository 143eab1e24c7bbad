"""The agent's folder on a board: what was sent by its hash, engines, runs, and the lock that says who uses it.

    ~/.cache/tinkit/agent/   0700: agents/SHA.pyz  blobs/SHA  engines/  cuda/  runs/PID-TIME/  state/  pinned/  .lock

Engines are code, so the folder is this user's alone, as tinkit/device/engine_cache.py has it. Every agent holds a shared lock. A
finished run removes the folder when no other agent holds one; an interrupted run leaves it, and the next goes on with it. What
a killed agent left half done is swept by the next that is alone. The records of a changed board (state/, pinned/) outlive
all cleaning: without them the board could not be put back.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time

from tinkit import files
from tinkit.device.own_folder import own_folder, user_cache
from tinkit.errors import TinkitError, from_os_error

SHA256 = re.compile(r"[0-9a-f]{64}\Z")
MAX_BLOB = 8 << 30  # bytes
MOST_BLOBS, MOST_BYTES = 200, 4 << 30  # kept between runs; the hello has to fit into a frame
RECORDS = ("state", "pinned")  # of changes to the board: by a run, and on purpose
EMPTIED = ("blobs", "engines", "cuda", "runs")
STARTED = time.time()  # an agent file touched after this belongs to one that is starting


class AgentCache:
    """`with AgentCache() as cache:` holds the shared lock; `close(remove)` ends it.

    Raises TinkitError where the folder is not this user's alone or cannot be written.
    """

    def __init__(self, folder=None):
        self.folder = os.path.abspath(os.fspath(folder or user_cache("agent")))
        self.swept = []  # names of what a killed agent had left
        try:
            self._lock = self._locked()
            for name in ("agents",) + EMPTIED + RECORDS:
                os.makedirs(self.path(name), 0o700, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, "opening the agent's folder on the board") from error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close(remove=False)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def have(self):
        """The hashes of what is kept, the last used first."""
        return sorted((name for name in self._blobs()), key=lambda name: -os.stat(self.path("blobs", name)).st_mtime)

    def free_bytes(self):
        return shutil.disk_usage(self.folder).free

    def keep(self, sha256, payload):
        """Keep a payload (wire.Payload) under its hash; nothing partial is left. Raises TinkitError for a wrong one."""
        if not isinstance(sha256, str) or not SHA256.match(sha256):
            raise TinkitError("A file was sent under a name that is no sha256.", seen=repr(sha256)[:100])
        path = self.path("blobs", sha256)
        if os.path.lexists(path):
            payload.skip()
            return
        if payload.size > self.free_bytes():
            seen = "{:.1f} MB to be sent, {:.1f} MB free".format(payload.size / 1e6, self.free_bytes() / 1e6)
            raise TinkitError("The disk of the board is full.", where=self.folder, seen=seen, next_step=_MORE_ROOM)
        try:
            with files.atomic(path) as partial:
                seen = payload.save(partial)
                if seen != sha256:
                    raise _damaged("A file arrived damaged: its hash is another.", sha256, seen)
        except TinkitError as error:
            if isinstance(error.__cause__, OSError):  # a full disk, a quota, a limit
                text = "A file could not be kept on the board: {}".format(error.__cause__.strerror)
                raise TinkitError(text, where=path, next_step=_MORE_ROOM) from error.__cause__
            raise

    def place(self, sha256, path):
        """Put the kept file at `path` as well, checked. Raises TinkitError where it is missing or damaged."""
        kept = self.path("blobs", sha256)
        try:
            seen = files.sha256_of_file(kept)
            if seen != sha256:
                os.unlink(kept)
                raise _damaged("A file kept on the board is damaged, and was removed.", sha256, seen)
            os.utime(kept)
            os.link(kept, path)
        except FileNotFoundError:
            raise TinkitError("A file of the job was not sent.", where=path, seen="sha256 " + sha256[:12]) from None
        except OSError as error:
            raise from_os_error(error, "laying out the bundle on the board") from error

    def new_run(self):
        """A new folder for one run; it is removed with `remove_run`."""
        path = self.path("runs", "{}-{}".format(os.getpid(), time.time_ns()))
        for name in ("", "bundle", "out", "tmp"):
            os.makedirs(os.path.join(path, name), 0o700, exist_ok=True)
        return path

    def remove_run(self, path):
        shutil.rmtree(path, ignore_errors=True)

    def size_mb(self):
        """What lies in the folder, in MB of 10^6 bytes."""
        total = 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(parent, name)).st_size
        return round(total / 1e6, 3)

    def close(self, remove):
        """Give the lock back and, with `remove`, the folder where nobody else uses it. Returns (removed, MB left)."""
        if self._lock is None:
            return False, 0.0
        try:
            if remove and self._alone():
                self._remove()
            elif not remove:
                self._forget_oldest()
        finally:
            os.close(self._lock)
            self._lock = None
        there = os.path.isdir(self.folder)
        return not there, self.size_mb() if there else 0.0

    def _locked(self):
        """A handle that holds the shared lock of the folder as it is now; swept before, where nobody else has it."""
        while True:
            try:
                own_folder(self.folder)
                self._lock = os.open(self.path(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:  # another agent has just removed the folder
                continue
            if self._alone():
                self._sweep()
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            if self._is_current():
                return self._lock
            os.close(self._lock)

    def _alone(self):
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return self._is_current()

    def _is_current(self):
        """Whether the lock that is held is the folder's: whoever removes the folder removes its lock first."""
        try:
            there, ours = os.lstat(self.path(".lock")), os.fstat(self._lock)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _sweep(self):
        for kind, is_left in (("runs", lambda name: True), ("blobs", lambda name: name.endswith(".partial"))):
            for name in _names(self.path(kind)):
                if is_left(name):
                    self.swept.append(name)
                    _remove(self.path(kind, name))

    def _remove(self):
        """Everything but the records of a changed board; the lock's file goes last."""
        for name in EMPTIED:
            _remove(self.path(name))
        for name in _names(self.path("agents")):
            if os.lstat(self.path("agents", name)).st_mtime <= STARTED:
                _remove(self.path("agents", name))
        for name in ("agents",) + RECORDS:
            with contextlib.suppress(OSError):  # not empty: somebody needs it
                os.rmdir(self.path(name))
        with contextlib.suppress(OSError):
            os.unlink(self.path(".lock"))
        for path in (self.folder, os.path.dirname(self.folder)):
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def _forget_oldest(self):
        total = 0
        for number, name in enumerate(self.have()):
            total += os.stat(self.path("blobs", name)).st_size
            if number >= MOST_BLOBS or total > MOST_BYTES:
                os.unlink(self.path("blobs", name))

    def _blobs(self):
        return [name for name in _names(self.path("blobs")) if SHA256.match(name)]


_MORE_ROOM = "free some space on the board, or set XDG_CACHE_HOME to a larger disk there"


def _damaged(what, wanted, seen):
    told = "sha256 {}..., expected {}...".format(seen[:12], wanted[:12])
    return TinkitError(what, seen=told, next_step="run it again: it is sent again then")


def _names(folder):
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
