"""Writing into the run's folder, which may be on a network: a share that is away for a minute is waited for.

Everything that a run keeps while it trains goes through here. A full disk is an error at once. A folder that has gone is
never made anew: below an unmounted share that would be another disk.
"""

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from tinkit.errors import TinkitError, from_os_error
from tinkit.host.images.reading import patiently

Result = TypeVar("Result")


def write_patiently(write: Callable[[], Result], folder, doing: str, say=None) -> Result:
    """What `write()` gives; called again while the run's `folder` is away, so it must bear to be begun anew.

    doing: the work in the -ing form, for the error. Raises TinkitError for a full disk, a missing permission, and a share
    that stays away.
    """

    def once():
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(folder))
        try:
            return write()
        except TinkitError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            raise

    try:
        return patiently(once, os.fspath(folder), root=os.fspath(folder), say=say)
    except OSError as error:
        raise from_os_error(error, doing) from error
