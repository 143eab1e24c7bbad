"""The questions of an exam: real pictures at network size, some of them also as encoded files, without answers yet.

`tinkit distill` makes them from held-out pictures, `tinkit export --exam` from another folder. Encoded files travel
with the bundle, so everything in them but the picture is removed first (place, date, camera, thumbnails, comments,
trailing data). What is left must decode to the same pixels, or that file is not taken.
"""

import hashlib
import io
import os
import struct
import warnings
import zlib

import numpy as np

from tinkit.bundle import Exam
from tinkit.device.pictures import Unreadable, network_pixels
from tinkit.errors import TinkitError
from tinkit.host.images import Picture, list_pictures
from tinkit.pixels import Preprocessing

SKIPPED = "skipped in the exam's folder:"
ENCODED, MAX_ENCODED_BYTES = 8, 2_000_000
ORIENTATION = 0x0112
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT")


def make_exam(pictures_with_names, preprocessing: Preprocessing, encoded: int = ENCODED) -> Exam:
    """An `Exam` of (picture, name) pairs, in their order; the first `encoded` JPEG and PNG files up to 2 MB come along.

    A picture is a path or a `Picture`, which may lie in a tar or a table.
    Raises TinkitError for a picture that cannot be read.
    """
    pixels, names = [], []
    files: dict[int, bytes] = {}
    for index, (source, name) in enumerate(pictures_with_names):
        try:
            seen, data = _look(read_source(source), preprocessing, len(files) < encoded)
        except (Unreadable, OSError) as error:
            where = source.path if isinstance(source, Picture) else os.fspath(source)
            raise TinkitError("A picture of the exam cannot be read.", where=where, seen=str(error)) from None
        pixels.append(seen)
        names.append(name)
        if data is not None:
            files[index] = data
    if not pixels:
        raise TinkitError("An exam needs at least one picture.")
    return Exam(np.stack(pixels), np.array(names, dtype=np.str_), {}, None, files)


def exam_of_folder(folder, preprocessing: Preprocessing, pictures: int = 64) -> tuple[Exam, list[str]]:
    """An exam of up to `pictures` readable pictures of `folder` (or another source), and notes about those that were skipped.

    The choice is spread over them all and always the same: files are taken in the order of the hash of their names.
    """
    try:
        listing = list_pictures(folder)
    except TinkitError as error:
        raise TinkitError(f"The exam has no pictures. {error.what}", error.where, error.seen, error.next_step) from None
    names = list(listing.pictures.all_names())
    chosen: list[tuple[Picture, str]] = []
    notes = [f"{SKIPPED} {name}: {reason}" for name, reason in listing.lost]
    for number in sorted(range(len(names)), key=lambda number: hashlib.sha256(os.fsencode(names[number])).digest()):
        if len(chosen) == pictures:
            break
        picture = listing.pictures[number]
        try:
            network_pixels(picture.read(), preprocessing)
            chosen.append((picture, picture.name))
        except (Unreadable, OSError) as error:
            notes.append(f"{SKIPPED} {picture.name}: {error}")
    if not chosen:
        raise TinkitError(
            "There is no usable picture in the exam's folder.", where=listing.source, seen=f"{len(notes)} unreadable"
        )
    return make_exam(chosen, preprocessing), notes


def strip_metadata(data: bytes) -> bytes:
    """A JPEG or PNG without anything but its picture; an EXIF orientation stays, alone. ValueError for others."""
    if data.startswith(JPEG_START):
        return _strip_jpeg(data, _orientation(data))
    if data.startswith(PNG_START):
        return _strip_png(data, _orientation(data))
    raise ValueError("neither JPEG nor PNG")


def read_source(source) -> bytes:
    """The encoded bytes of a path or a `Picture`."""
    if isinstance(source, Picture):
        return source.read()
    with open(source, "rb") as handle:
        return handle.read()


def _look(data, preprocessing, wanted):
    """(pixels, stripped file or None). None when it is not wanted, too large, or another format."""
    pixels = network_pixels(data, preprocessing)
    if not wanted or len(data) > MAX_ENCODED_BYTES:
        return pixels, None
    if not data.startswith((JPEG_START, PNG_START)):
        return pixels, None
    try:
        stripped = strip_metadata(data)
        same = np.array_equal(network_pixels(stripped, preprocessing), pixels)
    except (ValueError, Unreadable):  # an odd file that Pillow forgives: it stays in the exam as pixels
        return pixels, None
    return pixels, stripped if same else None


def _orientation(data) -> int:
    """EXIF orientation 1..8 as the decoder sees it (Pillow also takes it from XMP)."""
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF: only the orientation is asked for
        try:
            with Image.open(io.BytesIO(data)) as image:
                value = image.getexif().get(ORIENTATION, 1)
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"damaged header: {error}") from None
    return value if value in range(1, 9) else 1


def _tiff(orientation) -> bytes:
    """The smallest EXIF block: one directory with one entry."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


def _strip_jpeg(data, orientation) -> bytes:
    out = bytearray(data[:2])
    if orientation != 1:
        out += _segment(0xE1, b"Exif\0\0" + _tiff(orientation))
    at = 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if data[at : at + 1] != b"\xff" or at + 2 > len(data):
            raise ValueError("the JPEG ends early or is damaged")
        marker = data[at + 1]
        if marker == 0xD9:  # end of image: whatever follows (a second picture, a film) is left behind
            return bytes(out) + b"\xff\xd9"
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            end = _end_of_scan(data, end)
        out += _kept(marker, data[at:end])
        at = end


def _kept(marker, segment) -> bytes:
    """What stays of one JPEG segment: tables, frames and scans whole, of application data JFIF and Adobe only."""
    body = segment[4:]
    if marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        return _segment(0xE0, body[:12] + b"\0\0")  # without its thumbnail
    if marker == 0xEE and body.startswith(b"Adobe"):  # says how the colours are coded
        return segment
    return b"" if 0xE0 <= marker <= 0xEF or marker == 0xFE else segment


def _segment(marker, body) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _end_of_scan(data, at) -> int:
    """The place of the next marker that is neither a stuffed zero nor a restart."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise ValueError("the JPEG ends early or is damaged")
        following = data[at + 1]
        if following == 0xFF:
            at += 1
        elif following == 0 or 0xD0 <= following <= 0xD7:
            at += 2
        else:
            return at


def _strip_png(data, orientation) -> bytes:
    out, at = bytearray(data[:8]), 8
    while True:
        if at + 12 > len(data):
            raise ValueError("the PNG ends early or is damaged")
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in PNG_KEPT:
            out += data[at:end]
        if kind == b"IHDR" and orientation != 1:
            out += _chunk(b"eXIf", _tiff(orientation))
        if kind == b"IEND":
            return bytes(out)
        at = end


def _chunk(kind, body) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
