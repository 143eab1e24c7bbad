"""Masks of a user's pictures: a PNG a picture, below a folder of their own under the same relative name.

A pixel holds the number of its class, in grey or as an index into a palette (as in Pascal VOC and many labelling tools); 255
is "not judged". A mask is cut by the evaluation view's box and sampled without blending, so it lies on the network's pixels.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.images import Picture, is_row
from tinkit.pixels import centre_box

IGNORE = 255
MOST_CLASSES = 250  # numbers 0..249 in a byte, with room for IGNORE
EXIF_ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Masks:
    """index_N: which of the pictures have a mask, ascending. masks_NHW: uint8, 0..len(classes)-1 or IGNORE.

    classes: the numbers in the files as text, ascending. contents: the pictures' hashes; `missing` counts those without.
    """

    index_N: np.ndarray
    masks_NHW: np.ndarray
    classes: tuple[str, ...]
    contents: tuple[str, ...]
    missing: int = 0


def read_masks(folder, pictures: Sequence[Picture], crop_pct: float, size: int) -> Masks:
    """Masks of those pictures that have one, at `size` x `size` network pixels.

    TinkitError when there is none, for a file that is no mask or not of its picture's shape, and for fewer than two
    classes or more than 250.
    """
    folder = os.fspath(folder)
    found = [(n, path) for n, p in enumerate(pictures) if os.path.isfile(path := mask_path(folder, p.name))]
    if not found:
        raise TinkitError(
            "There is no mask for any of the pictures.",
            where=folder,
            seen=f"no {os.path.relpath(mask_path(folder, pictures[0].name), folder)}, for example",
            next_step="one PNG a picture with the same relative name: cat/one.jpg has cat/one.png",
        )
    cut = [_cut(_read(path, pictures[n]), crop_pct, size) for n, path in found]
    numbers = sorted({int(number) for mask in cut for number in np.unique(mask)} - {IGNORE})
    if not 2 <= len(numbers) <= MOST_CLASSES:
        raise TinkitError(
            "The masks show one class only." if len(numbers) < 2 else "The masks have too many classes for masks.",
            where=folder,
            seen=f"{len(numbers)} classes in {len(found)} masks: " + ", ".join(map(str, numbers[:8])),
            next_step=f"a class number a pixel, 0 to 254; {IGNORE} means not judged, so write 1 for a foreground of 255",
        )
    place = np.full(max(*numbers, IGNORE) + 1, IGNORE, np.uint8)
    place[numbers] = np.arange(len(numbers))
    return Masks(
        np.array([n for n, _ in found]),
        np.stack([place[mask] for mask in cut]),
        tuple(map(str, numbers)),
        tuple(pictures[n].content for n, _ in found),
        len(pictures) - len(found),
    )


def mask_path(folder, name) -> str:
    """Where the mask of the picture with this relative name is looked for; TABLE.parquet#7 has TABLE.parquet#7.png."""
    return os.path.join(folder, (name if is_row(name) else os.path.splitext(name)[0]) + ".png")


def _read(path, picture: Picture) -> np.ndarray:
    """The class numbers (H, W) of a mask that has its picture's proportions."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            mode, numbers = image.mode, np.array(image)
        width, height = _size_as_seen(Image, picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TinkitError("A mask or its picture cannot be read.", where=path, seen=str(error)) from None
    if numbers.ndim != 2 or mode not in ("1", "L", "P", "I", "I;16"):
        raise TinkitError(
            "A mask is a picture in colour.",
            where=path,
            seen=f"mode {mode}",
            next_step="a class number a pixel: a grey PNG, or one with a palette",
        )
    numbers = numbers.astype(np.int64)
    if abs(numbers.shape[1] / numbers.shape[0] / (width / height) - 1) > 1.5 / min(numbers.shape):
        raise TinkitError(
            "A mask has other proportions than its picture.",
            where=path,
            seen=f"{numbers.shape[1]} x {numbers.shape[0]}, the picture is {width} x {height}",
            next_step="a mask of the whole picture, turned as the picture is shown",
        )
    if numbers.min() < 0 or numbers.max() > 65535:
        raise TinkitError(
            "A mask has numbers that are no classes.", where=path, seen=f"{numbers.min()}..{numbers.max()}"
        )
    return numbers


def _size_as_seen(Image, picture):
    """(width, height) of a picture as it is shown, read from its header."""
    with Image.open(io.BytesIO(picture.read()) if picture.place else picture.path) as image:
        width, height = image.size
        turned = image.getexif().get(EXIF_ORIENTATION) in TURNED
    return (height, width) if turned else (width, height)


def _cut(mask_HW, crop_pct, size):
    """The nearest mask pixel at the middle of each of size x size pixels of the evaluation view."""
    height, width = mask_HW.shape
    left, top, right, bottom = centre_box(width, height, crop_pct)
    middles = (np.arange(size) + 0.5) / size
    rows = np.minimum((top + middles * (bottom - top)).astype(int), height - 1)
    columns = np.minimum((left + middles * (right - left)).astype(int), width - 1)
    return mask_HW[rows[:, None], columns]
