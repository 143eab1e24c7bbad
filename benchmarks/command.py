"""What the commands of this folder share: a clean end, and a page whose hand-written part stays."""

import os
import subprocess
import sys

from tinkit import files
from tinkit.errors import TinkitError

BY_HAND = "<!-- from here on written by hand: --write keeps it -->"


def run_command(main):
    """Runs `main` and leaves with what it returns; an error in one line, since the process above shows the last one."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command goes on from here.")
    except subprocess.CalledProcessError as error:
        sys.exit(f"A run failed: {' '.join(map(str, error.cmd))}")
    except (TinkitError, RuntimeError) as error:
        if os.environ.get("TINKIT_DEBUG"):
            raise
        sys.exit("; ".join(line.strip() for line in str(error).splitlines()))


def write_page(path, title, command, table, conditions, record=None):
    """The page at `path`, and `record` as JSON beside it. What was written by hand below the mark stays."""
    text = f"# {title}\n\n`{command}`\n\n{table}\n\n{conditions}"
    files.write_text(path, f"{text}\n\n{BY_HAND}{by_hand(path) or chr(10)}")
    if record is not None:
        files.write_json(os.path.splitext(path)[0] + ".json", record)


def by_hand(path):
    """What stands below the mark of the page that is there; "" without one."""
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as handle:
        return handle.read().partition(BY_HAND)[2]
