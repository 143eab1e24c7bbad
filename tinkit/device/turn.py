"""One measurement at a time on a board, whoever's it is: two at once would time each other.

Whoever measures holds an abstract unix socket, a name that all users share, that needs no file and that the kernel takes
back when its process dies. Who holds it is asked of the kernel (SO_PEERCRED). Containers with a network of their own do
not see each other's.
"""

import contextlib
import errno
import os
import socket
import struct
import sys
import time

from tinkit.errors import CannotJudge, from_os_error

NAME = "tinkit-measuring"
VARIABLE = "TINKIT_MEASURING"  # another name, where parts of a machine are measured apart
POLL_S = 0.5


@contextlib.contextmanager
def held(wait_s, say, poll_s=POLL_S):
    """The turn to measure, for the block; waits for it so many seconds. Raises CannotJudge when it does not come."""
    turn, end, told = Turn(), time.monotonic() + wait_s, False
    if not sys.platform.startswith("linux"):  # there are no such names elsewhere
        yield
        return
    try:
        while not turn.take():
            if time.monotonic() >= end:
                raise busy(turn, wait_s)
            if not told:
                say("waiting  {} measures here (at most {:g} s)".format(turn.holder(), wait_s))
                told = True
            time.sleep(poll_s)
        yield
    finally:
        turn.give()


def busy(turn, wait_s):
    return CannotJudge(
        "Somebody else measures on this board.",
        seen="{}; waited {:g} s".format(turn.holder(), wait_s),
        next_step="run it again when that has ended",
    )


class Turn:
    """`take()` says whether it is ours now; `give()` gives it back."""

    def __init__(self, name=None):
        self._address = "\0" + (name or os.environ.get(VARIABLE) or NAME)
        self._socket = None

    def take(self):
        """Whether it is ours now; False where somebody else measures. Raises TinkitError for any other trouble."""
        if self._socket is not None:
            return True
        holding = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            holding.bind(self._address)
            holding.listen(64)  # nobody is let in: connecting is how others see who it is
        except OSError as error:
            holding.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise from_os_error(error, "taking the turn to measure") from error
        self._socket = holding
        return True

    def give(self):
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def holder(self):
        """Who measures, in words."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.setblocking(False)
            try:
                asking.connect(self._address)
                size = struct.calcsize("3i")
                pid, user, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
            except OSError:  # gone in between, or too many ask
                return "a process that does not tell its number"
        return "process {} of user {}".format(pid or "unknown", _name(user))


def _name(user):
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
