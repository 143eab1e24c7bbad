"""`tinkit store`: what it prints, and exit codes: 0, 1 something to fix, 2 wrong command line, 3 failed, 4 not judged."""

import os
import re

import pytest
from small_store import Arithmetic, Listing, MadeViews, flip

from tinkit import cli as cli_module
from tinkit.host.store import open_or_build
from tinkit.host.store.shards import USED, file_of, journal_of
from tinkit.host.store.size import told_size

STORES = os.path.join("runs", ".stores")


@pytest.fixture
def tinkit(tmp_path, monkeypatch, capsys):
    """tinkit("store", ...) in an empty folder -> (exit code, stdout, stderr), without a new process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli_module.main(list(arguments))
        return (ended.value.code, *capsys.readouterr())

    return run


def build(root=STORES, count=10, first=0, **options):
    return open_or_build(root, Arithmetic(), MadeViews(Listing(count, first)), **options).path


def test_store_without_a_command_lists_them(tinkit):
    code, out, err = tinkit("store")
    assert code == 2
    assert all(name in out + err for name in ("ls", "verify", "gc", "merge"))


def test_ls(tinkit):
    assert tinkit("store", "ls") == (0, f"no stores in {STORES}\n", "")
    assert tinkit("store", "ls", "--store", "elsewhere")[:2] == (0, "no stores in elsewhere\n")
    path = build()
    code, out, _ = tinkit("store", "ls")
    header, row = out.splitlines()
    assert (code, header.split()[0]) == (0, "store")
    assert row.split()[:5] == [os.path.basename(path), "arithmetic", "10", "2", "float16"]
    assert "finished" in row


def test_verify_passes_what_is_whole_and_fails_what_is_not(tinkit):
    path = build()
    code, out, err = tinkit("store", "verify")
    assert (code, out.split()[0]) == (0, "passed")
    assert "against their hashes" in err
    flip(file_of(path, 0, "local"))
    code, out, _ = tinkit("store", "verify", os.path.basename(path))
    assert code == 3
    assert out.startswith("failed ")
    assert file_of(path, 0, "local") in out
    assert out.splitlines()[-1] == "failed: 1 of 1 stores"


def test_verify_with_nothing_that_can_be_judged(tinkit):
    os.unlink(journal_of(build(), 0))
    code, out, _ = tinkit("store", "verify")
    assert code == 4
    assert out.startswith("not judged")


@pytest.mark.parametrize("arguments", [("verify",), ("verify", "nobody"), ("merge", "a", "b", "--into", "c")])
def test_what_is_not_there_is_something_to_fix(tinkit, arguments):
    code, out, err = tinkit("store", *arguments)
    assert (code, out) == (1, "")
    assert "There " in err
    assert not os.path.exists("c")


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--sample", "0"),
        ("gc", "--limit-gb", "-1"),
        ("gc", "--unused-days", "-1"),
        ("merge",),
        ("merge", "a"),
    ],
)
def test_a_wrong_command_line(tinkit, arguments):
    assert tinkit("store", *arguments)[0] == 2


def test_gc_tells_and_with_yes_removes(tinkit):
    assert tinkit("store", "gc")[:2] == (0, "0 bytes in 0 stores\n")
    path = build()
    os.utime(os.path.join(path, USED), (0, 0))
    code, out, err = tinkit("store", "gc")
    assert (code, out) == (0, "0 bytes in 0 stores\n")
    assert "neither --limit-gb nor --unused-days" in err
    code, out, _ = tinkit("store", "gc", "--unused-days", "1")
    assert code == 0
    assert re.match(rf"would go   {os.path.basename(path)}: \d\.\d kB, not used for ", out)
    assert os.path.exists(path)
    code, out, _ = tinkit("store", "gc", "--limit-gb", "0", "--yes")
    assert (code, out.split()[0]) == (0, "removed")
    assert not os.path.exists(path)


def test_merge(tinkit):
    first, second = build("a"), build("b", first=5)
    code, out, err = tinkit("store", "merge", first, "--into", "joined")
    assert code == 1
    assert "nothing to join" in err
    code, out, _ = tinkit("store", "merge", first, second, "--into", "joined")
    assert code == 0
    assert out.startswith("store    joined")
    assert "15 pictures" in out
    code, _, err = tinkit("store", "merge", first, build("c", dtype="float32"), "--into", "joined")
    assert code == 1
    assert "cannot be joined" in err


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_960_000, "3.0 MB"), (1_240_000_000, "1.2 GB")],
)
def test_sizes_are_told_in_steps_of_a_thousand(count, words):
    assert told_size(count) == words
