"""The agent as one file: base and device code of this very tinkit as a zipapp, equal bytes from equal sources.

A board keeps it by its hash, so an unchanged tinkit is sent once. Nothing of host or command line is in it; it brings no
library: the board's own Python (3.8 and newer), numpy and runtime are used, and what is missing is said in words.
"""

import hashlib
import io
import zipfile
from functools import cache
from pathlib import Path

import tinkit

PACKAGE = Path(tinkit.__file__).parent
NOT_ON_A_BOARD = {"__main__.py"}  # the command line
EARLIEST = (1980, 1, 1, 0, 0, 0)  # the first time that a zip knows

# Runs on any Python from 3.4: it is there to say that one is too old. Its one line is a frame of tinkit/device/wire.py.
MAIN = '''\
"""The start of the agent: is this Python new enough, and is numpy there?"""

import sys


def refuse(what, seen, next_step):
    import json

    frame = {"tell": "error", "what": what, "where": sys.executable, "seen": seen, "next": next_step, "exit_code": 1}
    if sys.argv[1:2] == ["serve"]:
        sys.stdout.write(json.dumps(frame) + "\\n")
        sys.stdout.flush()
    sys.stderr.write("{}\\n  seen: {}\\n  next: {}\\n".format(what, seen, next_step))
    sys.exit(1)


def version_of(text):
    numbers = [int(part) if part.isdigit() else 0 for part in text.split(".")[:2]]
    return tuple(numbers)


if sys.version_info < (3, 8):
    refuse(
        "The Python of this board is too old for tinkit.",
        "Python {}.{}.{}".format(*sys.version_info[:3]),
        "install Python 3.8 or newer there and name it with --python (JetPack 5, 6 and 7 bring one)",
    )
try:
    import numpy
except ImportError as error:
    refuse(
        "numpy is missing on this board.",
        str(error),
        "sudo apt install python3-numpy there, or name a Python that has it with --python",
    )
if version_of(numpy.__version__) < (1, 17):
    refuse("The numpy of this board is too old for tinkit.", "numpy " + numpy.__version__, "numpy 1.17 or newer is needed")

from tinkit.device.agent import main

sys.exit(main(sys.argv[1:]))
'''


@cache
def agent_file():
    """(the bytes of the zipapp, their sha256 in hex)."""
    handle = io.BytesIO()
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted({"__main__.py": MAIN.encode(), **_sources()}.items()):
            entry = zipfile.ZipInfo(name, EARLIEST)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # the same wherever it is made
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    data = handle.getvalue()
    return data, hashlib.sha256(data).hexdigest()


def _sources():
    """name in the zipapp -> bytes: tinkit/*.py but the command line, and tinkit/device/*.py."""
    paths = [path for path in PACKAGE.glob("*.py") if path.name not in NOT_ON_A_BOARD]
    paths += PACKAGE.glob("device/*.py")
    return {f"tinkit/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in paths}
