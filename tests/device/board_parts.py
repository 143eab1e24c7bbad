"""Boards to play back: a folder with the files and tools of a Jetson, copied for each test (tests/data/boards)."""

import shutil
from pathlib import Path

BOARDS = Path(__file__).resolve().parents[1] / "data" / "boards"
WITH_TOOLS = "orin-nano-8gb"  # the others have files only


def fake_board(folder, kind=WITH_TOOLS):
    """Copy a board into `folder` (made, or empty) and return its root as a string. Tools keep their state under it.

    Kinds are the folders of tests/data/boards. Device-tree strings get the NUL at their end that the kernel's have.
    """
    root = Path(folder)
    shutil.copytree(BOARDS / kind, root, dirs_exist_ok=True)
    for path in (root / "proc/device-tree").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\0"))
    (root / "var/log").mkdir(parents=True, exist_ok=True)
    return str(root)


def write_tool(root, path, script):
    """Put a tool of one's own on the board: `path` under the root, `script` for sh. Returns its path as a string."""
    tool = Path(root) / path
    tool.parent.mkdir(parents=True, exist_ok=True)
    tool.write_text("#!/bin/sh\n" + script)
    tool.chmod(0o755)
    return str(tool)


def refuse_sudo(root, refuse=True):
    """From now on the board's sudo wants a password, or no longer does."""
    _switch(root, "etc/sudo.refuses", "" if refuse else None)


def ask_for_reboot(root, *ids):
    """The power modes (numbers) that nvpmodel changes to only with a reboot."""
    _switch(root, "etc/nvpmodel.asks_for_reboot", "".join("{}\n".format(number) for number in ids) if ids else None)


def ran_as_root(root):
    """What the board's sudo was asked to run, in order: words after `--`, tools without their folder."""
    path = Path(root) / "var/log/sudo.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.replace(str(Path(root).resolve()) + "/usr/sbin/", "").replace(str(Path(root).resolve()) + "/usr/bin/", "")
            for line in lines]  # fmt: skip


def _switch(root, path, text):
    file = Path(root) / path
    if text is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(text)
