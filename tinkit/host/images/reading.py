"""Reading from a disk that may be a network's: a share that is away for a minute is waited for, a missing file is not.

What counts as away is told by the error's number. A file that is not there is final at once as long as the folder above
all pictures is there; when that is gone too, the share has been unmounted, and may come back. An input error where the
folder still answers is a bad disk rather than an absent one: it gets a few tries and no more.
"""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from tinkit.errors import TinkitError

LIMIT_S = 120.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
TRIES_OF_A_BAD_DISK = 3

_NAMES = (
    "ESTALE", "EIO", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOTCONN",
    "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ESHUTDOWN", "EREMOTEIO", "ENOLINK", "ECOMM",
)  # fmt: skip
AWAY = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))

Result = TypeVar("Result")


def patiently(
    action: Callable[[], Result],
    what: str,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] | None = None,
    root: str | None = None,
) -> Result:
    """What `action()` gives; called again, with growing pauses, while a network file system is away.

    what: names the thing for people. root: the folder above all pictures, which tells an absent share from an absent
    file. `say` hears once that it waits, and once that it goes on. Raises TinkitError when `limit_s` seconds have not
    brought it back, and the OSError itself, at once, for anything that waiting does not mend.
    """
    began: float | None = None
    pause, tries = FIRST_PAUSE_S, 0
    while True:
        try:
            result = action()
        except OSError as error:
            tries += 1
            if not _worth_waiting(error, root, tries):
                raise
            now = clock()
            if began is None:
                began = now
                if say:
                    say(f"{what} cannot be reached ({_reason(error)}): waiting up to {limit_s:.0f} s for it")
            left = limit_s - (now - began)
            if left <= 0:
                raise _stayed_away(what, error, now - began) from error
            sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            if began is not None and say:
                say(f"{what} is there again, after {clock() - began:.0f} s")
            return result


def _worth_waiting(error: OSError, root, tries) -> bool:
    if error.errno == errno.ENOENT:
        return root is not None and not _answers(root)
    if error.errno == errno.EIO and root is not None and _answers(root):
        return tries < TRIES_OF_A_BAD_DISK
    return error.errno in AWAY


def _answers(folder) -> bool:
    """Whether the folder is there and can be listed: a share that is away keeps an empty mount point, or an error."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _stayed_away(what, error, seconds):
    return TinkitError(
        "A disk or network share stayed away.",
        where=what,
        seen=f"{_reason(error)}, tried for {seconds:.0f} s",
        next_step="see that the share is mounted and answers, then run the command again (a run goes on with --resume)",
    )
