"""What a selection leaves behind for pictures that are no files: their bytes, under names that viewers open."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from test_images_tar import write_tar

from tinkit.host.images import Picture, find_picture, list_pictures
from tinkit.host.report.album import Album
from tinkit.host.select.folder import LINKS, TABLE, link_name, write_selection
from tinkit.host.select.gather import without_copies
from tinkit.host.select.result import Chosen, Selection


def encoded(seed, form="PNG"):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def selection_of(folder, pictures):
    chosen = [
        Chosen(rank=n, name=p.name, path=p.path, link=link_name(n, p), stands_for=1, place=p.place)
        for n, p in enumerate(pictures, 1)
    ]
    about = {"copies": 0, "alike": 0, "skipped": 0, "features_of": {}, "method": "random", "space": "none"}
    return Selection(
        path=str(folder), root="/", chosen=chosen, pictures=len(chosen), metric="cosine", seed=0, quality={}, **about
    )


def test_members_of_a_tar_are_written_out_and_files_are_linked(tmp_path):
    data = [encoded(1), encoded(2, "JPEG")]
    write_tar(tmp_path / "a.tar", [("cat/1.png", data[0]), ("2.jpg", data[1])])
    (tmp_path / "3.png").write_bytes(encoded(3))
    pictures = [*list_pictures(tmp_path / "a.tar").pictures, find_picture(tmp_path, "3.png")]
    selection = selection_of(tmp_path / "out", pictures)
    write_selection(selection, "<p>page</p>")
    links = tmp_path / "out" / LINKS
    assert sorted(os.listdir(links)) == ["00001-1.png", "00002-2.jpg", "00003-3.png"]
    assert [os.path.islink(links / one.link) for one in selection.chosen] == [False, False, True]
    assert [(links / one.link).read_bytes() for one in selection.chosen] == [*data, encoded(3)]
    assert "a.tar/cat/1.png" in (tmp_path / "out" / TABLE).read_text()
    read = Selection.from_json(json.loads((tmp_path / "out" / "selection.json").read_text()))
    assert read == selection
    assert [one.picture.read() for one in read.chosen] == [*data, encoded(3)]


def test_a_row_of_a_table_gets_the_ending_of_its_bytes(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table({"image": [encoded(1), encoded(2, "JPEG"), b"no picture"]}), tmp_path / "a.parquet"
    )
    pictures = list_pictures(tmp_path / "a.parquet").pictures
    assert [link_name(n, p) for n, p in enumerate(pictures)] == ["00000-a-0.png", "00001-a-1.jpg", "00002-a-2"]


def test_copies_in_a_tar_are_left_out_by_the_first_name(tmp_path):
    write_tar(tmp_path / "a.tar", [("c.png", encoded(1)), ("b.png", encoded(2)), ("a.png", encoded(1))])
    pictures = list_pictures(tmp_path).pictures
    contents = np.array([[1] * 32, [2] * 32, [1] * 32], np.uint8)
    unique = without_copies(pictures.with_contents(contents))
    assert list(unique.all_names()) == ["a.tar/a.png", "a.tar/b.png"]
    assert list(unique) == without_copies(list(pictures.with_contents(contents)))
    assert without_copies([Picture("/x", "x", "00")]) == [Picture("/x", "x", "00")]


def test_a_page_shows_pictures_of_a_tar_and_says_which_are_gone(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", encoded(1)), ("bad.png", b"no picture")])
    album = Album(tmp_path / "a.tar")
    assert album.data("a.tar/1.png").startswith("data:image/jpeg;base64,")
    assert [album.data(f"a.tar/{name}.png") for name in ("bad", "gone")] == ["", ""]
    assert album.missing["a.tar/gone.png"] == "no longer there"
    assert "not a picture" in album.missing["a.tar/bad.png"]
    os.truncate(tmp_path / "a.tar", 700)
    album = Album(tmp_path / "a.tar")
    assert album.data("a.tar/1.png") == ""
    assert album.missing
