"""Stores that one process opens while another fills or removes them. Threads stand for processes: flock tells them apart."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_store import Arithmetic, Listing, MadeViews, bytes_of

from tinkit import files
from tinkit.host.store import open_or_build, opening
from tinkit.host.store.collect import collect
from tinkit.host.store.listing import list_stores
from tinkit.host.store.mapped import InUse

COUNT = 12


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "stores")


@pytest.fixture
def other_thread():
    with ThreadPoolExecutor(1) as threads:
        yield threads


def build(root, teacher=None, **options):
    return open_or_build(root, teacher or Arithmetic(), MadeViews(Listing(COUNT)), batch=8, **options)


def removed_by_hand(path):
    """As collect() does it, but without a look at the locks."""
    from tinkit.host.store.collect import _remove

    _remove(path)


def test_what_was_found_finished_is_not_removed_before_it_is_read(root, monkeypatch):
    path, real = build(root).path, opening._done

    def done(path):
        found = real(path)
        assert collect(root, limit_bytes=0) == []
        return found

    monkeypatch.setattr(opening, "_done", done)
    teacher = Arithmetic()
    assert build(root, teacher).path == path
    assert teacher.seen == 0


def test_who_waits_for_a_store_that_is_removed_makes_it_anew_and_holds_it(root, other_thread, monkeypatch):
    monkeypatch.setattr(opening, "WAIT_S", 0.001)
    whole = bytes_of(build(root))
    (one,) = list_stores(root)
    os.unlink(os.path.join(one.path, "00000.jsonl"))
    waits = threading.Event()
    with files.folder_lock(one.path, "the feature store"):
        found = other_thread.submit(build, root, say=lambda line: waits.set() if "waiting" in line else None)
        assert waits.wait(60)
        removed_by_hand(one.path)
    store = found.result(60)
    assert bytes_of(store) == whole
    assert collect(root, limit_bytes=0) == []
    assert os.listdir(root) == [one.name]


def test_a_wait_for_another_process_is_said_and_can_be_stopped(root, monkeypatch):
    monkeypatch.setattr(opening, "WAIT_S", 0.001)
    path = build(root).path
    os.unlink(os.path.join(path, "00000.jsonl"))
    said, looks = [], []

    def stop():
        looks.append(1)
        return len(looks) == 3

    with files.folder_lock(path, "the feature store"), pytest.raises(InterruptedError):
        build(root, say=said.append, stop=stop)
    assert [line for line in said if "waiting" in line] == [
        f"feature store: process {os.getpid()} is filling it; waiting for it ({path})"
    ]


def test_a_hold_on_a_store_that_is_removed_and_made_anew_is_on_the_new_one(root, other_thread, monkeypatch):
    import fcntl

    path, real, waits = build(root).path, fcntl.flock, threading.Event()
    with open(os.path.join(path, "used"), "rb") as remover:
        real(remover, fcntl.LOCK_EX)

        def flock(handle, how):
            if how == fcntl.LOCK_SH:
                waits.set()
            real(handle, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        held = other_thread.submit(InUse, path)
        assert waits.wait(60)
        removed_by_hand(path)
        os.mkdir(path)
    assert held.result(60)
    with open(os.path.join(path, "used"), "rb") as second, pytest.raises(BlockingIOError):
        real(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_opening_and_removing_at_once_never_fails_and_never_lies(root, monkeypatch):
    monkeypatch.setattr(opening, "WAIT_S", 0.001)
    whole = bytes_of(build(root + "-whole"))
    ended, removals = threading.Event(), []

    def remover():
        while not ended.is_set():
            removals.extend(collect(root, limit_bytes=0))
            list_stores(root)

    def opener(_):
        for number in range(60):
            if number >= 15 and len(removals) >= 3:
                break  # as often as luck lets the remover in between
            assert bytes_of(build(root)) == whole
            ended.wait(0.002 * (number % 3))

    with ThreadPoolExecutor(4) as threads:
        removing = threads.submit(remover)
        try:
            list(threads.map(opener, range(2)))
        finally:
            ended.set()
        removing.result()
    removals.extend(collect(root, limit_bytes=0))
    assert removals


def test_a_finished_store_is_opened_without_writing(root, monkeypatch):
    store, real = build(root), os.open

    def read_only(path, flags, *arguments, **options):
        if os.fspath(path).startswith(root) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *arguments, **options)

    rows = np.asarray(store.arrays["global"])
    monkeypatch.setattr(os, "open", read_only)
    assert np.array_equal(np.asarray(build(root).arrays["global"]), rows)


# what is no store


def test_strangers_beside_stores_are_neither_listed_nor_removed(root):
    path = build(root).path
    strangers = [("decoded/.lock", b""), ("decoded/0af3.pixels", b"x"), ("file", b"x"), ("x.removed/mine.txt", b"x")]
    for name, content in strangers:
        os.makedirs(os.path.dirname(os.path.join(root, name)), exist_ok=True)
        with open(os.path.join(root, name), "wb") as handle:
            handle.write(content)
    assert [one.path for one in list_stores(root)] == [path]
    assert [one.name for one in collect(root, limit_bytes=0)] == [os.path.basename(path)]
    assert sorted(os.listdir(root)) == ["decoded", "file", "x.removed"]
    assert os.listdir(os.path.join(root, "x.removed")) == ["mine.txt"]


@pytest.mark.parametrize("names", [["identity.json"], ["identity.json", "contents.bin", "thesis.tex"]])
def test_a_folder_that_no_store_would_look_like_is_not_removed(root, names):
    os.makedirs(os.path.join(root, "person"))
    for name in names:
        with open(os.path.join(root, "person", name), "w") as handle:
            handle.write("{}")
    assert collect(root, limit_bytes=0) == []
    assert sorted(os.listdir(os.path.join(root, "person"))) == sorted(names)


def test_what_a_kill_left_of_a_removal_goes_the_next_time(root):
    path = build(root).path
    os.rename(path, path + ".7.removed")
    assert list_stores(root) == []
    assert collect(root, remove=False) == []
    assert os.listdir(root) != []
    collect(root)
    assert os.listdir(root) == []
