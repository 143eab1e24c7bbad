"""The connection to a board: one ssh process, one authentication, one channel that everything goes over.

The system's own `ssh` with the user's configuration, keys, jump hosts and agent. Host keys are only checked, never
accepted; nothing is forwarded; the host stands after `--`, and every part of the far command is quoted. `--host local`
is the same without ssh. What ends the channel ends the agent on the board, so closing it is all the tidying up that
there is. tinkit/host/board/agent_start.py starts the agent, tinkit/device/wire.py is what is spoken then.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import unicodedata

from tinkit.errors import TinkitError
from tinkit.host.board.agent_file import agent_file
from tinkit.host.board.agent_start import start_arguments, start_command
from tinkit.host.board.connection import Connection
from tinkit.host.board.foreign import clean
from tinkit.host.board.ssh_errors import connecting_failed

LOCAL = "local"
PYTHON = "python3"
LANDING_S = 120  # with nobody there to type a password
REFUSED_IN_HOST = "'`\"$;&<>|(){}*?#~"  # as OpenSSH 9.6 refuses them (CVE-2023-51385), and a few more
SSH_OPTIONS = ("StrictHostKeyChecking=yes", "ServerAliveInterval=5", "ServerAliveCountMax=3", "ConnectTimeout=15",
               "ClearAllForwardings=yes", "Tunnel=no", "RemoteCommand=none")  # fmt: skip


def check_host(host):
    """Raises TinkitError for a host that ssh, a shell or a proxy command could take for something else."""
    parts = re.sub(r"^ssh://", "", host).split("@")
    wrong = None
    if not all(parts):
        wrong = "a part of it is empty"
    elif any(part.startswith("-") for part in [host, *parts]):
        wrong = "a part of it starts with -, which ssh takes for an option"
    elif any(c.isspace() or unicodedata.category(c).startswith("C") for c in host):
        wrong = "it has spaces or control characters"
    elif any(c in REFUSED_IN_HOST for c in host) or "\\" in parts[-1]:
        wrong = "it has characters that mean something to a shell"
    if wrong:
        raise TinkitError(
            "This is no host to connect to.",
            seen=f"{clean(host, 200)!r}: {wrong}",
            next_step="give user@board, a Host of ~/.ssh/config, or local",
        )


def connect(host, python=PYTHON, ssh_config=None, board_root=None, say=None):
    """Start the agent on `host` and return the open `Connection` (a context manager).

    host: what ssh takes, or "local" (then without ssh, and with the Python that runs here unless another is named).
    python: the far Python as a path or name; nothing in it is expanded. ssh_config: a file for `ssh -F`. board_root:
    with "local" only, the folder in which the agent finds the files and tools of a board. Raises TinkitError for every
    way in which this can fail.
    """
    check_host(host)
    if not python or python.startswith("-") or any(unicodedata.category(c) == "Cc" for c in python):
        raise TinkitError("This is no name of a Python.", seen=repr(clean(python, 200)), next_step="give its path")
    if board_root is not None and host != LOCAL:
        raise TinkitError("A board's files are played back only here.", seen=f"--host {host}", next_step="--host local")
    data, sha256 = agent_file()
    serve = ["serve", *(["--root", os.path.abspath(board_root)] if board_root is not None else [])]
    if host == LOCAL:
        python = sys.executable if python == PYTHON else python
        arguments = start_arguments(python, sha256, len(data), serve)
    else:
        arguments = ssh_arguments(host, start_command(start_arguments(python, sha256, len(data), serve)), ssh_config)
    connection = Connection(_start(arguments, host, python), host, python, ssh_config, say)
    try:
        connection.land(data, sha256, None if _somebody_there() and host != LOCAL else LANDING_S)
    except BaseException:
        connection.close(patience_s=1)
        raise
    return connection


def ssh_arguments(host, command, ssh_config=None):
    """ssh with nothing forwarded and nothing accepted; it asks for a password only where somebody sits."""
    ssh = shutil.which("ssh")
    if ssh is None:
        raise TinkitError("There is no ssh here.", next_step="apt install openssh-client")
    options = SSH_OPTIONS if _somebody_there() else (*SSH_OPTIONS, "BatchMode=yes")
    flags = [part for option in options for part in ("-o", option)]
    return [ssh, "-T", "-a", "-x", *flags, *(["-F", ssh_config] if ssh_config else []), "--", host, command]


def _somebody_there():
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def _start(arguments, host, python):
    """The process with its three pipes. Ctrl-C is ours alone: we end it, once the board had time to tidy up.

    ssh keeps a signal ignored that it finds ignored; it stays in our group, or it could not ask for a password.
    """
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    ours = threading.current_thread() is threading.main_thread() and host != LOCAL
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ours else None
    try:
        return subprocess.Popen(arguments, bufsize=0, start_new_session=host == LOCAL, **pipes)
    except OSError as error:
        raise connecting_failed(host, 127, [error.strerror or str(error)], python) from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
