"""Tools of a board: found by plain name under its root only, given words as they are, ended in time, never believed."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from board_parts import fake_board, ran_as_root, refuse_sudo, write_tool
from hypothesis import given
from hypothesis import strategies as st

from tinkit.device.commands import MAX_BYTES, Commands


@pytest.fixture
def root(tmp_path):
    return fake_board(tmp_path / "board")


def test_tools_are_found_under_the_root_only(root, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    elsewhere = write_tool(tmp_path, "elsewhere/trtexec", "echo not this one")
    monkeypatch.setenv("PATH", os.path.dirname(elsewhere) + os.pathsep + os.environ["PATH"])
    commands = Commands(root)
    assert commands.find("nvpmodel") == os.path.join(root, "usr/sbin/nvpmodel")
    assert commands.find("sh") is None  # this machine has one, the board to play back has none
    assert commands.find("trtexec") is None
    assert Commands("/").find("trtexec") == elsewhere
    mine = write_tool(root, "usr/src/tensorrt/bin/trtexec", "echo mine")
    assert commands.find("trtexec") == mine
    os.chmod(mine, 0o644)
    assert commands.find("trtexec") is None


@pytest.mark.parametrize("name", ["", "-n", "--help", "/bin/sh", "../sh", "a b", "sh;ls", "$(ls)", "sh\n", "\0", "ä"])
def test_only_plain_names_are_tools(root, name):
    with pytest.raises(ValueError, match="plain name"):
        Commands(root).find(name)
    with pytest.raises(ValueError, match="plain name"):
        Commands(root).run([name])


WORDS = [
    "",
    "a b",
    "$(touch planted)",
    "`touch planted`",
    "; touch planted",
    "*",
    "-n",
    "--",
    "'",
    '"',
    "\n",
    "ä",
    "\\",
]


def test_words_reach_the_tool_as_they_are(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tool(root, "usr/bin/words", 'for word in "$@"; do printf \'%s\\037\' "$word"; done')
    assert Commands(root).run(["words"] + WORDS).out.split("\x1f")[:-1] == WORDS
    assert Commands(root).run(["words"] + WORDS, sudo=True).out.split("\x1f")[:-1] == WORDS
    assert not (tmp_path / "planted").exists()


def test_a_tool_tells_its_code_and_both_its_outputs(root):
    write_tool(root, "usr/bin/both", "echo out; echo err >&2; exit 3")
    assert Commands(root).run(["both"]) == (3, "out\n", "err\n")
    write_tool(root, "usr/bin/killed", "kill -9 $$")
    assert Commands(root).run(["killed"]).code == -9


def test_stdin_is_empty_and_the_language_is_c(root, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    write_tool(root, "usr/bin/asks", 'read answer || answer=nothing; echo "$answer $LC_ALL"')
    assert Commands(root).run(["asks"]).out == "nothing C\n"


def test_what_is_missing_or_no_program_is_told(root):
    ran = Commands(root).run(["trtexec", "--help"])
    assert (ran.code, ran.out) == (127, "")
    assert "trtexec: not found under " + root in ran.err
    (Path(root) / "usr/bin/sudo").unlink()
    assert Commands(root).run(["nvpmodel", "-q"], sudo=True).err.startswith("sudo: not found")
    path = Path(root) / "usr/bin/broken"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o755)
    assert Commands(root).run(["broken"]).code == 127
    assert Commands(root).start(["trtexec"]) is None
    assert Commands(root).start(["broken"]) is None


def test_a_tool_that_hangs_is_killed_with_what_it_started(root, tmp_path):
    write_tool(root, "usr/bin/hangs", "echo begun; sleep 60 & echo $! > {}/child; wait".format(tmp_path))
    begun = time.monotonic()
    ran = Commands(root).run(["hangs"], timeout_s=0.5)
    assert time.monotonic() - begun < 10
    assert (ran.code, ran.out, ran.err) == (124, "begun\n", "stopped after 0.5 s")
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    deadline = time.monotonic() + 5
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_tool_that_leaves_something_running_is_not_waited_for(root):
    write_tool(root, "usr/bin/leaves", "echo done; sleep 30 &")
    begun = time.monotonic()
    assert Commands(root).run(["leaves"])[:2] == (0, "done\n")
    assert time.monotonic() - begun < 20


def test_a_tool_that_shouts_is_cut(root):
    write_tool(
        root,
        "usr/bin/shouts",
        "head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero | tr '\\0' y >&2; exit 5",
    )
    ran = Commands(root).run(["shouts"])
    assert (ran.code, len(ran.out), len(ran.err)) == (5, MAX_BYTES, MAX_BYTES)
    write_tool(root, "usr/bin/binary", "printf '\\377\\376ok'")
    assert Commands(root).run(["binary"]).out == "\ufffd\ufffdok"


def test_rights_of_root_are_asked_for_without_a_password(root):
    assert Commands(root).run(["nvpmodel", "-m", "0"]).code == 1  # as a user: not permitted
    assert Commands(root).run(["nvpmodel", "-m", "0"], sudo=True).code == 0
    assert ran_as_root(root) == ["nvpmodel -m 0"]
    refuse_sudo(root)
    ran = Commands(root).run(["nvpmodel", "-m", "1"], sudo=True)
    assert (ran.code, ran.err) == (1, "sudo: a password is required\n")
    assert Commands(root).run(["nvpmodel", "-q"]).out == "NV Power Mode: 15W\n0\n"


def test_sudo_is_called_so_that_nothing_becomes_its_option(root):
    write_tool(root, "usr/bin/sudo", "printf '%s\\n' \"$@\"")
    write_tool(root, "usr/bin/x", "")
    assert Commands(root).run(["x", "-u", "nobody"], sudo=True).out.splitlines() == [
        "-n", "--", os.path.join(root, "usr/bin/x"), "-u", "nobody",
    ]  # fmt: skip


def test_a_streaming_tool_plays_until_it_is_ended(root):
    process = Commands(root).start(["tegrastats", "--interval", "20"])
    try:
        lines = [process.stdout.readline().decode() for _ in range(6)]  # the record has four: it begins again
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(10)
    assert all("RAM 28" in line and "VDD_IN " in line for line in lines)
    assert lines[0].split(" ", 2)[2] == lines[4].split(" ", 2)[2] != lines[1].split(" ", 2)[2]


def test_a_streaming_tool_ends_when_nobody_listens(root):
    process = Commands(root).start(["tegrastats", "--interval", "20"])
    process.stdout.readline()
    process.stdout.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        pytest.fail("it plays on")
    assert process.poll() is not None


@pytest.fixture(scope="module")
def echoing(tmp_path_factory):
    root = tmp_path_factory.mktemp("echoing")
    write_tool(root, "usr/bin/echoes", "printf '%s' \"$1\"")
    return Commands(root)


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=40))
def test_any_word_is_one_word(echoing, word):
    assert echoing.run(["echoes", word, "x"]) == (0, word, "")
