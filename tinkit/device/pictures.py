"""Picture file -> pixels: the one decoder and the one resampler of tinkit, on workstation and board alike.

Reads what Pillow reads (imported inside the functions: a board without Pillow still takes raw frames). Honours EXIF
orientation; alpha is laid over white; grey, palette, 16-bit and CMYK become RGB. Sizes are checked on the header before
any pixel is unpacked; a JPEG is decoded at a reduced scale when it is far larger than any network needs.
"""

import io
import os
import warnings

import numpy as np

from tinkit.errors import TinkitError
from tinkit.pixels import centre_box

MAX_PIXELS = 100_000_000  # after a JPEG's reduced-scale decoding; RGB of this size takes 300 MB
DRAFT_SIDE = 1024  # a JPEG keeps at least this many pixels on its short side


class Unreadable(Exception):
    """This picture cannot be used; the text says why in a few words."""


def decode(source):
    """An RGB Pillow image from a path or from encoded bytes. Raises `Unreadable`, never anything else of Pillow's."""
    Image, ImageOps = _pillow()
    handle = io.BytesIO(source) if isinstance(source, bytes) else source
    _silence_pillow()
    try:
        with Image.open(handle) as image:
            image.draft("RGB", (DRAFT_SIDE, DRAFT_SIDE))  # JPEG only; other formats ignore it
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Unreadable(
                    "{:.0f} megapixels, the limit is {:.0f}".format(width * height / 1e6, MAX_PIXELS / 1e6)
                )
            image.load()
            return _to_rgb(Image, ImageOps.exif_transpose(image))
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable("more pixels than any picture should have") from None
    except PermissionError:
        raise Unreadable("no permission to read it") from None
    except Image.UnidentifiedImageError:
        raise Unreadable("not a picture, or a damaged header") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, ArithmeticError, LookupError, TypeError) as error:
        raise Unreadable("damaged: {}".format(error or type(error).__name__)) from None


def _silence_pillow():
    """Its warnings (a bomb, odd EXIF) are no news: what matters is checked here.

    Not catch_warnings(), which swaps a global and so is not safe in the threads that read a folder.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.|tinkit\.device\.pictures")


def _to_rgb(Image, image):
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):  # 16-bit grey and wider: scaled to 0..255 by the type's range
        values = np.nan_to_num(np.asarray(image, np.float32))
        top = 65535.0 if image.mode.startswith("I;16") or values.max() > 255 else 255.0
        grey = np.clip(values / top * 255, 0, 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def crop(image, box, size, interpolation="bicubic"):
    """The part `box` (left, top, right, bottom; floats) of a Pillow image, resampled to (size, size, 3) uint8."""
    return _resample(image, box, size, size, interpolation)


def _resample(image, box, height, width, interpolation):
    Image, _ = _pillow()
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    left, top, right, bottom = box
    box = (max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height)))
    return np.asarray(image.resize((width, height), filters[interpolation], box=box))


def network_pixels(source, preprocessing):
    """Path or encoded bytes -> (size, size, 3) uint8, by the manifest's preprocessing."""
    return _network_pixels(decode(source), preprocessing)


def frame_pixels(source, frame):
    """Path or encoded bytes -> a frame as a camera gives it, (height, width, 3) uint8 for `frame` = (height, width).

    The largest centred part of the picture with the frame's aspect ratio, resampled bicubic and antialiased.
    """
    image, (height, width) = decode(source), frame
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    return _resample(image, (left, top, left + scale * width, top + scale * height), height, width, "bicubic")


def network_pixels_of_frame(frame_HWC, preprocessing):
    """A uint8 RGB frame -> (size, size, 3) uint8: what Pillow makes of it, by the manifest's preprocessing."""
    Image, _ = _pillow()
    return _network_pixels(Image.fromarray(frame_HWC), preprocessing)


def _network_pixels(image, preprocessing):
    box = centre_box(image.width, image.height, preprocessing.crop_pct)
    return crop(image, box, preprocessing.size, preprocessing.interpolation)


def suffixes():
    """The file endings that Pillow can open, lower case with the dot."""
    Image, _ = _pillow()
    Image.init()
    return {ending.lower() for ending, name in Image.registered_extensions().items() if name in Image.OPEN}


def is_picture_name(name, endings):
    """Hidden files are never pictures; files without an ending are tried."""
    ending = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and (ending in endings or ending == "")


def _pillow():
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise TinkitError("Decoding pictures needs Pillow.", next_step="pip install pillow") from None
    return Image, ImageOps
