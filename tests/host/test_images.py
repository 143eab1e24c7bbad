"""Scanning a messy folder and splitting it."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tinkit.errors import TinkitError
from tinkit.host.images import scan, split


def save(path, seed=0, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def messy(tmp_path):
    save(tmp_path / "a.jpg", 1)
    save(tmp_path / "deep" / "er" / "b.PNG", 2)
    save(tmp_path / "tiny.png", 3, (1, 1))
    save(tmp_path / ".hidden" / "c.jpg", 4)
    save(tmp_path / "._a.jpg", 5)
    (tmp_path / "not.jpg").write_text("I am text")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty.png").touch()
    os.symlink(tmp_path / "gone.jpg", tmp_path / "broken.jpg")
    os.symlink(tmp_path, tmp_path / "deep" / "loop")
    return tmp_path


def test_a_messy_folder_gives_what_is_usable_and_says_why_not_the_rest(messy):
    found = scan(messy)
    assert [picture.name for picture in found.usable] == ["a.jpg", "deep/er/b.PNG"]
    reasons = dict(found.skipped)
    assert set(reasons) == {"tiny.png", "not.jpg", "cut.jpg", "empty.png", "broken.jpg"}
    assert "1 x 1" in reasons["tiny.png"]
    assert "no such file" in reasons["broken.jpg"]
    assert found.others == 2  # notes.txt and the hidden one


def test_strict_names_the_file(messy):
    with pytest.raises(TinkitError, match=r"broken\.jpg"):
        scan(messy, strict=True)


def test_not_a_folder_missing_and_empty(tmp_path):
    save(tmp_path / "a.jpg")
    with pytest.raises(TinkitError, match="this is a file"):
        scan(tmp_path / "a.jpg")
    with pytest.raises(TinkitError, match="missing"):
        scan(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TinkitError, match="no usable picture"):
        scan(tmp_path / "empty")


def test_split_is_by_content_and_keeps_copies_together(tmp_path):
    for number in range(60):
        save(tmp_path / f"{number:02}.png", number)
        if number % 3 == 0:
            shutil.copy(tmp_path / f"{number:02}.png", tmp_path / f"copy-{number:02}.png")
    pictures = scan(tmp_path).usable
    train, held_out = split(pictures, seed=0)
    assert len(train) + len(held_out) == len(pictures)
    assert 8 <= len(held_out) <= 10
    assert not {p.content for p in train} & {p.content for p in held_out}
    renamed = split([*pictures][::-1], seed=0)[1]
    assert {p.content for p in renamed} == {p.content for p in held_out}
    assert {p.content for p in split(pictures, seed=1)[1]} != {p.content for p in held_out}
