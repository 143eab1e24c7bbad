"""Change a board's power mode and clocks, and put them back however the run ends.

Only with --allow-state-change, only through `sudo -n`, and never by a reboot. What was is written to `state.json` before
anything is changed, so that another process puts it back after a kill -9: the agent at its next start, or
`make jetson-clocks RESTORE=1`. Facts about nvpmodel and jetson_clocks: tests/data/boards/SOURCES.md. jetson_clocks takes
any file to restore from as root, so whoever may run it without a password could become root: an owner's decision.
"""

import contextlib
import os
import pwd
import re
import stat

from tinkit.device import jetson
from tinkit.device.state_file import StateFile, boot_id, running
from tinkit.errors import TinkitError, from_os_error

TIMEOUT_S = 60.0
SAFE_PATH = re.compile(r"/[A-Za-z0-9_./+,=@%-]*\Z")  # jetson_clocks does not quote the name of its file
FLAG = "--allow-state-change"


class NeedsReboot(TinkitError):
    """The board changes to this power mode only with a reboot; it was not changed, and nothing was rebooted."""


class StateChange:
    """Changes the board under `root` with `commands`; `folder`, this user's alone, keeps what was.

    allowed=False refuses every change. Restoring is always allowed: it ends what somebody allowed.
    """

    def __init__(self, commands, folder, allowed, root="/"):
        self._commands, self._root, self._allowed = commands, root, allowed
        self._file = StateFile(folder)

    @staticmethod
    def left_behind(folder):
        """The record of a process that died before it restored the board, or None. TinkitError where it is damaged."""
        record = StateFile(folder).read()
        return None if record is None or running(record) else record

    def set_mode(self, name):
        """Change to the power mode of this name. Returns a line that tells it.

        Raises NeedsReboot where nvpmodel would reboot for it, TinkitError where it is unknown or not changed.
        """
        modes = jetson.power_modes(self._root)
        wanted = _spelled(name, modes)
        self._check_allowed("The power mode is not changed to {}.".format(wanted))
        before = self._mode()
        if wanted == before:
            return "power mode {} (as found)".format(wanted)
        if before not in modes:
            raise TinkitError(
                "The power mode is not changed, because the one to go back to is not known.",
                where=os.path.join(self._root, "etc/nvpmodel.conf"),
                seen=before or "nvpmodel -q tells none",
                next_step="see what `sudo nvpmodel -q` says on the board",
            )
        pinned = bool(jetson.clocks_pinned(self._root))  # a change of the mode unpins them
        step = {"kind": "mode", "from": before, "to": wanted, "pinned": pinned}
        self._file.add(step)
        try:
            self._change_mode(wanted, modes[wanted])
        except TinkitError:
            if self._mode() == before:
                self._file.remove(step)
            raise
        return "power mode {} (was {})".format(wanted, before)

    def pin_clocks(self):
        """Run jetson_clocks: CPU, GPU and memory at the highest clocks of the power mode. Returns a line that tells it."""
        self._check_allowed("The clocks are not pinned.")
        if jetson.clocks_pinned(self._root):
            return "clocks pinned (as found)"
        step = {"kind": "clocks", "file": self._file.new_name("clocks"), "stored": False}
        path = self._file.path(step["file"])
        if not SAFE_PATH.match(path):
            raise TinkitError(
                "jetson_clocks cannot be given a file in this folder.",
                where=self._file.folder,
                seen="it does not quote names, and would read this one as several words",
                next_step="set XDG_CACHE_HOME to a folder whose name has letters and digits only",
            )
        self._file.add(step)
        ran = self._sudo(["jetson_clocks", "--store", path])
        if ran.code != 0 or not os.path.isfile(path):
            self._file.remove(step)
            raise self._failed(ran, "storing the clocks")
        step = self._file.change(step, stored=True)
        ran = self._sudo(["jetson_clocks"])
        if ran.code != 0:
            with contextlib.suppress(TinkitError):  # then it stays in the state file
                self._undo_clocks(step, self._file.read())
                self._file.remove(step)
            raise self._failed(ran, "pinning the clocks")
        if jetson.clocks_pinned(self._root) is False:
            return "jetson_clocks ran, but the clocks are not all pinned"
        return "clocks pinned by jetson_clocks"

    def restore(self):
        """Put back what was changed, the last change first. Returns a line for each; [] where there is nothing to do.

        Can be called again and from another process. What cannot be put back stays in the state file, and TinkitError
        is raised after everything else was. Raises TinkitError too while the process that changed it still runs.
        """
        record = self._file.read()
        if record is None:
            return []
        if record["pid"] != os.getpid() and running(record):
            raise TinkitError(
                "The board's state belongs to a run that is going on.",
                where=self._file.path(),
                seen="process {}".format(record["pid"]),
                next_step="wait for it to end, or end it",
            )
        notes, first = [], None
        for step in reversed(record["steps"]):
            try:
                notes.append(self._undo(step, record))
                self._file.remove(step)
            except TinkitError as error:
                first = first or error
        if first is not None:
            raise first
        return notes

    def _undo(self, step, record):
        if step["kind"] == "mode":
            return self._undo_mode(step)
        return self._undo_clocks(step, record)

    def _undo_mode(self, step):
        now, modes = self._mode(), jetson.power_modes(self._root)
        if now == step["from"]:
            return "power mode is {} again".format(now)
        if now and now != step["to"]:
            return "power mode is {}, which somebody else set: left as it is".format(now)
        self._change_mode(step["from"], modes[_spelled(step["from"], modes)])
        if step["pinned"] and not jetson.clocks_pinned(self._root):
            ran = self._sudo(["jetson_clocks"])
            if ran.code != 0:
                raise self._failed(ran, "pinning the clocks again")
        return "power mode is {} again".format(step["from"])

    def _undo_clocks(self, step, record):
        if not step["stored"]:
            return "clocks were not pinned"
        if record["boot"] != boot_id():
            return "the board was rebooted: its clocks move again"
        path = self._file.path(step["file"])
        self._check_clocks_file(path)
        ran = self._sudo(["jetson_clocks", "--restore", path])
        if ran.code != 0:
            raise self._failed(ran, "restoring the clocks")
        return "clocks are as they were"

    def _change_mode(self, name, number):
        """nvpmodel's word is not taken for it: on some boards it ends with 0 and has changed nothing."""
        ran = self._sudo(["nvpmodel", "-m", str(number)])
        if self._mode() == name:
            return
        if "reboot" in (ran.out + ran.err).lower():
            raise NeedsReboot(
                "The power mode {} needs a reboot of the board, which tinkit does not do.".format(name),
                seen=_last_line(ran),
                next_step="run `sudo nvpmodel -m {}` on the board, let it reboot, and measure again".format(number),
            )
        raise self._failed(ran, "changing the power mode to {}".format(name))

    def _mode(self):
        ran = self._commands.run(["nvpmodel", "-q"])
        return jetson.mode_told(ran.out) or jetson.mode_told(self._sudo(["nvpmodel", "-q"]).out)

    def _sudo(self, words):
        return self._commands.run(words, timeout_s=TIMEOUT_S, sudo=True)

    def _failed(self, ran, doing):
        right = ran.err.lstrip().startswith("sudo:")
        return TinkitError(
            "{} failed.".format(doing[0].upper() + doing[1:]),
            seen=_last_line(ran) or "exit code {}".format(ran.code),
            next_step=self._sudoers() if right else "run it by hand on the board to see more",
        )

    def _sudoers(self):
        tools = [self._commands.find(name) or "/usr/bin/" + name for name in ("nvpmodel", "jetson_clocks")]
        line = "{} ALL=(root) NOPASSWD: {}".format(_user(), ", ".join(tools))
        return (
            "set it by hand, or give this user the right: `sudo visudo -f /etc/sudoers.d/tinkit` with the line `{}` "
            "(whoever may run jetson_clocks without a password can become root)".format(line)
        )

    def _check_allowed(self, what):
        if not self._allowed:
            raise TinkitError(
                what,
                seen="changing the board's state is not allowed",
                next_step="add {} (it is put back at the end)".format(FLAG),
            )

    def _check_clocks_file(self, path):
        """jetson_clocks wrote it as root; a link, or a file of another user, is not given to it."""
        try:
            status = os.lstat(path)
        except OSError as error:
            raise from_os_error(error, "restoring the clocks") from error
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            raise TinkitError("The file with the stored clocks is not ours.", where=path, next_step="reboot the board")


def _spelled(name, modes):
    """The mode's name as the board spells it: `30W` is also called MODE_30W. TinkitError for one that it does not have."""
    for spelled in (name, "MODE_{}".format(name)):
        if spelled in modes:
            return spelled
    raise TinkitError(
        "The board has no power mode of this name.",
        seen=repr(name),
        next_step="choose one of: {}".format(", ".join(modes)) if modes else "this board tells no power modes at all",
    )


def _last_line(ran):
    lines = [line.strip() for line in (ran.out + "\n" + ran.err).splitlines() if line.strip()]
    return "".join(letter for letter in lines[-1][:300] if letter.isprintable()) if lines else ""


def _user():
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "#{}".format(os.geteuid())  # as sudoers writes a number
