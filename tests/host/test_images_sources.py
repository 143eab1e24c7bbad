"""Where pictures come from: folders, patterns, text lists and CSV, told apart by what is there, and refused in words."""

import os

import numpy as np
import pytest
from PIL import Image
from test_images_tar import write_tar

from tinkit.errors import TinkitError
from tinkit.host.export.exam import exam_of_folder
from tinkit.host.images import base_of, class_folder, find_picture, list_pictures, require_images, scan, split
from tinkit.host.images.lists import columns_of
from tinkit.host.labels import read_labels
from tinkit.pixels import Preprocessing


@pytest.fixture
def photos_and_list(tmp_path):
    for name in ("photos/a.jpg", "photos/deep/b.png", "else/c.jpg", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names_in(source):
    return list(list_pictures(source).pictures.all_names())


def test_a_folder_follows_links_once_and_leaves_out_what_is_hidden(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    inside = ("b.jpg", "deep/a.JPG", ".hidden/c.jpg", "._b.jpg", "none", "x.txt")
    for name in ("other/d.jpg", *(f"root/{name}" for name in inside)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(root / "pipe.jpg")
    os.symlink(other, root / "linked")
    os.symlink(root, root / "deep" / "loop")
    os.symlink(root / "gone.jpg", root / "broken.jpg")
    os.symlink("self.jpg", root / "self.jpg")
    os.symlink(root / "b.jpg", root / "copy.jpg")
    (root / "caf\udce9\n.jpg").touch()
    listing = list_pictures(root)
    wanted = ["b.jpg", "broken.jpg", "caf\udce9\n.jpg", "copy.jpg", "deep/a.JPG", "linked/d.jpg", "none", "self.jpg"]
    assert list(listing.pictures.all_names()) == wanted
    assert listing.others == 3  # ._b.jpg, x.txt and the pipe
    assert (listing.source, listing.pictures.root) == (str(root), str(root))
    with pytest.raises(InterruptedError):
        list_pictures(root, stop=lambda: True)


def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").touch()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("tinkit.host.images.folder.os.scandir", refuse)
    assert list_pictures(tmp_path).lost == (("closed", "cannot be listed: permission denied"),)


def test_a_folder_or_a_pattern_of_tars(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(12):
        write_tar(tmp_path / "set" / f"s-{number:02}.tar", [(f"{number}.jpg", b"%d" % number)])
    write_tar(tmp_path / "set" / "s-00.tar", [("0.jpg", b"0"), ("0.cls", b"1")])
    (tmp_path / "set" / "LICENSE").touch()
    listing = list_pictures(tmp_path / "set")
    assert [picture.read() for picture in listing.pictures] == [b"%d" % number for number in range(12)]
    assert listing.pictures[3].name == "s-03.tar/3.jpg"
    assert listing.others == 2
    for pattern in ("s-{00..11}.tar", "s-*.tar", "s-{00,01,02,03,04,05,06,07,08,09,10,11}.tar", "s-{0,1}[0-9].tar"):
        assert names_in(tmp_path / "set" / pattern) == list(listing.pictures.all_names())
    assert names_in(tmp_path / "s?t" / "s-{09..10}.tar") == ["set/s-09.tar/9.jpg", "set/s-10.tar/10.jpg"]
    with pytest.raises(TinkitError, match="missing") as caught:
        require_images(tmp_path / "set" / "s-{08..13}.tar")
    assert caught.value.where.endswith("s-12.tar")
    (tmp_path / "set" / "a.jpg").write_bytes(b"a picture beside")
    assert names_in(tmp_path / "set") == ["LICENSE", "a.jpg"]  # a folder of pictures, as ever


def test_one_broken_shard_does_not_take_the_others(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.jpg", b"1" * 3000)])
    os.truncate(write_tar(tmp_path / "b.tar", [("2.jpg", b"2"), ("3.jpg", b"3" * 3000)]), 3000)
    (tmp_path / "c.tar").touch()
    listing = list_pictures(tmp_path)
    assert list(listing.pictures.all_names()) == ["a.tar/1.jpg", "b.tar/2.jpg"]
    assert [name for name, _ in listing.lost] == ["b.tar", "c.tar"]
    assert "cut off at byte 3000, inside of 3.jpg; the 1 pictures before it are used" in listing.lost[0][1]


def test_a_text_list(photos_and_list):
    there = photos_and_list / "photos" / "list.txt"
    absolute, outside = photos_and_list / "photos" / "deep" / "b.png", photos_and_list / "else" / "c.jpg"
    there.write_text(f"# mine\n\na.jpg\r\n{absolute}\n./a.jpg\n../odd\n{outside}\ngone.jpg\n")
    pictures = list_pictures(there).pictures
    assert list(pictures.all_names()) == ["a.jpg", "deep/b.png", "../odd", str(outside), "gone.jpg"]
    assert [picture.read() for picture in pictures[:4]] == [
        b"photos/a.jpg",
        b"photos/deep/b.png",
        b"odd",
        b"else/c.jpg",
    ]
    with pytest.raises(FileNotFoundError):
        pictures[4].read()
    there.write_bytes("a.jpg\n".encode("utf-16"))
    with pytest.raises(TinkitError, match="no text"):
        list_pictures(there)
    there.write_text("# nothing\n")
    with pytest.raises(TinkitError, match="no usable picture"):
        list_pictures(there)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("path,label\nphotos/a.jpg,cat\nodd,dog\n", ["photos/a.jpg", "odd"]),
        ("label,Image\ncat,photos/a.jpg\n", ["photos/a.jpg"]),
        ("width,file,image\n1,odd,photos/a.jpg\n", ["photos/a.jpg"]),
        ("photos/a.jpg,cat\nodd,dog\n", ["photos/a.jpg", "odd"]),
        ("photos/a.jpg,1\nphotos/a.jpg,2\n\nodd\n", ["photos/a.jpg", "odd"]),
        ("which,label\nphotos/a.jpg,cat\n", ["photos/a.jpg"]),  # a header with names of its own
        ("odd,cat\nphotos/a.jpg,cat\n", ["odd", "photos/a.jpg"]),  # a file without an ending is no header
        ('path\n"with, comma.jpg"\n', ["with, comma.jpg"]),
    ],
)
def test_a_csv(photos_and_list, text, names):
    (file := photos_and_list / "list.csv").write_text(text)
    assert names_in(file) == names


def test_a_csv_of_pictures_serves_as_labels_too(photos_and_list):
    file = photos_and_list / "list.csv"
    file.write_text("label,path,rank\ncat,photos/a.jpg,9\ndog,photos/deep/b.png,9\n,odd,9\n")
    listing = list_pictures(file)
    labels = read_labels(str(file), listing.pictures, listing.source)
    assert labels.classes == ("cat", "dog")
    assert labels.of(listing.pictures).tolist() == [0, 1, -1]
    assert labels.within(listing.pictures[:2]).classes == ("cat", "dog")
    file.write_text(f"{photos_and_list}/photos/a.jpg,cat\nphotos/deep/b.png,dog\n")
    listing = list_pictures(file)
    assert read_labels(str(file), listing.pictures, listing.source).of(listing.pictures).tolist() == [0, 1]
    assert columns_of(["a", "b"]) == (0, 1, False)


def test_folders_inside_of_tars_are_classes_and_tars_are_none(tmp_path):
    write_tar(tmp_path / "s.tar", [("cat/1.jpg", b"1"), ("dog/2.jpg", b"2"), ("3.jpg", b"3")])
    pictures = list_pictures(tmp_path).pictures
    assert read_labels("folders", pictures, str(tmp_path)).of(pictures).tolist() == [0, 1, -1]
    assert [class_folder(name) for name in ("train/x.parquet#3", "a.tar/b.jpg", "b/c.jpg", "c.jpg")] == [
        "",
        "",
        "b",
        "",
    ]


def test_names_belong_to_a_folder_for_every_source(tmp_path):
    (tmp_path / "x.tar").touch()
    assert base_of(tmp_path) == str(tmp_path)
    assert base_of(tmp_path / "x.tar") == str(tmp_path)
    assert base_of(tmp_path / "s-{0..9}.tar") == str(tmp_path)
    assert base_of(tmp_path / "s-*" / "t" / "{a,b}.tar") == str(tmp_path)
    assert base_of(tmp_path / "gone") == str(tmp_path / "gone")


def test_a_picture_is_found_by_name(photos_and_list):
    (photos_and_list / "list.txt").write_text("photos/a.jpg\n")
    assert find_picture(photos_and_list / "list.txt", "photos/a.jpg").read() == b"photos/a.jpg"
    assert find_picture(photos_and_list / "photos", "deep/b.png").read() == b"photos/deep/b.png"
    assert find_picture(photos_and_list, "gone.jpg") is None


def test_the_same_pictures_have_the_same_addresses_from_every_source(tmp_path):
    """One set of encoded files as a folder, a tar, a list and a table: the views and the store are then the same too."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number % 10).integers(0, 256, (20, 24, 3), dtype=np.uint8)  # two are copies
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    files = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    write_tar(tmp_path / "a.tar", [*files, ("broken.jpg", b"no picture")])
    (tmp_path / "a.txt").write_text("".join(f"folder/{name}\n" for name, _ in files))
    sources = [folder, tmp_path / "a.tar", tmp_path / "a.txt"]
    if (pyarrow := _pyarrow()) is not None:
        table = pyarrow.table({"image": [data for _, data in files]})
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=5)
        sources.append(tmp_path / "a.parquet")
    found = [scan(source, workers=0) for source in sources]
    assert len({one.usable.contents_sha256() for one in found}) == 1
    assert [name for name, _ in found[1].skipped] == ["a.tar/broken.jpg"]
    held = [[picture.content for picture in split(one.usable, 0)[1]] for one in found]
    assert held[1:] == held[:1] * (len(held) - 1)
    exams = [exam_of_folder(source, Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))[0] for source in sources]
    for exam in exams[1:]:  # other names, so another order
        assert len(exam.encoded) == 8
        assert {pixels.tobytes() for pixels in exam.pixels} == {pixels.tobytes() for pixels in exams[0].pixels}


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return None
    return pyarrow


def test_what_is_no_source_is_said(tmp_path):
    (tmp_path / "a.jpg").touch()
    for name, words in (
        ("a.jpg", "this is a file"),
        ("gone", "missing"),
        ("gone.tar", "missing"),
        ("*.tar", "No file fits the pattern"),
        ("{0..1}.tar", "A file of the pattern is missing"),
    ):
        with pytest.raises(TinkitError, match=words):
            require_images(tmp_path / name)
    with pytest.raises(TinkitError, match=r"names \.tar"):
        require_images(tmp_path / "*.jpg")
    with pytest.raises(TinkitError, match="too many"):
        require_images(tmp_path / "{0..99999999}.tar")
    with pytest.raises(TinkitError, match="too many"):
        require_images(tmp_path / "{0..999}{0..999}{0..999}.tar")
    (tmp_path / "both").mkdir()
    write_tar(tmp_path / "both" / "a.tar", [("1.jpg", b"1")])
    (tmp_path / "both" / "b.parquet").touch()
    with pytest.raises(TinkitError, match="tars and tables"):
        list_pictures(tmp_path / "both")
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "a.tar.gz").touch()
    with pytest.raises(TinkitError, match="compressed tar"):
        list_pictures(tmp_path / "zipped")


def test_a_list_of_which_nothing_is_there_says_what_was_first(tmp_path):
    (tmp_path / "list.txt").write_text("gone1.jpg\ngone2.jpg\n")
    with pytest.raises(TinkitError, match=r"There is no usable picture\.\n") as told:
        scan(tmp_path / "list.txt", workers=0)
    assert told.value.seen.startswith("2 unreadable")
    assert told.value.seen.endswith("gone1.jpg: no such file or directory")
