"""The cache of decoded pictures: the decoder's pixels, for all processes, never half of a picture, never more than its limit."""

import errno
import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from tinkit.errors import TinkitError
from tinkit.host import decoded
from tinkit.host.decoded import DecodedCache, default_limit
from tinkit.host.free_memory import free_memory

WAIT_S = 120


def picture(number, width=20, height=12):
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def address(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def same(one, other):
    return one is not None and one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


@pytest.fixture
def cache(tmp_path):
    with DecodedCache.make(tmp_path, 1 << 20, 100) as made:
        yield made


def test_what_is_put_comes_out_to_the_bit(cache):
    assert cache.get(address(0)) is None
    for number in range(100):
        assert cache.put(address(number), picture(number, 8 + number % 7, 9 + number % 5))
    for number in range(100):
        assert same(cache.get(address(number)), picture(number, 8 + number % 7, 9 + number % 5))
    assert cache.pictures == 100
    assert cache.put(address(3), picture(3))  # it is here already
    assert cache.pictures == 100


def test_a_picture_given_out_is_its_owner_s(cache):
    cache.put(address(1), picture(1))
    cache.get(address(1)).putpixel((0, 0), (1, 2, 3))
    assert same(cache.get(address(1)), picture(1))


def test_no_more_bytes_than_the_limit_and_no_more_pictures_than_slots(tmp_path):
    one = 3 * 20 * 12
    with DecodedCache.make(tmp_path, 3 * one + 1, 100) as cache:
        assert [cache.put(address(n), picture(n)) for n in range(5)] == [True, True, True, False, False]
        assert cache.used_bytes == 3 * one
        assert [cache.get(address(n)) is not None for n in range(5)] == [True, True, True, False, False]
    with DecodedCache.make(tmp_path, 1 << 20, 2) as cache:
        assert [cache.put(address(n), picture(n)) for n in range(4)] == [True, True, False, False]
        assert same(cache.get(address(1)), picture(1))


def test_a_picture_smaller_than_what_is_left_still_fits(tmp_path):
    with DecodedCache.make(tmp_path, 1000, 10) as cache:
        assert not cache.put(address(0), picture(0, 100, 100))
        assert cache.put(address(1), picture(1))


def test_addresses_that_meet_in_the_table_are_kept_apart(cache):
    alike = ["00" * 8 + address(number)[16:] for number in range(30)]  # the same first place, other keys
    for number, content in enumerate(alike):
        assert cache.put(content, picture(number))
    assert all(same(cache.get(content), picture(number)) for number, content in enumerate(alike))


def test_the_disk_is_taken_in_steps_and_not_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "STEP", 4096)
    with DecodedCache.make(tmp_path, 10_000, 100) as cache:
        pixels = cache.path + decoded.PIXELS
        assert os.stat(pixels).st_size == 10_000
        blocks = []
        for number in range(13):
            assert cache.put(address(number), picture(number))
            blocks.append(os.stat(pixels).st_blocks * 512)
            assert cache.used_bytes <= blocks[-1] <= 3 * 4096
        assert blocks[0] < blocks[-1]
        assert all(same(cache.get(address(number)), picture(number)) for number in range(13))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_full_cache(cache, monkeypatch, number):
    assert cache.put(address(0), picture(0, 100, 60))
    monkeypatch.setattr(decoded, "STEP", 4096)

    def no_space(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    assert not cache.put(address(1), picture(1, 100, 60))
    monkeypatch.undo()
    assert not cache.put(address(2), picture(2)), "nobody tries again"
    assert same(cache.get(address(0)), picture(0, 100, 60))
    assert cache.get(address(1)) is None


def test_a_disk_that_fails_while_pixels_are_written_shows_no_picture(cache, monkeypatch):
    real = os.pwrite

    def fail(handle, data, offset):
        if handle == cache._pixels_file:
            raise OSError(errno.EIO, "input/output error")
        return real(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", fail)
    assert not cache.put(address(0), picture(0))
    assert cache.get(address(0)) is None
    monkeypatch.undo()
    assert cache.put(address(0), picture(0))  # its place is still its own
    assert same(cache.get(address(0)), picture(0))
    assert cache.pictures == 1


def test_a_real_limit_on_files_is_no_signal(tmp_path):
    """RLIMIT_FSIZE below the cache's limit: making it is an error with a reason."""
    code = f"""
import resource
from tinkit.errors import TinkitError
from tinkit.host.decoded import DecodedCache
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    DecodedCache.make({str(tmp_path)!r}, 1 << 24, 10)
except TinkitError as error:
    print("refused:", error.what)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: Could not finish making the cache")
    assert not [name for name in os.listdir(tmp_path / decoded.FOLDER) if name != ".lock"]


def test_a_limit_reached_while_writing_is_no_signal(tmp_path):
    code = f"""
import resource
from PIL import Image
from tinkit.host.decoded import DecodedCache
with DecodedCache.make({str(tmp_path)!r}, 1 << 24, 10) as cache:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    image = Image.new("RGB", (100, 100), (1, 2, 3))
    print([cache.put(f"{{n:02x}}" * 32, image) for n in range(1, 5)])
    print([cache.get(f"{{n:02x}}" * 32) == (image if n < 3 else None) for n in range(1, 5)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[True, True, False, False]", "[True, True, True, True]"]


def test_only_rgb_is_kept_and_sizes_must_be_sizes(cache, tmp_path):
    with pytest.raises(ValueError, match="mode L"):
        cache.put(address(0), picture(0).convert("L"))
    with pytest.raises(ValueError, match="0 bytes"):
        DecodedCache.make(tmp_path, 0, 10)


def test_closing_removes_the_files(tmp_path):
    cache = DecodedCache.make(tmp_path, 1 << 16, 10)
    again = pickle.loads(pickle.dumps(cache))  # noqa: S301 - its own bytes
    again.close()
    assert os.path.exists(cache.path + decoded.PIXELS), "only the process that made it removes them"
    blob = pickle.dumps(cache)
    cache.close()
    cache.close()
    assert not os.path.exists(cache.path + decoded.PIXELS)
    assert not os.path.exists(cache.path + decoded.SLOTS)
    with pytest.raises(TinkitError, match="gone"):
        pickle.loads(blob)  # noqa: S301 - its own bytes


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_living_one_has_is_not(tmp_path):
    code = f"""
import sys
from tinkit.host.decoded import DecodedCache
cache = DecodedCache.make({str(tmp_path)!r}, 1 << 16, 10)
print(cache.path, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        path = other.stdout.readline().strip()
        DecodedCache.make(tmp_path, 1 << 16, 10).close()
        assert os.path.exists(path + decoded.PIXELS)
        other.kill()
    DecodedCache.make(tmp_path, 1 << 16, 10).close()
    assert [name for name in os.listdir(tmp_path / decoded.FOLDER) if name != ".lock"] == []


def fill(cache, numbers, ready, go):
    ready.release()
    go.wait(WAIT_S)
    for number in numbers:
        if not cache.put(address(number), picture(number, 40 + number, 30)):
            os._exit(3)
        if not same(cache.get(address(number)), picture(number, 40 + number, 30)):
            os._exit(4)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_processes_that_put_the_same_pictures_at_once_share_one_copy(tmp_path, method):
    context = multiprocessing.get_context(method)
    ready, go = context.Semaphore(0), context.Event()
    with DecodedCache.make(tmp_path, 1 << 20, 100) as cache:
        orders = [list(range(30)), list(range(30)), list(range(29, -1, -1))]
        workers = [context.Process(target=fill, args=(cache, order, ready, go)) for order in orders]
        for worker in workers:
            worker.start()
        for _ in workers:
            assert ready.acquire(timeout=WAIT_S)
        go.set()
        for worker in workers:
            worker.join(WAIT_S)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert cache.pictures == 30
        assert cache.used_bytes == sum(3 * (40 + n) * 30 for n in range(30))
        assert all(same(cache.get(address(n)), picture(n, 40 + n, 30)) for n in range(30))


def test_threads_that_put_at_once_take_no_place_twice(cache):
    threads = [
        threading.Thread(target=lambda: [cache.put(address(n), picture(n)) for n in range(60)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert cache.pictures == 60
    assert all(same(cache.get(address(n)), picture(n)) for n in range(60))


def die_at_write(cache, dying):
    """Put picture 0 and be killed at write number `dying`: header, slot, pixels, published."""
    real, count = os.pwrite, [0]

    def write(handle, data, offset):
        count[0] += 1
        if count[0] == dying:
            real(handle, bytes(data)[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(handle, data, offset)

    os.pwrite = write
    cache.put(address(0), picture(0))


@pytest.mark.parametrize("dying", [1, 2, 3, 4])
def test_a_process_killed_at_any_write_shows_no_half_picture_and_keeps_no_lock(tmp_path, dying):
    context = multiprocessing.get_context("fork")
    with DecodedCache.make(tmp_path, 1 << 16, 10) as cache:
        assert cache.put(address(9), picture(9))
        worker = context.Process(target=die_at_write, args=(cache, dying))
        worker.start()
        worker.join(WAIT_S)
        assert worker.exitcode == -signal.SIGKILL
        found = cache.get(address(0))
        assert found is None or same(found, picture(0))
        for number in range(1, 4):
            assert cache.put(address(number), picture(number))
        cache.put(address(0), picture(0))
        assert same(cache.get(address(0)), picture(0))
        assert all(same(cache.get(address(number)), picture(number)) for number in (1, 2, 3, 9))


def test_the_default_limit_is_a_quarter_of_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "free_memory", lambda: 4000)
    assert default_limit(tmp_path / "not" / "made" / "yet") == 1000
    monkeypatch.setattr(decoded, "free_memory", lambda: 1 << 62)
    usage = type("Usage", (), {"free": 800})
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda folder: usage)
    assert default_limit(tmp_path) == 200


def write_group(folder, limit, current, inactive):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_free_memory_is_the_least_of_the_machine_and_its_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    assert free_memory(proc, groups) == 50 * 1024
    (proc / "self" / "cgroup").write_text("1:cpu:/x\n0::/outer/inner\n")
    write_group(groups / "outer" / "inner", "max", 10, 0)
    assert free_memory(proc, groups) == 50 * 1024
    write_group(groups / "outer", 9000, 3000, 500)
    assert free_memory(proc, groups) == 6500
    write_group(groups / "outer" / "inner", 1000, 3000, 500)
    assert free_memory(proc, groups) == 0


def test_free_memory_of_this_machine():
    assert 0 < free_memory() < 1 << 50
