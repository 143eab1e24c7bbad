"""A board over the local way: which host and how ssh is called, what ssh says, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys

import pytest
from remote_parts import impatient, on
from sshd_parts import PRELUDE, at_a_terminal, board_bundle, fake_far_side, program, quick_device, wait_until

from tinkit.errors import Interrupted, TinkitError
from tinkit.host.board import agent_start, remote, ssh_errors
from tinkit.host.board.run import profile_on


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return board_bundle(tmp_path_factory.mktemp("board"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch, tmp_path):
    impatient(monkeypatch, tmp_path)


# --- which host, and how ssh is called ---


@pytest.mark.parametrize(
    "host",
    ["", "-oProxyCommand=touch x", "-x", "user@-x", "-user@board", "user@", "@board", "a@b@-c", "ssh://-x", "ssh://u@-x",
     "ssh://", "board one", "board\n", "board\x1b[2J", "board\u202e", "board;id", "$(id)", "`id`", "a|b", "a'b", 'a"b',
     "u@a\\b", "board&"],
)  # fmt: skip
def test_a_host_that_could_be_something_else_is_refused(host):
    with pytest.raises(TinkitError, match="no host") as caught:
        remote.check_host(host)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["local", "board", "me@orin", "me@10.0.0.7", "ssh://me@orin:2222", "DOM\\me@orin", "::1", "fe80::1%eth0"]
)
def test_hosts_that_ssh_takes(host):
    remote.check_host(host)


@pytest.mark.parametrize("python", ["", "-c", "py\nthon", "py\0thon"])
def test_a_python_that_could_be_something_else_is_refused(python):
    with pytest.raises(TinkitError, match="no name of a Python"):
        remote.connect("local", python=python)


def test_ssh_is_called_with_the_host_after_two_dashes_and_nothing_forwarded(monkeypatch):
    monkeypatch.setattr(remote, "_somebody_there", lambda: False)
    called = remote.ssh_arguments("me@orin", "exec x", "a config")
    assert called[-3:] == ["--", "me@orin", "exec x"]
    assert called[called.index("-F") + 1] == "a config"
    assert {"StrictHostKeyChecking=yes", "ClearAllForwardings=yes", "BatchMode=yes"} <= set(called)
    assert {"-T", "-a", "-x"} <= set(called)
    monkeypatch.setattr(remote, "_somebody_there", lambda: True)
    assert "BatchMode=yes" not in remote.ssh_arguments("me@orin", "exec x")


def test_nothing_of_the_environment_gets_onto_a_command_line(monkeypatch):
    for name in ("SSH_PASSWORD", "PASSWORD", "SECRET_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    called = remote.ssh_arguments(
        "me@orin", agent_start.start_command(agent_start.start_arguments("p", "0", 1, ["serve"]))
    )
    assert "hunter2" not in " ".join(called)


def test_a_board_root_is_for_this_machine_only(tmp_path):
    with pytest.raises(TinkitError, match="only here"):
        remote.connect("board", board_root=tmp_path)


# --- what ssh says ---

SAID = {
    "No ED25519 host key is known for [127.0.0.1]:2222 and you have requested strict checking.\n"
    "Host key verification failed.": ("not known here", "run once by hand"),
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key for board has changed and you have requested "
    "strict checking.\nHost key verification failed.": ("not the one that is known", "find out why"),
    "me@board: Permission denied (publickey,password).": ("does not let this user in", "ssh-copy-id"),
    "ssh: Could not resolve hostname board: Name or service not known": ("not known to this network", "address"),
    "ssh: connect to host board port 22: Connection refused": ("refuses the connection", "sshd"),
    "ssh: connect to host board port 22: Connection timed out": ("does not answer", "switched on"),
    "ssh: connect to host board port 22: No route to host": ("does not answer", "switched on"),
    "Can't open user config file x: No such file or directory": ("does not take its configuration", "correct"),
    "x: line 1: Bad configuration option: prot": ("does not take its configuration", "correct"),
    "Unable to negotiate with 10.0.0.7 port 22: no matching host key type found. Their offer: ssh-rsa": (
        "no algorithm in common",
        "by hand",
    ),
    "kex_exchange_identification: Connection closed by remote host": ("before anybody was let in", "by hand"),
    "something that is new": ("failed", "by hand"),
}


@pytest.mark.parametrize("said", SAID)
def test_what_ssh_says_when_it_fails(said):
    error = str(ssh_errors.connecting_failed("me@board", 255, said.splitlines(), "python3", "my config"))
    what, then = SAID[said]
    assert what in error.splitlines()[0]
    assert then in error
    assert said.splitlines()[0] in error
    assert "ssh -F 'my config' -- me@board" in error or "by hand" not in then


def test_ssh_without_a_word_and_a_far_shell_without_python():
    assert "said nothing" in str(ssh_errors.connecting_failed("b", 255, [], "python3"))
    for code, words in (
        (127, ["zsh: command not found: python3"]),
        (126, ["Permission denied"]),
        (1, ["exec: x: not found."]),
    ):
        assert "no Python of this name" in str(ssh_errors.connecting_failed("b", code, words, "python3"))
    assert "did not start" in str(ssh_errors.connecting_failed("b", 1, ["This account is not available."], "python3"))


def test_all_that_goes_through_ssh_arrives(tmp_path, bundle, monkeypatch):
    """With a program in ssh's place that hands the command to a shell, as sshd does."""
    (tmp_path / "bin").mkdir()
    text = (
        "import json, os, sys\n"
        f"open({str(tmp_path / 'called')!r}, 'w').write(json.dumps(sys.argv))\n"
        "print('Last login: today', file=sys.stderr, flush=True)\n"
        "os.execvp('sh', ['sh', '-c', sys.argv[-1]])\n"
    )
    program(tmp_path / "bin/ssh", text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    far_side, lines = fake_far_side(tmp_path / "a 'far' \"side\"", bundle=bundle), []
    profile_on("me@board", bundle, device=quick_device(), out=tmp_path / "out", python=far_side, say=lines.append)
    called = json.loads((tmp_path / "called").read_text())
    assert called[-3:-1] == ["--", "me@board"]
    assert "ssh      Last login: today" in lines


def test_without_ssh(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TinkitError, match="no ssh here"):
        remote.connect("board")


def test_many_words_of_ssh_are_not_all_shown(tmp_path, bundle):
    script = "sys.stderr.write('x' * 5000000 + '\\n' + 'noise\\n' * 100000)\nsys.stderr.flush()\ntalk()\n"
    lines = []
    on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path, say=lines.append)
    assert len(lines) < 250
    assert max(map(len, lines)) < 2100


# --- Ctrl-C ---


def test_ctrl_c_ends_the_run_with_nothing_half_done(tmp_path, bundle):
    script = "def slow(message):\n    tell({'tell': 'say', 'line': 'go'})\n    ask()\ntalk(profile=slow)\n"
    lines = []

    def say(line):
        lines.append(line)
        if line == "go":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="Stopped") as caught:
        on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path, say=say, fetch_engine=tmp_path / "e.plan")
    assert "agent on the board has ended" in str(caught.value)
    assert caught.value.exit_code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far"]


def test_a_far_side_that_does_not_end_is_ended(tmp_path, bundle):
    script = "def slow(message):\n    tell({'tell': 'say', 'line': str(os.getpid())})\n    time.sleep(60)\ntalk(profile=slow)\n"

    def say(line):
        if line.isdigit():
            pids.append(int(line))
            raise KeyboardInterrupt

    pids = []
    with pytest.raises(Interrupted, match="Stopped") as caught:
        on(fake_far_side(tmp_path / "far", script, bundle), bundle, tmp_path, say=say)
    assert "cut off" in str(caught.value)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_signal_at_the_terminal_reaches_us_and_not_ssh(tmp_path, bundle):
    """The whole foreground group gets SIGINT: what stands in ssh's place ignores it, and ends when we close its input."""
    script = PRELUDE + (
        "def slow(message):\n    open(folder + '/busy', 'w').close()\n    sys.stdin.buffer.read()\n"
        "    open(folder + '/tidied', 'w').close()\ntalk(profile=slow)\n"
    )
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin/ssh", "import os, sys\nos.execvp('sh', ['sh', '-c', sys.argv[-1]])\n")
    far_side = program(tmp_path / "python", script)
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from sshd_parts import quick_device\nfrom tinkit.host.board.run import profile_on\n"
        f"profile_on('board', {bundle.path!r}, device=quick_device(), out='out', python=sys.argv[1])\n"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-c", code, far_side, here, os.path.join(os.path.dirname(here), "device")]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=at_a_terminal
    )
    wait_until((tmp_path / "busy").exists)
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate(timeout=30)[1].decode()
    assert "tinkit.errors.Interrupted: Stopped." in said
    assert (tmp_path / "tidied").exists()
    assert not (tmp_path / "out").exists()
