"""The start of the agent on a board: one line that passes through any shell, and an agent that arrives whole."""

import ast
import hashlib
import json
import shutil
import subprocess
import sys

import pytest
from remote_parts import impatient
from sshd_parts import program

from tinkit.errors import TinkitError
from tinkit.host.board import agent_start, remote


@pytest.fixture(autouse=True)
def short_waits(monkeypatch, tmp_path):
    impatient(monkeypatch, tmp_path)


# --- the one line ---


def test_the_line_passes_through_any_shell():
    line = agent_start.one_line()
    assert not set("'!\n\r") & set(line)
    assert line.isascii()
    ast.parse(line)


def test_the_script_parses_on_pythons_that_are_too_old():
    for old in ((3, 4), (3, 6), (3, 8)):
        ast.parse(agent_start.SCRIPT, feature_version=old)
    assert "f'" not in agent_start.SCRIPT
    assert 'f"' not in agent_start.SCRIPT


@pytest.mark.parametrize(
    "shell", [name for name in ("sh", "bash", "dash", "zsh", "csh", "tcsh", "fish") if shutil.which(name)]
)
@pytest.mark.parametrize("name", ["a python", "it's", 'say "x"', "$HOME", "a;b", "a\\b", "ü", "*"])
def test_every_argument_arrives_as_it_is(tmp_path, shell, name):
    far_side = program(tmp_path / name, "import json, sys\nprint(json.dumps(sys.argv))\n")
    arguments = agent_start.start_arguments(far_side, "0" * 64, 7, ["serve", "--root", "a 'b' \"c\" $d"])
    done = subprocess.run([shell, "-c", agent_start.start_command(arguments)], capture_output=True, check=True)
    assert json.loads(done.stdout) == arguments


def test_a_shell_that_knows_no_quotes_would_be_noticed(monkeypatch):
    monkeypatch.setattr(agent_start, "SCRIPT", "print('x')")
    with pytest.raises(ValueError, match="shell"):
        agent_start.one_line()


# --- the agent arrives ---

TINY = b"""
import os, sys
print("started", sys.argv[1:], flush=True)
sys.stdout.write(repr(sys.stdin.buffer.read(5)) + chr(10))
sys.stdout.flush()
sys.stdin.buffer.read()
"""


@pytest.fixture
def tiny(monkeypatch):
    """The agent is a program of a few lines: how it gets there is all that matters."""

    def use(data=TINY, sha256=None):
        monkeypatch.setattr(remote, "agent_file", lambda: (data, sha256 or hashlib.sha256(data).hexdigest()))
        return hashlib.sha256(data).hexdigest()

    use()
    return use


def agents(tmp_path):
    folder = tmp_path / "its 'cache'/tinkit/agent/agents"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def lines_of(open_connection):
    """What came behind the mark, as lines, until the far side waits."""
    seen = open_connection._reader._buffer
    while seen.count(b"\n") < 2:
        seen += open_connection.read(100)
    return seen.decode().splitlines()


def test_the_agent_is_sent_once_and_nothing_behind_it_is_read(tiny, tmp_path):
    for landed in (True, False):
        with remote.connect("local") as there:
            assert there.landed is landed
            assert (there.sent_bytes > 0) is landed
            there.write(b"hello")
            assert lines_of(there) == ["started ['serve']", "b'hello'"]
    assert agents(tmp_path) == [tiny() + ".pyz"]
    folder = tmp_path / "its 'cache'/tinkit/agent"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_damaged_agent_on_the_board_is_sent_again(tiny, tmp_path):
    with remote.connect("local"):
        pass
    kept = tmp_path / "its 'cache'/tinkit/agent/agents" / agents(tmp_path)[0]
    kept.write_bytes(kept.read_bytes() + b"#")
    with remote.connect("local") as there:
        assert there.landed
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == tiny()


def test_a_link_in_place_of_the_agent_is_not_run(tiny, tmp_path):
    with remote.connect("local"):
        pass
    kept = tmp_path / "its 'cache'/tinkit/agent/agents" / agents(tmp_path)[0]
    kept.rename(tmp_path / "elsewhere")
    kept.symlink_to(tmp_path / "elsewhere")
    with remote.connect("local") as there:
        assert there.landed
    assert not kept.is_symlink()


def test_an_agent_that_arrives_damaged_is_not_started(tiny, tmp_path):
    tiny(sha256="0" * 64)
    with pytest.raises(TinkitError, match="arrived damaged"):
        remote.connect("local")
    assert agents(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tiny, tmp_path, full_disk):
    tiny(TINY + b"#" * 200_000)
    with full_disk(), pytest.raises(TinkitError, match="could not be kept on the board") as caught:
        remote.connect("local")
    assert "File too large" in str(caught.value)
    assert agents(tmp_path) == []


def test_a_connection_cut_while_the_agent_is_sent_leaves_nothing(tmp_path):
    arguments = agent_start.start_arguments(sys.executable, "0" * 64, 1000, ["serve"])
    cut = subprocess.run(arguments, input=b"half", capture_output=True)
    assert cut.returncode == 4
    assert agents(tmp_path) == []


@pytest.mark.parametrize("folder", ["tinkit/agent", "tinkit/agent/agents"])
def test_a_cache_that_others_can_write_is_refused(tiny, tmp_path, folder):
    (tmp_path / "its 'cache'" / folder).mkdir(parents=True)
    (tmp_path / "its 'cache'" / folder).chmod(0o777)
    (tmp_path / "its 'cache'/tinkit").chmod(0o700)
    if folder.endswith("agents"):
        (tmp_path / "its 'cache'/tinkit/agent").chmod(0o700)
    with pytest.raises(TinkitError, match="Others have rights") as caught:
        remote.connect("local")
    assert "0o40777" in str(caught.value)


def test_an_old_python_is_told_kindly(monkeypatch):
    monkeypatch.setattr(agent_start, "OLDEST", (99, 1))
    with pytest.raises(TinkitError, match="too old") as caught:
        remote.connect("local")
    assert "99.1 or newer" in str(caught.value)


@pytest.mark.parametrize(
    ("release", "told", "then"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004", "JetPack 4 (the original Nano, TX2) is not", "JetPack 5 or newer"),
        ("# R35 (release), REVISION: 4.1, GCID: R32", "The Python of the board is too old", "--python"),
        ("\udcff", "The Python of the board is too old", "--python"),
        (None, "The Python of the board is too old", "--python"),
    ],
)  # fmt: skip
def test_an_old_python_on_jetpack_4_is_told_as_what_it_is(monkeypatch, tmp_path, release, told, then):
    path = tmp_path / "nv_tegra_release"
    if release is not None:
        path.write_text(release, errors="surrogateescape")
    monkeypatch.setattr(agent_start, "OLDEST", (99, 1))
    monkeypatch.setattr(agent_start, "SCRIPT", agent_start.SCRIPT.replace("/etc/nv_tegra_release", str(path)))
    with pytest.raises(TinkitError) as caught:
        remote.connect("local")
    assert told in str(caught.value)
    assert then in str(caught.value).split("next:")[1]


def test_no_such_python():
    with pytest.raises(TinkitError, match="no Python of this name"):
        remote.connect("local", python="/no/such python")
