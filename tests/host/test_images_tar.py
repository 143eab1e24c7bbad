"""Pictures in tars: the own reader against Python's tarfile, over names of every kind, and over damage."""

import gzip
import io
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkit.errors import TinkitError
from tinkit.host.images import find_picture, list_pictures, require_images
from tinkit.host.images import tar as tars
from tinkit.host.images.tar import index_of, read_member

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def write_tar(path, members, format_=tarfile.PAX_FORMAT):
    """members: (name, bytes), or (name, type, target)."""
    with tarfile.open(path, "w", format=format_, errors="surrogateescape") as made:
        for name, *what in members:
            info = tarfile.TarInfo(name)
            if len(what) == 2:
                info.type, info.linkname = what
                made.addfile(info)
            else:
                info.size = len(what[0])
                made.addfile(info, io.BytesIO(what[0]))
    return path


def found_in(path):
    index = index_of(path)
    members = zip(index.own_names(), index.offsets, index.sizes)
    return [(os.fsdecode(name), read_member(path, offset, size)) for name, offset, size in members], index


letters = st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs",))
part = st.text(letters, min_size=1, max_size=60).filter(lambda text: not text.startswith(".") and text.strip())
member_name = st.lists(part, min_size=1, max_size=8).map("/".join).map(lambda name: name + ".jpg")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(member_name, st.binary(max_size=1500)), max_size=6), st.sampled_from(FORMATS[1:]))
def test_it_finds_what_tarfile_finds(tmp_path_factory, members, format_):
    path = write_tar(tmp_path_factory.mktemp("t") / "a.tar", members, format_)
    with tarfile.open(path) as read:
        expected = [(info.name.lstrip("/"), read.extractfile(info).read()) for info in read if info.isreg()]
    found, index = found_in(path)
    assert found == expected == members
    assert (index.others, index.lost) == (0, [])


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("length", [99, 100, 101, 155, 200, 255])
def test_names_around_the_lengths_that_headers_hold(tmp_path, format_, length):
    name = ("d" * 60 + "/" + "e" * 60 + "/" + "f" * 200)[: length - 4] + ".jpg"
    try:
        path = write_tar(tmp_path / "a.tar", [(name, b"one"), ("b.jpg", b"two")], format_)
    except ValueError:  # ustar holds no such name
        assert format_ == tarfile.USTAR_FORMAT
        return
    assert found_in(path)[0] == [(name, b"one"), ("b.jpg", b"two")]


@pytest.mark.parametrize("format_", FORMATS)
def test_names_that_are_no_utf8_or_have_newlines_or_come_twice(tmp_path, format_):
    members = [("caf\udce9.jpg", b"1"), ("new\nline.jpg", b"2"), ("a.jpg", b"3"), ("a.jpg", b"4"), ("./b.jpg", b"5")]
    found, _ = found_in(write_tar(tmp_path / "a.tar", members, format_))
    assert found == [*members[:4], ("b.jpg", b"5")]
    listing = list_pictures(tmp_path / "a.tar")
    assert [picture.read() for picture in listing.pictures] == [b"1", b"2", b"3", b"4", b"5"]
    assert listing.pictures[0].name == "a.tar/caf\udce9.jpg"


def test_only_pictures_count_as_in_a_webdataset(tmp_path):
    members = [
        ("000.jpg", b"1"),
        ("000.cls", b"0"),
        ("000.json", b"{}"),
        ("._000.jpg", b"-"),
        ("001.PNG", b"2"),
        (".hidden/a.jpg", b"-"),
        ("deep", tarfile.DIRTYPE, ""),
        ("deep/no_ending", b"3"),
        ("pipe.jpg", tarfile.FIFOTYPE, ""),
    ]
    found, index = found_in(write_tar(tmp_path / "a.tar", members))
    assert found == [("000.jpg", b"1"), ("001.PNG", b"2"), ("deep/no_ending", b"3")]
    assert index.others == 4


def test_links_inside_of_a_tar_are_followed_and_broken_ones_are_told(tmp_path):
    members = [
        ("a/1.jpg", b"one"),
        ("hard.jpg", tarfile.LNKTYPE, "a/1.jpg"),
        ("a/soft.jpg", tarfile.SYMTYPE, "./1.jpg"),
        ("again.jpg", tarfile.SYMTYPE, "a/soft.jpg"),
        ("broken.jpg", tarfile.SYMTYPE, "../../etc/passwd"),
        ("loop.jpg", tarfile.SYMTYPE, "loop.jpg"),
    ]
    found, index = found_in(write_tar(tmp_path / "a.tar", members))
    assert found == [(name, b"one") for name in ("a/1.jpg", "hard.jpg", "a/soft.jpg", "again.jpg")]
    assert [name for name, _ in index.lost] == ["broken.jpg", "loop.jpg"]


def test_large_members_are_jumped_over(tmp_path, monkeypatch):
    members = [(f"{number}.jpg", os.urandom(size)) for number, size in enumerate([10, 400_000, 5, 300_000, 70_000, 0])]
    path = write_tar(tmp_path / "a.tar", members)
    read, pread = [], os.pread
    monkeypatch.setattr(tars.os, "pread", lambda handle, size, at: read.append(size) or pread(handle, size, at))
    index = index_of(path)
    assert sum(read) < path.stat().st_size
    monkeypatch.undo()
    assert len(index) == 6
    assert found_in(path)[0] == members


def test_a_size_of_more_than_eight_gigabytes_in_both_ways_to_write_it(tmp_path):
    """A sparse file on disk: nothing of its ten gigabytes is written or read."""
    for format_ in FORMATS[1:]:
        info = tarfile.TarInfo("large.jpg")
        info.size = 10 << 30
        small = tarfile.TarInfo("small.jpg")
        small.size = 3
        path = tmp_path / "a.tar"
        with open(path, "wb") as handle:
            handle.write(info.tobuf(format_))
            handle.seek(info.size, os.SEEK_CUR)
            handle.write(small.tobuf(format_) + b"abc".ljust(512, b"\0") + bytes(1024))
        index = index_of(path)
        assert (index.own_names(), list(index.sizes)) == ([b"large.jpg", b"small.jpg"], [10 << 30, 3])
        assert read_member(path, index.offsets[1], 3) == b"abc"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_tar_cut_anywhere_gives_its_whole_members_and_says_so(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t")
    members = [(f"{'n' * 30 * number}{number}.jpg", bytes([number]) * (700 * number)) for number in range(6)]
    whole = write_tar(folder / "a.tar", members).read_bytes()
    with tarfile.open(folder / "a.tar") as read:
        ends = [info.offset_data + info.size for info in read]
    end = (ends[-1] + 511) // 512 * 512
    cut = data.draw(st.integers(1, end))
    (folder / "a.tar").write_bytes(whole[:cut])
    found, index = found_in(folder / "a.tar")
    assert found == members[: sum(one <= cut for one in ends)]
    [(name, reason)] = index.lost
    assert name == ""
    assert "cut off" in reason or "shorter than a header" in reason


def test_damage_in_the_middle_ends_the_tar_there_with_a_word(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3")], tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1024 + 5] ^= 1  # in the second header
    path.write_bytes(data)
    found, index = found_in(path)
    assert found == [("a.jpg", b"1")]
    assert index.lost == [("", "damaged at byte 1024: no member begins there; the 1 pictures before it are used")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=5), st.booleans())
def test_flipped_bytes_never_crash_it(tmp_path_factory, flips, honest):
    path = tmp_path_factory.mktemp("t") / "a.tar"
    long_name = "x" * 150 + ".jpg"
    write_tar(path, [("a.jpg", b"1" * 600), (long_name, b"2"), ("c\u00e9.jpg", b"3")], tarfile.PAX_FORMAT)
    data = bytearray(path.read_bytes())
    for at, value in flips:
        data[at % len(data)] = value
    if honest:  # a header that lies with a right checksum
        head = data[:148] + b" " * 8 + data[156:512]
        data[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(data)
    for _, content in found_in(path)[0]:
        assert len(content) <= len(data)


def test_what_is_no_tar_says_what_it_is(tmp_path):
    path = tmp_path / "a.tar"
    zipped = gzip.compress(os.urandom(999))
    for data, words in [(b"", "empty"), (b"hello", "shorter"), (b"hello" * 200, "no tar"), (zipped, "gzip")]:
        path.write_bytes(data)
        with pytest.raises(TinkitError, match="no usable picture") as caught:
            list_pictures(path)
        assert words in caught.value.seen
    with pytest.raises(TinkitError, match="compressed tar") as caught:
        require_images(write_tar(tmp_path / "a.tar.gz", [("a.jpg", b"1")]))
    assert "random access" in caught.value.what


def test_a_tar_that_became_shorter_is_an_error_of_that_picture(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"1" * 5000)])
    picture = list_pictures(path).pictures[0]
    os.truncate(path, 2000)
    with pytest.raises(OSError, match="ends inside"):
        picture.read()


def test_a_picture_is_found_again_by_its_name(tmp_path):
    write_tar(tmp_path / "a.tar", [("d/1.jpg", b"old"), ("2.jpg", b"two"), ("d/1.jpg", b"new")])
    for source in (tmp_path, tmp_path / "a.tar"):
        assert find_picture(source, "a.tar/d/1.jpg").read() == b"new"  # the last of several, as tar itself has it
        assert find_picture(source, "a.tar/3.jpg") is None
        assert find_picture(source, "b.tar/3.jpg") is None
