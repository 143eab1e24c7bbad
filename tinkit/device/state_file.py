"""What was changed on a board and how it was before, kept so that any later process can put it back.

One JSON file, `state.json`, in a folder of this user's alone: {"version", "pid", "started", "boot", "when", "steps"}. A
step is written before it is made. A process is told apart from a later one of the same number by its start and the boot.
"""

import contextlib
import os
import re
import stat
import time

from tinkit import files
from tinkit.errors import TinkitError, from_os_error

NAME = "state.json"
MAX_STEPS = 16
STEPS = {
    "mode": {"kind": str, "from": str, "to": str, "pinned": bool},
    "clocks": {"kind": str, "file": str, "stored": bool},
}
KEYS = {"version": int, "pid": int, "started": str, "boot": str, "when": str, "steps": list}


class StateFile:
    """The state file in `folder`, which is made (0700) when the first step is added."""

    def __init__(self, folder):
        self.folder = os.path.abspath(os.fspath(folder))

    def path(self, name=NAME):
        """Where a file of this folder lies; of a longer name only the last part counts."""
        return os.path.join(self.folder, os.path.basename(name))

    def new_name(self, what):
        """The name of a file that is not there yet."""
        return "{}-{}-{}.conf".format(what, os.getpid(), time.time_ns())

    def read(self):
        """The record, or None where nothing was changed. TinkitError for one that is damaged or not this user's."""
        if not os.path.lexists(self.path()):
            return None
        self._check_owner()
        record = files.read_json(self.path(), "The record of the board's state")
        if not _sound(record):
            raise TinkitError(
                "The record of the board's state is damaged.",
                where=self.path(),
                next_step="see what `nvpmodel -q` and `jetson_clocks --show` say on the board, then remove the file",
            )
        return record

    def add(self, step):
        """Write a step that is about to be made. TinkitError where that is not possible: then it must not be made."""
        self._make_folder()
        record = self.read()
        if record is not None and (record["pid"] != os.getpid() or not running(record)):
            raise TinkitError(
                "An earlier run left the board changed, or another one is changing it.",
                where=self.path(),
                seen="process {} of {}".format(record["pid"], record["when"]),
                next_step="restore it first (make jetson-clocks RESTORE=1), or wait for the other run",
            )
        self._write(record or _new_record(), (record or {"steps": []})["steps"] + [step])

    def change(self, step, **values):
        """Write a step with other values. Returns the step as it is now."""
        record, changed = self.read(), dict(step, **values)
        self._write(record, [changed if old == step else old for old in record["steps"]])
        return changed

    def remove(self, step):
        """Forget a step, with the file that it names; with the last step the record goes."""
        record = self.read()
        self._write(record, [old for old in record["steps"] if old != step])
        if "file" in step:
            with contextlib.suppress(OSError):
                os.unlink(self.path(step["file"]))

    def _write(self, record, steps):
        if steps:
            files.write_json(self.path(), dict(record, steps=steps))
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path())

    def _make_folder(self):
        try:
            os.makedirs(os.path.dirname(self.folder), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
        except OSError as error:
            raise from_os_error(error, "making the folder for the board's state") from error
        self._check_owner()

    def _check_owner(self):
        """What is written there is done as root later: nobody else may write it."""
        for path, kind in ((self.folder, stat.S_ISDIR), (self.path(), stat.S_ISREG)):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                if not kind(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                    raise TinkitError(
                        "The board's state is kept only where nobody else can write.",
                        where=path,
                        seen="user {}, mode {:o}".format(status.st_uid, stat.S_IMODE(status.st_mode)),
                        next_step="remove it, or give it to this user alone (chmod go-w)",
                    )


def running(record):
    """Whether the process of a record still runs; one that has ended but was not yet waited for does not."""
    return record["boot"] == boot_id() and record["started"] != "" and _started(record["pid"]) == record["started"]


def boot_id():
    """Another text after every boot; "" where the system has none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
        return handle.read(64).strip()
    return ""


def _new_record():
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    pid = os.getpid()
    return {"version": 1, "pid": pid, "started": _started(pid), "boot": boot_id(), "when": when, "steps": []}


def _started(pid):
    """When a process was started, in ticks since the boot (proc(5), stat, field 22); "" for none or a dead one."""
    try:
        with open("/proc/{}/stat".format(pid), encoding="utf-8", errors="replace") as handle:
            fields = handle.read(4096).rpartition(")")[2].split()  # its name, in brackets, may hold anything
    except OSError:
        return ""
    return fields[19] if len(fields) > 19 and fields[0] not in ("Z", "X", "x") else ""


def _sound(record):
    """Whether a record is of this form: the file may come from another version, or from a damaged disk."""
    if not _has(record, KEYS) or record["version"] != 1 or record["pid"] < 1 or len(record["steps"]) > MAX_STEPS:
        return False
    for step in record["steps"]:
        kind = step.get("kind") if isinstance(step, dict) else None
        if not isinstance(kind, str) or kind not in STEPS or not _has(step, STEPS[kind]):
            return False
        if kind == "clocks" and not re.match(r"clocks-[0-9]{1,12}-[0-9]{1,24}\.conf\Z", step["file"]):
            return False
    return True


def _has(value, keys):
    return set(value) == set(keys) and all(type(value[key]) is kind for key, kind in keys.items())
