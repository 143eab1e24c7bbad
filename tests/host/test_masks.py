"""Masks: found by name, read in every form that a label mask has, cut as the evaluation view is, and refused in words."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from tinkit.errors import TinkitError
from tinkit.host.evaluate.masks import IGNORE, mask_path, read_masks
from tinkit.host.images import Picture, scan
from tinkit.host.views import render_evaluation


def picture(folder, name, width=32, height=32, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (9, 99, 199)).save(path, **options)
    return Picture(str(path), name, hashlib.sha256(name.encode()).hexdigest())


def mask(folder, name, numbers, mode=None):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers)
    if mode == "P":
        image = image.convert("L")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)
    return path


def halves(size=32, left=0, right=7, dtype=np.uint8):
    numbers = np.full((size, size), left, dtype)
    numbers[:, size // 2 :] = right
    return numbers


def test_masks_are_found_by_the_same_relative_name(tmp_path):
    pictures = [picture(tmp_path / "photos", name) for name in ("cat/one.jpg", "dog/one.webp", "two.png")]
    mask(tmp_path / "masks", "dog/one.png", halves())
    mask(tmp_path / "masks", "two.png", halves(right=12))
    found = read_masks(tmp_path / "masks", pictures, 1.0, 8)
    assert found.index_N.tolist() == [1, 2]
    assert found.missing == 1
    assert found.classes == ("0", "7", "12")  # ascending as numbers
    assert found.contents == (pictures[1].content, pictures[2].content)
    assert found.masks_NHW.dtype == np.uint8
    np.testing.assert_array_equal(found.masks_NHW, [halves(8, 0, 1), halves(8, 0, 2)])
    assert mask_path("masks", "a.b/c.tar.jpg") == "masks/a.b/c.tar.png"


@pytest.mark.parametrize(
    ("numbers", "mode"),
    [
        (halves(), "L"),
        (halves(), "P"),
        (halves(dtype=np.uint16, right=300), "I;16"),
        (halves(right=1).astype(bool), "1"),
    ],
)
def test_every_form_of_a_label_mask_is_read(tmp_path, numbers, mode):
    path = mask(tmp_path, "masks/a.png", numbers, mode)
    with Image.open(path) as image:
        assert image.mode == mode or (image.mode, mode) == ("I", "I;16")  # as older Pillows call it
    found = read_masks(tmp_path / "masks", [picture(tmp_path, "a.jpg")], 1.0, 32)
    np.testing.assert_array_equal(found.masks_NHW[0], halves(right=1))
    assert found.classes == ("0", str(int(numbers.max())))


def test_255_is_not_judged(tmp_path):
    numbers = halves(left=3, right=8)
    numbers[:4] = 255
    mask(tmp_path, "masks/a.png", numbers)
    found = read_masks(tmp_path / "masks", [picture(tmp_path, "a.jpg")], 1.0, 32)
    assert found.classes == ("3", "8")
    np.testing.assert_array_equal(found.masks_NHW[0, :4], IGNORE)
    np.testing.assert_array_equal(found.masks_NHW[0, 4:], halves(right=1)[4:])


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 64), (33, 33)])
def test_a_mask_lies_on_the_pixels_of_the_evaluation_view(tmp_path, width, height):
    """A picture that is its own mask: what the view shows and what the mask says agree, but for blended borders."""
    random = np.random.default_rng(1)
    numbers = random.integers(0, 2, (height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width]
    path = tmp_path / "a.png"
    Image.fromarray((numbers * 200).astype(np.uint8)).convert("RGB").save(path)
    mask(tmp_path, "masks/a.png", numbers.astype(np.uint8))
    found = read_masks(tmp_path / "masks", [Picture(str(path), "a.png", "x")], 0.75, 96)
    with Image.open(path) as image:
        seen = render_evaluation(image, 0.75, 96, "bilinear")[0].numpy()
    sure = (seen < 10) | (seen > 190)
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(found.masks_NHW[0][sure], seen[sure] > 100)


def test_a_mask_may_have_another_size_and_a_turned_picture_is_as_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = picture(tmp_path, "a.jpg", 60, 40, exif=exif)
    mask(tmp_path, "masks/a.png", halves(90)[:, 15:75])  # 60 x 90, as the picture is shown
    assert read_masks(tmp_path / "masks", [turned], 1.0, 30).masks_NHW[0].tolist() == halves(30, 0, 1).tolist()
    mask(tmp_path, "masks/a.png", halves(60)[:40])
    with pytest.raises(TinkitError, match="other proportions") as error:
        read_masks(tmp_path / "masks", [turned], 1.0, 30)
    assert error.value.seen == "60 x 40, the picture is 40 x 60"


def test_what_is_no_mask_is_refused_in_words(tmp_path):
    pictures = [picture(tmp_path, "a.jpg")]
    folder = tmp_path / "masks"
    with pytest.raises(TinkitError, match="no mask for any") as error:
        read_masks(folder, pictures, 1.0, 8)
    assert "a.png" in error.value.seen
    mask(tmp_path, "masks/a.png", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(TinkitError, match="in colour") as error:
        read_masks(folder, pictures, 1.0, 8)
    assert error.value.seen == "mode RGB"
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(TinkitError, match="cannot be read"):
        read_masks(folder, pictures, 1.0, 8)
    (folder / "a.png").write_bytes(b"no picture at all")
    with pytest.raises(TinkitError, match="cannot be read"):
        read_masks(folder, pictures, 1.0, 8)
    mask(tmp_path, "masks/a.png", halves(right=255))
    with pytest.raises(TinkitError, match="one class only") as error:
        read_masks(folder, pictures, 1.0, 8)
    assert "write 1 for a foreground of 255" in error.value.next_step
    mask(tmp_path, "masks/a.png", np.arange(1024, dtype=np.uint16).reshape(32, 32))
    with pytest.raises(TinkitError, match="too many classes"):
        read_masks(folder, pictures, 1.0, 32)


def test_masks_of_scanned_pictures(photos, tmp_path):
    pictures = scan(photos).usable
    for one in pictures[:3]:
        with Image.open(one.path) as image:
            grey = np.asarray(image.convert("L"))
        path = mask_path(str(tmp_path / "masks"), one.name)
        mask(tmp_path / "masks", path[len(str(tmp_path / "masks")) + 1 :], (grey > grey.mean()).astype(np.uint8))
    found = read_masks(tmp_path / "masks", pictures, 0.875, 64)
    assert (found.masks_NHW.shape, found.missing) == ((3, 64, 64), len(pictures) - 3)
