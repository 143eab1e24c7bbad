"""Scanning with faults in it: what a decoder dies of, hangs on or refuses is put aside by name; the rest is found."""

import hashlib
import importlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from test_images import save

from tinkit.errors import TinkitError
from tinkit.host.decoded import DecodedCache
from tinkit.host.images import Picture, scan
from tinkit.host.images.scan import try_picture

module = importlib.import_module("tinkit.host.images.scan")  # the package's `scan` is the function
really_try = try_picture


@pytest.fixture
def hundred(tmp_path):
    for number in range(100):
        save(tmp_path / f"{number % 3}" / f"{number:03}.png", number, (12, 10))
    return tmp_path


def plant(monkeypatch, fault, *names):
    """Forked workers inherit what is planted here."""

    def trial(picture, cache=None):
        if picture.name in names:
            fault()
        return really_try(picture, cache)

    monkeypatch.setattr(module, "try_picture", trial)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def digests(folder, names):
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_picture_that_kills_its_decoder_is_put_aside_by_name(hundred, monkeypatch, workers):
    plant(monkeypatch, killed, "0/000.png", "1/052.png", "1/055.png", "2/098.png")
    ticks = []
    found = scan(hundred, workers=workers, tick=ticks.append)
    reason = "killed its process (signal 9)"
    assert found.skipped == tuple((n, reason) for n in ("0/000.png", "1/052.png", "1/055.png", "2/098.png"))
    names = [picture.name for picture in found.usable]
    assert names == sorted(names)
    assert len(names) == 96
    assert [picture.content for picture in found.usable] == digests(hundred, names)
    assert ticks == [100] * 100


def test_a_picture_that_hangs_is_put_aside_by_name(hundred, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 2.0)
    plant(monkeypatch, lambda: time.sleep(10_000), "1/052.png")
    found = scan(hundred, workers=2)
    assert found.skipped == (("1/052.png", "took more than 2 s"),)
    assert len(found.usable) == 99


def test_strict_names_the_picture_that_kills(hundred, monkeypatch):
    plant(monkeypatch, killed, "1/052.png")
    with pytest.raises(TinkitError, match="cannot be read") as raised:
        scan(hundred, strict=True, workers=1)
    assert raised.value.where == str(hundred / "1" / "052.png")
    assert raised.value.seen == "killed its process (signal 9)"


def test_every_way_finds_the_same(hundred):
    (hundred / "bad.jpg").write_text("text")
    ways = [scan(hundred, workers=workers) for workers in (0, 1, 2, None)]
    for found in ways:
        assert list(found.usable) == list(ways[0].usable)
        assert found.skipped == ways[0].skipped == (("bad.jpg", "not a picture, or a damaged header"),)
        assert found.address == "content"


def test_stop_ends_it_also_while_a_picture_hangs(hundred, monkeypatch):
    plant(monkeypatch, lambda: time.sleep(10_000), "0/000.png")
    asked = []
    with pytest.raises(InterruptedError):
        scan(hundred, workers=1, stop=lambda: asked.append(1) or len(asked) > 8)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def corrupt(folder):
    """Twenty names of faulty pictures of all kinds, with a part of the reason; other things that are no pictures too."""
    save(folder / "whole.jpg", 1, (60, 50))
    whole, png = (folder / "whole.jpg").read_bytes(), bytearray((folder / "0" / "000.png").read_bytes())
    png[len(png) // 2] ^= 0xFF
    made = {
        "cut.jpg": whole[: len(whole) // 2],
        "cut-header.jpg": whole[:20],
        "one-byte.jpg": whole[:1],
        "empty.jpg": b"",
        "empty.webp": b"",
        "zeros.png": bytes(5000),
        "zeros.jpg": bytes(5000),
        "text.jpg": b"I am text",
        "text": b"no ending, and text",
        "page.gif": b"<html>404</html>",
        "bomb.png": bomb(),
        "flipped.png": bytes(png),
        "cut.webp": b"RIFF\x00\x10\x00\x00WEBPVP8 ",
        "cut.tiff": b"II*\x00\x08\x00\x00\x00\xff\xff",
        "cut.bmp": b"BM" + bytes(30),
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    save(folder / "tiny.png", 2, (7, 100))
    os.symlink(folder / "gone.jpg", folder / "broken.jpg")
    os.symlink("self.jpg", folder / "self.jpg")
    os.mkfifo(folder / "pipe.jpg")
    os.symlink("pipe.jpg", folder / "to-pipe.jpg")
    os.symlink("/dev/zero", folder / "device.jpg")
    save(folder / "folder.jpg" / "inside.png", 3)
    return [*made, "tiny.png", "broken.jpg", "self.jpg"]


def test_faulty_pictures_of_all_kinds_are_told_apart(hundred):
    bad = corrupt(hundred)
    shutil.copy(hundred / "1" / "001.png", hundred / "copy of 001.png")
    os.link(hundred / "1" / "001.png", hundred / "link of 001.png")
    found = scan(hundred)
    names = [picture.name for picture in found.usable]
    assert len(names) == 100 + 4
    assert {"whole.jpg", "folder.jpg/inside.png", "copy of 001.png", "link of 001.png"} <= set(names)
    contents = [picture.content for picture in found.usable]
    assert contents == digests(hundred, names)
    assert contents.count(contents[names.index("1/001.png")]) == 3
    reasons = dict(found.skipped)
    assert sorted(reasons) == sorted(bad)
    assert all(reasons.values())
    for name, part in {
        "empty.jpg": "empty file",
        "text.jpg": "not a picture",
        "bomb.png": "more pixels",
        "cut.jpg": "damaged",
        "tiny.png": "7 x 100",
        "broken.jpg": "no such file",
        "self.jpg": "symbolic links",
    }.items():
        assert part in reasons[name]
    assert found.others == 3  # the pipe, the link to it and the device: counted, never opened


def test_a_pipe_in_the_place_of_a_listed_picture_is_not_opened(hundred):
    """Opening it would wait for ever: this test would not end."""
    os.mkfifo(hundred / "pipe.jpg")
    for name in ("pipe.jpg", "0"):
        digest, reason = try_picture(Picture(str(hundred / name), name, ""))
        assert (digest, reason) == (bytes(32), "not a regular file")


def test_no_permission_is_a_reason(hundred, monkeypatch):
    if os.geteuid():
        (hundred / "0" / "000.png").chmod(0)
    else:  # to root everything is permitted

        def refuse():
            raise PermissionError(13, "Permission denied")

        read = Picture.read
        monkeypatch.setattr(Picture, "read", lambda self: refuse() if self.name == "0/000.png" else read(self))
    assert scan(hundred).skipped == (("0/000.png", "permission denied"),)


def test_the_pixels_stay_in_the_cache(hundred, monkeypatch):
    (hundred / "bad.jpg").write_text("text")
    plant(monkeypatch, killed, "1/052.png")
    with DecodedCache.make(hundred.parent / "cache", 1 << 20, 200) as cache:
        found = scan(hundred, workers=2, cache=cache)
        assert len(found.usable) == cache.pictures == 99
        for picture in found.usable:
            assert np.array_equal(np.asarray(cache.get(picture.content)), np.asarray(Image.open(picture.path)))


def test_quick_opens_nothing(hundred, monkeypatch):
    bad = corrupt(hundred)
    seen = []
    really_open = open
    monkeypatch.setattr(
        "builtins.open", lambda path, *rest, **more: seen.append(path) or really_open(path, *rest, **more)
    )
    ticks = []
    found = scan(hundred, mode="quick", tick=ticks.append)
    monkeypatch.undo()
    assert [path for path in seen if str(path).startswith(str(hundred))] == []
    assert found.address == "name, size and time"
    reasons = dict(found.skipped)
    assert set(reasons) == {"empty.jpg", "empty.webp", "broken.jpg", "self.jpg"}  # what can be known without opening
    assert len(found.usable) == 100 + 2 + len(bad) - len(reasons)
    assert len(ticks) == len(found.usable) + len(reasons)


def test_a_quick_address_is_of_name_size_and_time(hundred):
    def addresses():
        return {picture.name: picture.content for picture in scan(hundred, mode="quick").usable}

    os.link(hundred / "0" / "000.png", hundred / "0" / "link.png")
    first = addresses()
    assert len(set(first.values())) == len(first) == 101  # a copy is another picture: only its bytes would tell
    assert addresses() == first
    status = os.stat(hundred / "0" / "003.png")
    os.utime(hundred / "0" / "003.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with open(hundred / "0" / "006.png", "ab") as handle:
        handle.write(b"x")
    second = addresses()
    assert {name for name in first if first[name] != second[name]} == {"0/003.png", "0/006.png"}
    moved = hundred.parent / "moved"
    os.rename(hundred, moved)
    assert {picture.name: picture.content for picture in scan(moved, mode="quick").usable} == second


def test_quick_addresses_inside_a_tar(hundred, tmp_path_factory):
    import tarfile

    shard = tmp_path_factory.mktemp("shards") / "a.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(hundred / "0", "0")
    first = scan(shard, mode="quick").usable
    assert len({picture.content for picture in first}) == len(first) == 34
    assert [p.content for p in scan(shard, mode="quick").usable] == [p.content for p in first]
    os.utime(shard, ns=(0, 0))
    assert not {p.content for p in scan(shard, mode="quick").usable} & {p.content for p in first}


def test_quick_is_strict_too_and_stops(hundred):
    with pytest.raises(InterruptedError):
        scan(hundred, mode="quick", stop=lambda: True)
    os.symlink("gone.jpg", hundred / "broken.jpg")
    with pytest.raises(TinkitError, match=r"broken\.jpg"):
        scan(hundred, mode="quick", strict=True)


def test_auto_goes_by_the_number_and_says_so(hundred, monkeypatch):
    said = []
    assert scan(hundred, mode="auto", say=said.append).address == "content"
    assert said == []
    monkeypatch.setattr(module, "AUTO_FULL", 99)
    assert scan(hundred, mode="auto", say=said.append).address == "name, size and time"
    assert "100 pictures, more than 99" in said[0]
    with pytest.raises(ValueError, match="mode"):
        scan(hundred, mode="slow")


MILLION = """
import json, sys
from tinkit.device.board import peak_memory_mb
from tinkit.host.images import scan
before = peak_memory_mb()
found = scan(sys.argv[1], mode=sys.argv[2])
peak = peak_memory_mb() - before
print(json.dumps({"usable": len(found.usable), "skipped": len(found.skipped), "address": found.address,
    "different": len({bytes(row) for row in found.usable.contents_N32}),
    "nbytes": found.usable.nbytes, "peak_mb": peak}))
"""


@pytest.mark.slow
def test_a_million_names_in_bounded_memory(tmp_path):
    """1,000 folders of 990 hard links to 1,000 pictures (duplicates) and 10 broken links each: a real listing."""
    originals = tmp_path / "originals"
    for number in range(1000):
        save(originals / f"{number:03}.png", number, (9, 9))
    root = tmp_path / "million"
    for folder in range(1000):
        (root / f"{folder:03}").mkdir(parents=True)
        for number in range(990):
            os.link(originals / f"{number:03}.png", root / f"{folder:03}" / f"{number:03}.png")
        for number in range(10):
            os.symlink("gone.png", root / f"{folder:03}" / f"broken-{number}.png")
    try:
        command = [sys.executable, "-c", MILLION, str(root), "auto"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=1200).stdout)
    finally:
        shutil.rmtree(tmp_path)
    print(told)
    assert (told["usable"], told["skipped"]) == (990_000, 10_000)
    assert told["address"] == "name, size and time"
    assert told["different"] == 990_000
    assert told["nbytes"] <= 100 * 990_000
    assert told["peak_mb"] <= 400  # 219 when it was written
