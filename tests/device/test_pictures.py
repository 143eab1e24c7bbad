"""The table of bad and odd pictures: each is read as it should look, or `Unreadable` says why. Never anything else."""

import contextlib
import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tinkit.device import pictures
from tinkit.device.pictures import Unreadable, crop, decode, is_picture_name, network_pixels, suffixes
from tinkit.pixels import Preprocessing


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width=20, height=12):
    """An RGB picture in which every pixel is different."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 12, y * 20, x + y], axis=2).astype(np.uint8))


def png(width, height, *chunks, depth=8, colour=2):
    """A PNG by hand: a header of any size, then the given (kind, data) chunks."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in (header, *chunks, (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def pixels_of(source):
    image = decode(source)
    assert image.mode == "RGB"
    return np.asarray(image)


# Odd pictures that are right


def test_a_plain_picture_comes_back_pixel_for_pixel():
    np.testing.assert_array_equal(pixels_of(encode(gradient())), np.asarray(gradient()))


def test_bytes_and_path_give_the_same(tmp_path):
    data = encode(gradient(), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(pixels_of(data), pixels_of(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(pixels_of(data), pixels_of(str(tmp_path / "a.jpg")))


def test_a_picture_of_one_pixel_works():
    data = encode(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert pixels_of(data).tolist() == [[[1, 2, 3]]]
    seen = network_pixels(data, Preprocessing(8, (0, 0, 0), (1, 1, 1)))
    assert seen.shape == (8, 8, 3)
    assert (seen == [1, 2, 3]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(orientation):
    upright = np.asarray(gradient())
    # how a camera stores the upright picture under each of the eight orientations (EXIF 2.3, tag 0x0112)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(pixels_of(data), upright)


def test_alpha_is_laid_over_white():
    data = encode(Image.fromarray(np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)))
    np.testing.assert_allclose(pixels_of(data), [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]], atol=1)


def test_grey_with_alpha_is_laid_over_white():
    image = Image.new("LA", (2, 1), (10, 255))
    image.putpixel((1, 0), (10, 0))
    np.testing.assert_array_equal(pixels_of(encode(image)), [[[10, 10, 10], [255, 255, 255]]])


def palette():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 100, 0])
    image.putpixel((1, 0), 1)
    return image


def test_a_palette_becomes_its_colours():
    np.testing.assert_array_equal(pixels_of(encode(palette())), [[[200, 0, 0], [0, 100, 0]]])


def test_a_transparent_colour_of_a_palette_becomes_white():
    np.testing.assert_array_equal(pixels_of(encode(palette(), transparency=1)), [[[200, 0, 0], [255, 255, 255]]])


def test_a_transparent_colour_of_an_rgb_picture_becomes_white():
    image = Image.new("RGB", (2, 1), (9, 9, 9))
    image.putpixel((1, 0), (1, 2, 3))
    np.testing.assert_array_equal(pixels_of(encode(image, transparency=(1, 2, 3))), [[[9, 9, 9], [255, 255, 255]]])


@pytest.mark.parametrize("top", [65535, 300, 200])
def test_16_bit_grey_is_scaled_by_its_type_not_by_its_content(top):
    values = np.array([[0, 100, top]], np.uint16)
    expected = (values / 65535 * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(pixels_of(encode(Image.fromarray(values)))[..., 0], expected)


def test_float_grey_of_0_to_255_keeps_its_values():
    data = encode(Image.fromarray(np.array([[0, 100.4, 255]], np.float32)), "TIFF")
    np.testing.assert_array_equal(pixels_of(data)[0, :, 1], [0, 100, 255])


def test_a_float_that_is_no_number_becomes_black():
    assert pixels_of(encode(Image.fromarray(np.array([[np.nan, 9]], np.float32)), "TIFF"))[0, :, 0].tolist() == [0, 9]


def test_grey_and_black_and_white_become_rgb():
    assert pixels_of(encode(Image.new("L", (2, 2), 77))).tolist() == [[[77] * 3] * 2] * 2
    assert pixels_of(encode(Image.new("1", (2, 2), 1))).tolist() == [[[255] * 3] * 2] * 2


def test_cmyk_becomes_rgb():
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(pixels_of(data), np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=4)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels_of(data)[0, 0].tolist() == [255, 0, 0]


def test_a_picture_of_any_readable_format_works():
    for kind in ("BMP", "GIF", "PNG", "TIFF", "WEBP", "PPM"):
        assert pixels_of(encode(gradient(), kind)).shape == (12, 20, 3)


# Bad pictures


def unreadable(source):
    """The reason; and neither a warning nor another exception on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Unreadable) as caught:
            decode(source)
    return str(caught.value)


def test_an_empty_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert "not a picture" in unreadable(tmp_path / "a.jpg")


def test_a_text_file_with_the_name_of_a_picture(tmp_path):
    (tmp_path / "a.jpg").write_text("Dear diary")
    assert "not a picture" in unreadable(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_a_picture_cut_short(kind):
    data = encode(gradient(200, 120), kind)
    assert "damaged" in unreadable(data[: len(data) // 2]) or "not a picture" in unreadable(data[: len(data) // 2])


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
    assert "directory" in unreadable(tmp_path).lower()
    assert "no such file" in unreadable(tmp_path / "gone.jpg").lower()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(gradient()))
    path.chmod(0)
    assert unreadable(path) == "no permission to read it"


def test_a_refused_file_says_permission(monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)  # as root, who is never refused
    assert unreadable("a.png") == "no permission to read it"


def test_168_megapixels_are_refused_by_the_header_alone():
    assert "168 megapixels" in unreadable(png(14000, 12000))  # 61 bytes: there is nothing else to look at


def test_just_below_the_limit_the_content_decides():
    side = int(pictures.MAX_PIXELS**0.5)
    assert "megapixels" not in unreadable(png(side, side))
    assert "megapixels" in unreadable(png(side + 1, side + 1))


def test_a_bomb_of_more_pixels_than_pillow_opens():
    assert "pixels" in unreadable(png(60000, 60000))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_zip_bomb_in_a_chunk_beside_the_pixels(kind):
    bomb = zlib.compress(bytes(80_000_000), 9)
    middle = {b"zTXt": b"Comment\0\0", b"iCCP": b"profile\0\0", b"iTXt": b"Comment\0\1\0\0\0"}[kind]
    data = png(1, 1, (kind, middle + bomb), (b"IDAT", zlib.compress(b"\0\1\2\3")))
    assert len(data) < 100_000
    try:
        seen = decode(data)
    except Unreadable:
        return  # refused is fine; unpacked and kept is not
    assert all(len(str(value)) < 10_000_000 for value in seen.info.values())


def test_a_zip_bomb_in_the_pixels_gives_only_the_pixels_of_the_header():
    data = png(2, 2, (b"IDAT", zlib.compress(bytes(80_000_000), 9)))
    with contextlib.suppress(Unreadable):
        assert decode(data).size == (2, 2)


@pytest.mark.slow
def test_a_jpeg_of_168_megapixels_is_decoded_at_a_reduced_scale():
    data = encode(Image.new("L", (14000, 12000), 100), "JPEG")
    image = decode(data)
    assert min(image.size) >= pictures.DRAFT_SIDE
    assert image.width * image.height < 10e6
    assert np.unique(np.asarray(image)).tolist() == [100]


def test_a_large_jpeg_is_reduced_but_never_below_what_a_network_needs():
    assert decode(encode(Image.new("RGB", (5000, 2100)), "JPEG")).size == (2500, 1050)
    assert decode(encode(Image.new("RGB", (5000, 2000)), "JPEG")).size == (5000, 2000)


SEEDS = [encode(gradient(), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")]


def read_or_refuse(data):
    """What every caller relies on: an RGB picture or `Unreadable`."""
    with contextlib.suppress(Unreadable):
        assert decode(data).mode == "RGB"


@given(st.binary(max_size=200))
@example(b"\xff\xd8\xff")
@example(b"P6 -1 -1 255\n")
@example(b"GIF89a\xff\xff\xff\xff\x80\0\0")
def test_random_bytes_never_raise_anything_else(data):
    read_or_refuse(data)


@given(st.sampled_from(SEEDS), st.floats(0, 1))
def test_random_truncation_never_raises_anything_else(data, share):
    read_or_refuse(data[: int(share * len(data))])


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_random_damage_never_raises_anything_else(data, faults):
    damaged = bytearray(data)
    for place, change in faults:
        damaged[min(int(place * len(data)), len(data) - 1)] ^= change
    read_or_refuse(bytes(damaged))


def test_decoding_in_threads_leaves_the_warnings_of_others_alone():
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(decode, SEEDS * 30))) == 30 * len(SEEDS)
    with pytest.raises(UserWarning, match="somebody else's"):  # pytest makes warnings errors
        warnings.warn("somebody else's", stacklevel=1)


# Cropping and names


def test_the_whole_picture_at_its_own_size_is_untouched():
    image = gradient(12, 12)
    np.testing.assert_array_equal(crop(image, (0, 0, 12, 12), 12), np.asarray(image))


def test_a_crop_of_whole_pixels_is_that_part():
    image = gradient(20, 12)
    np.testing.assert_array_equal(crop(image, (3, 2, 11, 10), 8), np.asarray(image)[2:10, 3:11])


def test_a_box_that_leaves_the_picture_by_rounding_is_clipped():
    assert crop(gradient(12, 12), (-1e-9, -1e-9, 12 + 1e-9, 12 + 1e-9), 12).shape == (12, 12, 3)


def test_shrinking_averages_instead_of_skipping():
    stripes = Image.fromarray(np.tile(np.array([[[0] * 3, [255] * 3]], np.uint8), (64, 32, 1)))
    np.testing.assert_allclose(crop(stripes, (0, 0, 64, 64), 8), 127.5, atol=5)  # 4.5 at the borders


def test_network_pixels_are_the_centre(photos):
    path = next(photos.rglob("*.jpg"))
    image = decode(path)
    expected = crop(image, (12, 12, 84, 84), 48)  # three quarters of 96 pixels
    np.testing.assert_array_equal(
        network_pixels(path, Preprocessing(48, (0, 0, 0), (1, 1, 1), crop_pct=0.75)), expected
    )


def test_names_of_pictures():
    endings = suffixes()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".gif", ".bmp"} <= endings
    for name in ("a.jpg", "A.JPG", "b.c.png", "without_ending"):
        assert is_picture_name(name, endings)
    for name in (".hidden.jpg", "notes.txt", "a.jpg.part", ".DS_Store"):
        assert not is_picture_name(name, endings)
