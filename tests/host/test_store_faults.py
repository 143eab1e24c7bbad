"""Faults planted in a store: killed at any write, power cut, full disk, flipped bits, cut files. Nothing wrong is ever read."""

import contextlib
import errno
import os
import random
import signal
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_store import Arithmetic, Listing, MadeViews, bytes_of, flip

from tinkit.errors import TinkitError
from tinkit.host.store import open_or_build, shards, writer

COUNT = 21
ARRAYS = ("global", "local")


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "stores")


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_ROWS", 16)  # eight pictures of two views: three shards, the last of five
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of the uninterrupted store."""
    return bytes_of(build(tmp_path_factory.mktemp("whole")))


def build(root, teacher=None):
    return open_or_build(str(root), teacher or Arithmetic(), MadeViews(Listing(COUNT)), batch=4)


def is_note(data):
    """Of the process that holds the folder: no write of the store's."""
    return bytes(data) == str(os.getpid()).encode()


def killed(root, at, part, sync_s=5.0):
    """Build in a process that is killed at write number `at`, of which the share `part` still reaches the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
        child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        real, left = os.pwrite, [at]

        def pwrite(handle, data, offset):
            left[0] -= not is_note(data)
            if left[0] < 0:
                real(handle, bytes(data)[: int(len(data) * part)], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(handle, data, offset)

        os.pwrite, writer.SYNC_S = pwrite, sync_s
        build(root)
    finally:
        os._exit(0)


def new(factory):
    return factory.mktemp("killed")


def rows_of(writes):
    """Rows that so many writes have finished: a batch (two pictures) is two arrays and a line, a shard's end one line."""
    rows = 0
    for pictures in (2, 2, 2, 2, 0, 2, 2, 2, 2, 0, 2, 2, 1, 0):
        writes -= 3 if pictures else 1
        rows += 2 * pictures if writes >= 0 else 0
    return rows


@settings(max_examples=10)
@given(at=st.integers(0, 36), part=st.sampled_from([0.0, 0.3, 1.0]), again=st.integers(0, 36))
def test_kill_9_at_any_write_costs_the_batch_in_flight(tmp_path_factory, whole, at, part, again):
    root = new(tmp_path_factory)
    status = killed(root, at, part)
    assert os.WIFSIGNALED(status) == (at < 36)
    killed(root, again, part)
    rest = Arithmetic()
    assert bytes_of(build(root, rest)) == whole
    assert rest.seen <= 2 * COUNT - rows_of(at)


@pytest.mark.parametrize("lost", [1, 100, 10_000])
@pytest.mark.parametrize("how", ["cut", "zeros"])
@pytest.mark.parametrize("array", ARRAYS)
def test_a_journal_s_lines_whose_data_a_power_cut_took(root, whole, array, how, lost):
    killed(root, 22, 1.0)  # in the second shard, with lines in its journal
    (folder,) = os.listdir(root)
    path = os.path.join(root, folder, f"00001.{array}.bin")
    kept = max(0, os.path.getsize(path) - lost)
    size = os.path.getsize(path)
    os.truncate(path, kept)
    if how == "zeros":  # the size was on disk, the data was not
        os.truncate(path, size)
    assert bytes_of(build(root)) == whole


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_cut_journal_of_an_unfinished_shard_is_cut_to_its_good_lines(root, whole, kept):
    killed(root, 23, 1.0)
    (folder,) = os.listdir(root)
    path = os.path.join(root, folder, "00001.jsonl")
    size = os.path.getsize(path)
    os.truncate(path, int(size * kept) if kept == 0.5 else kept % (size + 1) if kept < 0 else kept)
    with open(os.path.join(root, folder, "00001.local.bin"), "ab") as handle:
        handle.write(b"half a row")
    assert bytes_of(build(root)) == whole


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("shard", [0, 2])
def test_a_flipped_bit_is_refused_and_its_shard_alone_computed_anew(root, whole, shard, array):
    store = build(root)
    path = os.path.join(store.path, f"{shard:05d}.{array}.bin")
    flip(path)
    with pytest.raises(TinkitError) as refused:
        build(root)
    journal = os.path.join(store.path, f"{shard:05d}.jsonl")
    assert refused.value.where == path
    assert f"remove {journal}" in refused.value.next_step
    os.unlink(journal)
    rest = Arithmetic()
    assert bytes_of(build(root, rest)) == whole
    assert rest.seen == 2 * (8 if shard == 0 else 5)


@settings(max_examples=20)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]))
def test_a_flipped_bit_in_a_journal_is_refused_or_does_no_harm(tmp_path_factory, whole, place, bit):
    root = new(tmp_path_factory)
    path = os.path.join(build(root).path, "00001.jsonl")
    flip(path, int(place * os.path.getsize(path)), bit)
    with contextlib.suppress(TinkitError):
        assert bytes_of(build(root)) == whole
        return
    os.unlink(path)
    assert bytes_of(build(root)) == whole


def test_a_flipped_bit_in_a_journal_s_hash_is_refused(root):
    path = os.path.join(build(root).path, "00001.jsonl")
    with open(path, "rb") as handle:
        flip(path, handle.read().index(b'"sha256": {"global": "') + 30)
    with pytest.raises(TinkitError, match="damaged"):
        build(root)


def test_a_flipped_bit_in_the_identity_is_refused_and_costs_nothing(root, whole):
    path = os.path.join(build(root).path, "identity.json")
    flip(path)
    with pytest.raises(TinkitError) as refused:
        build(root)
    assert refused.value.where == path
    os.unlink(path)
    rest = Arithmetic()
    assert bytes_of(build(root, rest)) == whole
    assert rest.seen == 0


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("left", [0, -1])
def test_a_truncated_or_missing_array_is_refused(root, whole, array, left):
    store = build(root)
    path = os.path.join(store.path, f"00001.{array}.bin")
    os.truncate(path, left % os.path.getsize(path)) if left else os.unlink(path)
    with pytest.raises(TinkitError, match="damaged") as refused:
        build(root)
    assert refused.value.where == path
    os.unlink(os.path.join(store.path, "00001.jsonl"))
    assert bytes_of(build(root)) == whole


def test_a_missing_journal_of_a_finished_store_means_that_shard_again(root, whole):
    os.unlink(os.path.join(build(root).path, "00000.jsonl"))
    rest = Arithmetic()
    assert bytes_of(build(root, rest)) == whole
    assert rest.seen == 16


@pytest.mark.parametrize("at", [0, 1, 2, 14, 35])
def test_a_full_disk_is_said_and_all_before_it_is_kept(root, whole, monkeypatch, at):
    real, left = os.pwrite, [at]

    def pwrite(handle, data, offset):
        left[0] -= not is_note(data)
        if left[0] < 0:
            real(handle, bytes(data)[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(TinkitError, match="No space left"):
            build(root)
    rest = Arithmetic()
    assert bytes_of(build(root, rest)) == whole
    assert rest.seen == 2 * COUNT - rows_of(at)


def test_a_disk_that_the_kernel_says_is_full(root, full_disk):
    with full_disk(), pytest.raises(TinkitError, match="writing the feature store"):
        open_or_build(root, Arithmetic(), MadeViews(Listing(200)), dtype="float32")
    assert len(open_or_build(root, Arithmetic(), MadeViews(Listing(200)), dtype="float32")) == 200


def test_a_network_disk_that_goes_away_for_a_moment_is_waited_for(root, whole, monkeypatch):
    real, calls = os.pwrite, []

    def pwrite(handle, data, offset):
        calls.append(handle)
        if len(calls) in (5, 6, 20):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(writer, "patiently", lambda action, what: patience(action))
    assert bytes_of(build(root)) == whole


def patience(action):
    for _ in range(5):
        with contextlib.suppress(OSError):
            return action()
    raise AssertionError("never came back")


class Slow(Arithmetic):
    def features(self, pixels_BCHW, parts=("local",)):
        time.sleep(0.002)
        return super().features(pixels_BCHW, parts)


def building(root, count):
    """(process, pipe) of a fork that builds the store slowly; the pipe tells the views that its teacher has seen."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        code = 1
        try:
            teacher = Slow()
            open_or_build(root, teacher, MadeViews(Listing(count)), batch=4)
            os.write(writing, str(teacher.seen).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, open(reading, encoding="ascii")


def test_kill_9_from_outside_at_random_moments(root, tmp_path):
    draw, count = random.Random(0), 150
    for _ in range(12):
        child, pipe = building(root, count)
        time.sleep(draw.uniform(0.0, 0.06))  # whatever moment that is on this machine
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pipe.close()
    views = MadeViews(Listing(count))
    found = open_or_build(root, Arithmetic(), views, batch=4)
    assert bytes_of(found) == bytes_of(open_or_build(str(tmp_path / "whole"), Arithmetic(), views, batch=4))


def test_two_processes_on_one_store_build_it_once(root):
    both = [building(root, 150) for _ in range(2)]
    seen = []
    for child, pipe in both:
        with pipe:
            seen.append(int(pipe.read()))
        assert os.waitpid(child, 0)[1] == 0
    assert sorted(seen) == [0, 300]
