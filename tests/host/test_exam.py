"""Encoded pictures lose everything but the picture: no place, no camera, no second picture; the pixels stay."""

import io
import os

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tinkit.bundle import Exam
from tinkit.device.pictures import network_pixels
from tinkit.errors import TinkitError
from tinkit.host.export import exam as exams
from tinkit.host.export.exam import exam_of_folder, make_exam, strip_metadata
from tinkit.pixels import Preprocessing

WHOLE = Preprocessing(48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_pct=1.0)
GPS_IFD, ORIENTATION, MAKE, SECRET = 0x8825, 0x0112, 0x010F, "Rosebud"


def scene(width=80, height=60, mode="RGB"):
    """A picture that is different in every corner, so that a lost orientation shows."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 255 // width, y * 255 // height, (x + y) % 64], axis=2).astype(np.uint8)
    return Image.fromarray(picture).convert(mode)


def encode(picture, kind="JPEG", **options):
    handle = io.BytesIO()
    picture.save(handle, kind, **options)
    return handle.getvalue()


def exif(orientation=6):
    block = Image.Exif()
    block[ORIENTATION], block[MAKE] = orientation, SECRET
    block[GPS_IFD] = {1: "N", 2: (48.0, 8.0, 12.0), 3: "E", 4: (11.0, 34.0, 30.0), 29: SECRET}
    return block


def png_text():
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", SECRET)
    info.add_itxt("XML:com.adobe.xmp", f"<x>{SECRET}</x>")
    return info


ODD_FILES = {
    "exif": lambda: encode(scene(), exif=exif()),
    "comment": lambda: encode(scene(), comment=SECRET),
    "colour profile": lambda: encode(scene(), icc_profile=SECRET.encode() * 20),
    "xmp": lambda: encode(scene(), xmp=f"<x>{SECRET}</x>".encode()),
    "a film after the end": lambda: encode(scene()) + encode(scene(), comment=SECRET),
    "progressive": lambda: encode(scene(), progressive=True, comment=SECRET),
    "restart markers": lambda: encode(scene(), restart_marker_rows=1, comment=SECRET),
    "grey": lambda: encode(scene(mode="L"), comment=SECRET),
    "cmyk": lambda: encode(scene(mode="CMYK"), exif=exif(3), comment=SECRET),
    "png": lambda: encode(scene(), "PNG", pnginfo=png_text(), exif=exif()) + SECRET.encode(),
    "png with alpha": lambda: encode(scene(mode="RGBA"), "PNG", pnginfo=png_text()),
    "png palette": lambda: encode(scene(mode="P"), "PNG", transparency=3, pnginfo=png_text()),
}


@pytest.mark.parametrize("make", ODD_FILES.values(), ids=ODD_FILES)
def test_the_secret_is_gone_and_the_pixels_are_the_same(make):
    data = make()
    stripped = strip_metadata(data)
    assert SECRET.encode() in data
    assert SECRET.encode() not in stripped
    assert np.array_equal(network_pixels(stripped, WHOLE), network_pixels(data, WHOLE))
    assert strip_metadata(stripped) == stripped


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_orientation_is_all_that_stays_of_exif(kind, orientation):
    data = encode(scene(), kind, exif=exif(orientation))
    stripped = strip_metadata(data)
    with Image.open(io.BytesIO(stripped)) as image:
        assert dict(image.getexif()) == {ORIENTATION: orientation}
        assert not image.getexif().get_ifd(GPS_IFD)
    assert np.array_equal(network_pixels(stripped, WHOLE), network_pixels(data, WHOLE))
    upright = network_pixels(encode(scene(), kind), WHOLE)
    assert not np.array_equal(network_pixels(stripped, WHOLE), upright)


def test_other_formats_and_cut_files_are_refused():
    with pytest.raises(ValueError, match="neither"):
        strip_metadata(encode(scene(), "BMP"))
    for kind in ("JPEG", "PNG"):
        data = encode(scene(), kind)
        for cut in (0, 4, 40, len(data) // 2, len(data) - 3):
            with pytest.raises(ValueError, match=r"neither|damaged|early"):
                strip_metadata(data[:cut])


def write(folder, name, data):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as handle:
        handle.write(data)
    return path


def test_make_exam_keeps_the_order_and_brings_along_what_decodes_to_the_pixels(tmp_path, monkeypatch):
    pictures = {
        "a.bmp": encode(scene(), "BMP"),  # no JPEG, no PNG: pixels only
        "b.jpg": encode(scene(90, 50), exif=exif()),
        "c.jpg": encode(scene(300, 300), quality=100),  # too large here
        "d.png": encode(scene(40, 70), "PNG"),
        "e.jpg": encode(scene(60, 61)),  # one more than wanted
    }
    monkeypatch.setattr(exams, "MAX_ENCODED_BYTES", 20_000)
    assert len(pictures["c.jpg"]) > 20_000 > len(pictures["d.png"])
    paths = [(write(tmp_path, name, data), f"x/{name}") for name, data in pictures.items()]
    exam = make_exam(paths, WHOLE, encoded=2)
    assert list(exam.names) == [f"x/{name}" for name in pictures]
    assert sorted(exam.encoded) == [1, 3]
    assert exam.answers == {}
    assert exam.mapped is None
    for index, data in exam.encoded.items():
        assert np.array_equal(network_pixels(data, WHOLE), exam.pixels[index])
        assert SECRET.encode() not in data
    again = Exam.from_arrays(exam.to_arrays(), "memory")
    assert again.encoded == exam.encoded
    assert np.array_equal(again.pixels, exam.pixels)


def test_a_picture_that_cannot_be_stripped_safely_stays_as_pixels_only(tmp_path, monkeypatch):
    monkeypatch.setattr(exams, "strip_metadata", lambda data: encode(scene(80, 60).rotate(180)))
    exam = make_exam([(write(tmp_path, "a.jpg", encode(scene())), "a.jpg")], WHOLE)
    assert exam.encoded == {}
    assert len(exam.pixels) == 1


def test_make_exam_names_a_picture_that_it_cannot_read(tmp_path):
    with pytest.raises(TinkitError, match="cannot be read") as caught:
        make_exam([(write(tmp_path, "text.jpg", b"hello"), "text.jpg")], WHOLE)
    assert caught.value.where.endswith("text.jpg")
    with pytest.raises(TinkitError, match="at least one"):
        make_exam([], WHOLE)


def test_exam_of_folder_looks_everywhere_skips_with_a_note_and_chooses_the_same_again(tmp_path):
    for index in range(6):
        write(tmp_path, f"deep/{index % 2}/p{index}.png", encode(scene(50 + index, 60), "PNG"))
    write(tmp_path, "broken.jpg", b"\xff\xd8\xff no")
    write(tmp_path, ".hidden.png", encode(scene(), "PNG"))
    write(tmp_path, ".cache/p.png", encode(scene(), "PNG"))
    write(tmp_path, "notes.txt", b"not a picture")
    exam, notes = exam_of_folder(tmp_path, WHOLE)
    assert sorted(exam.names) == [f"deep/{index % 2}/p{index}.png" for index in (0, 2, 4, 1, 3, 5)]
    assert [note.startswith("skipped in the exam's folder: broken.jpg: ") for note in notes] == [True]
    fewer, _ = exam_of_folder(tmp_path, WHOLE, pictures=4)
    assert list(fewer.names) == list(exam.names[:4])
    assert {name.split("/")[1] for name in fewer.names} == {"0", "1"}


def test_a_folder_without_pictures_is_a_clear_error(tmp_path):
    write(tmp_path, "broken.png", b"no")
    with pytest.raises(TinkitError, match="no usable picture") as caught:
        exam_of_folder(tmp_path, WHOLE)
    assert caught.value.seen == "1 unreadable"
    with pytest.raises(TinkitError, match="must be a folder"):
        exam_of_folder(tmp_path / "broken.png", WHOLE)
