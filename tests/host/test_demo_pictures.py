"""The demo's pictures: the same bytes every time, all there or not there, and nothing of others is removed."""

import os

import numpy as np
import pytest

from tinkit.device.pictures import decode
from tinkit.errors import TinkitError
from tinkit.host import demo_pictures
from tinkit.host.demo_pictures import cut, main, photographs


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_photos_are_as_many_and_as_large_as_wanted(photos):
    names = sorted(photos.rglob("*.jpg"))
    assert len(names) == 40
    assert {decode(path).size for path in names} == {(96, 96)}
    shares = [len(list(folder.iterdir())) for folder in photos.iterdir() if folder.is_dir()]
    assert len(shares) == len(photographs())
    assert max(shares) - min(shares) <= 1


def test_the_photos_differ_and_show_something(photos):
    pixels = [np.asarray(decode(path), float) for path in sorted(photos.rglob("*.jpg"))]
    assert len({image.tobytes() for image in pixels}) == 40
    assert np.median([image.std() for image in pixels]) > 20


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    cut(tmp_path / "a", count=9, size=32, seed=1)
    cut(tmp_path / "b", count=9, size=32, seed=1)
    cut(tmp_path / "c", count=9, size=32, seed=2)
    first = content(tmp_path / "a")
    assert len(first) == 10  # with the record
    assert content(tmp_path / "b") == first
    assert all(content(tmp_path / "c")[name] != data for name, data in first.items())


def test_a_complete_folder_is_left_alone_and_an_older_cut_is_replaced(tmp_path, monkeypatch):
    cut(tmp_path / "a", count=3, size=32)
    mark = next((tmp_path / "a").rglob("*.jpg"))
    mark.write_bytes(b"touched")
    cut(tmp_path / "a", count=3, size=32)
    assert mark.read_bytes() == b"touched"
    cut(tmp_path / "a", count=4, size=32)
    assert mark.read_bytes() != b"touched"
    assert len(list((tmp_path / "a").rglob("*.jpg"))) == 4


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(TinkitError, match="holds something else"):
        cut(tmp_path, count=3, size=32)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_pictures.files, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        cut(tmp_path / "a", count=3, size=32)
    assert os.listdir(tmp_path) == []


def test_without_the_packages_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_pictures, "find_spec", lambda name: None)
    with pytest.raises(TinkitError) as caught:
        cut(tmp_path / "a")
    assert "tinkit[demo]" in caught.value.next_step


def test_the_command_says_what_it_did_and_fails_without_a_traceback(tmp_path, capsys):
    main([str(tmp_path / "a"), "--count", "2", "--size", "16"])
    assert "2 crops" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "file")])
    assert ended.value.code == 1
    assert "holds something else" in capsys.readouterr().err
