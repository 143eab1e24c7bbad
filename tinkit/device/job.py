"""What the host asks for as plain data, checked before anything is done for it.

A job names the files of its bundle by their hashes, the device profile, and options of `tinkit.device.profile.profile`; a change
names what becomes of the board's power mode and clocks. Unknown parts are refused: a typo must not measure something else.
"""

import re
from typing import Any, Dict, Tuple

from tinkit.bundle import MANIFEST, MODEL
from tinkit.device.agent_cache import SHA256
from tinkit.errors import TinkitError

MOST_WAIT_S = 86400
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
JOB_PARTS: Dict[str, Tuple[Any, Any]] = {  # key -> (kinds, what it is when the host leaves it out; None: it must not)
    "bundle": (dict, None),
    "device": (dict, None),
    "options": (dict, {}),
    "mode": (str, ""),
    "pin_clocks": (bool, False),
    "allow_state_change": (bool, False),
    "fetch": (list, []),
    "wait_s": ((int, float), 60),
}
CHANGE_PARTS: Dict[str, Tuple[Any, Any]] = {
    "mode": (str, ""),
    "pin_clocks": (bool, False),
    "restore": (bool, False),
    "allow_state_change": (bool, False),
    "wait_s": ((int, float), 60),
}


def checked_job(job):
    """The job with every part there and of its kind. Raises TinkitError."""
    job = checked(job, JOB_PARTS, "job")
    listed = job["bundle"].get("files")
    if not isinstance(listed, dict) or not {MANIFEST, MODEL} <= set(listed):
        raise TinkitError("The job's bundle does not list its files.", seen=repr(listed)[:200])
    for name, sha256 in listed.items():
        if not FILE_NAME.match(name) or not isinstance(sha256, str) or not SHA256.match(sha256):
            raise TinkitError(
                "The job's bundle has a file whose name or hash is none.", seen=repr((name, sha256))[:200]
            )
    return job


def checked(value, parts, what):
    """`value` with defaults put in; unknown and missing keys and other kinds are refused."""
    if not isinstance(value, dict):
        raise TinkitError("The {} is no object.".format(what), seen=repr(value)[:200])
    unknown = sorted(set(value) - set(parts))
    if unknown:
        raise TinkitError("The {} has a part that this agent does not know.".format(what), seen=repr(unknown)[:200])
    whole = {}
    for key, (kinds, default) in parts.items():
        seen = value.get(key, default)
        number = kinds == (int, float)
        if not isinstance(seen, kinds) or (number and (isinstance(seen, bool) or not 0 <= seen <= MOST_WAIT_S)):
            raise TinkitError(
                "A part of the {} is missing or wrong.".format(what), seen="{} = {!r}".format(key, seen)[:200]
            )
        whole[key] = seen
    return whole
