"""Pictures of an evaluation as data: URIs: thumbnails from the folder that was evaluated, and similarity maps as colours.

Thumbnails are decoded by tinkit's own decoder and encoded anew from pixels, so nothing of a file but its look comes along.
A page has a budget of them; what is beyond it, missing or unreadable is counted, and the page says so.
"""

import base64
import io
import os

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from tinkit.device.pictures import Unreadable, decode
from tinkit.errors import TinkitError
from tinkit.host.images import find_picture

MOST, MOST_BYTES = 240, 6 * 1024  # thumbnails of a page, bytes of each before base64
QUALITIES = (75, 60, 45, 30, 20)
SMALL, LARGE = 96, 160  # pixels; shown at about two thirds of it, for sharp screens
STOPS = (
    (0, 32, 77),
    (65, 77, 107),
    (124, 123, 120),
    (188, 174, 108),
    (255, 234, 70),
)  # cividis, arXiv 1712.01662, at quarters
MAP_SIDE, CELL = 112, 8  # pixels of a map's longer side, about, and of one position at least


class Album:
    """The thumbnails of one page, by the pictures' names in the source `root`; the same picture is decoded once."""

    def __init__(self, root, most=MOST):
        self.root, self.most = str(root), most
        self.shown, self.beyond = 0, 0
        self.missing: dict[str, str] = {}
        self._known: dict[tuple[str, int], str] = {}

    def data(self, name, side=SMALL) -> str:
        """A data: URI, "" where there is none: no such file, unreadable, or the page has enough already."""
        if self.shown >= self.most:
            self.beyond += 1
            return ""
        if (name, side) not in self._known:
            self._known[name, side] = self._encoded(name, side)
        self.shown += bool(self._known[name, side])
        return self._known[name, side]

    def _encoded(self, name, side) -> str:
        if not name or os.path.isabs(name) or ".." in name.split("/"):
            self.missing[name] = "not a name below the folder of pictures"
        else:
            try:
                picture = find_picture(self.root, name)
                if picture is not None:
                    return _jpeg(decode(picture.read()), side)
                self.missing[name] = "no longer there"
            except (Unreadable, OSError, TinkitError) as error:
                self.missing[name] = str(error).partition("\n")[0]
        return ""


def heat(values_HW, row: int, column: int) -> str:
    """A map of 0..255 as a PNG in cividis (dark blue low, yellow high; told apart without red and green), the point ringed.

    The ring lies within its place, dark around light, so that it is seen on every colour and hides no other place.
    ValueError for values that are no map or a point outside of it.
    """
    values = np.asarray(values_HW)
    if values.ndim != 2 or values.dtype.kind not in "iu" or not values.size or values.min() < 0 or values.max() > 255:
        raise ValueError("a map is rows of whole numbers from 0 to 255")
    if not (0 <= row < values.shape[0] and 0 <= column < values.shape[1]):
        raise ValueError(f"the point {row}, {column} is outside of {values.shape}")
    cell = max(CELL, MAP_SIDE // max(values.shape))
    size = (values.shape[1] * cell, values.shape[0] * cell)
    image = Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    image.putpalette(_palette())
    pen, left, top = ImageDraw.Draw(image), column * cell, row * cell
    for inset, level in ((1, 0), (2, 255)):
        box = (left + inset, top + inset, left + cell - 1 - inset, top + cell - 1 - inset)
        pen.rectangle(box, outline=level)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _palette() -> bytes:
    places = np.linspace(0, len(STOPS) - 1, 256)
    channels = [np.interp(places, range(len(STOPS)), channel) for channel in zip(*STOPS)]
    return np.stack(channels, axis=1).round().astype(np.uint8).tobytes()


def _jpeg(image, side) -> str:
    """The middle square of a picture, in at most MOST_BYTES where the lowest quality allows it."""
    small = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    for quality in QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= MOST_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
