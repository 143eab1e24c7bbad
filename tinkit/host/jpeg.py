"""Encoded pictures -> uint8 tensors by torchvision's JPEG decoder, on the CPU or (nvJPEG) on a GPU, EXIF orientation honoured.

What that decoder does not read (other formats, CMYK, very large files, damage) goes through Pillow, picture by picture, with
the rules of `tinkit.device.pictures`. torchvision 0.29 calls its decoder deprecated, in favour of TorchCodec.
"""

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from tinkit.device.pictures import Unreadable, decode
from tinkit.errors import TinkitError

MAX_PIXELS = 50_000_000  # larger JPEGs go through Pillow, which reduces them while it decodes
PIXELS_AT_ONCE = 100_000_000  # decoded together on a GPU: 300 MB
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, struct.error)
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # EXIF orientation -> what makes (3, H, W) upright
    1: lambda p: p,
    2: lambda p: p.flip(2),
    3: lambda p: p.flip(1, 2),
    4: lambda p: p.flip(1),
    5: lambda p: p.transpose(1, 2),
    6: lambda p: p.transpose(1, 2).flip(2),
    7: lambda p: p.transpose(1, 2).flip(1, 2),
    8: lambda p: p.transpose(1, 2).flip(1),
}


class UnreadableAt(Unreadable):
    """Neither decoder reads this picture: `place` is its number in the batch."""

    def __init__(self, place: int, reason: str):
        super().__init__(reason)
        self.place = place


class Header(NamedTuple):
    """What a file says of itself before it is decoded. width and height as stored; orientation as in EXIF, 1 = upright.

    plain: a grey or RGB JPEG of a size that torchvision's decoder is given.
    """

    width: int
    height: int
    orientation: int
    plain: bool

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) as people see it."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(data: bytes) -> Header:
    """The header of an encoded picture. Raises `Unreadable`."""
    from PIL import Image

    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd EXIF: what matters is checked by who decodes
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            plain = image.format == "JPEG" and image.mode in ("L", "RGB") and image.width * image.height <= MAX_PIXELS
            return Header(image.width, image.height, orientation if orientation in TURNS else 1, plain)
    except (Image.DecompressionBombError, *DAMAGE) as error:
        raise Unreadable(f"not a picture, or a damaged header: {error}") from None


def decoded_on_device(encoded: Sequence[bytes], device="cpu") -> Iterator[tuple[int, torch.Tensor]]:
    """(number in the batch, upright picture (3, H, W) uint8 on the device), a bounded number of pixels at a time.

    In another order where Pillow helps out. Raises `UnreadableAt`.
    """
    headers = [_at(place, read_header, data) for place, data in enumerate(encoded)]
    for group in _groups(headers):
        for place, pixels in zip(group, _jpegs([encoded[place] for place in group], device), strict=True):
            if pixels is None:
                pixels = _at(place, _by_pillow, encoded[place]).to(device)
            else:
                pixels = TURNS[headers[place].orientation](pixels)
            yield place, pixels
    for place, header in enumerate(headers):
        if not header.plain:
            yield place, _at(place, _by_pillow, encoded[place]).to(device)


def require(decoder: str, device) -> None:
    """TinkitError unless this decoder works on this device: a fallback for single pictures must not become the rule."""
    if decoder == "pillow":
        return
    from PIL import Image

    handle = io.BytesIO()
    Image.new("RGB", (16, 16)).save(handle, "JPEG")
    try:
        _decode_jpeg([handle.getvalue()], device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise TinkitError(
            "torchvision cannot decode JPEGs on this device.",
            where=str(device),
            seen=str(error).splitlines()[0],
            next_step="--decoder pillow, or a torchvision built with nvJPEG",
        ) from None


def _at(place, action, data):
    try:
        return action(data)
    except Unreadable as error:
        raise UnreadableAt(place, str(error)) from None


def _groups(headers):
    """The places of the plain JPEGs, as many together as may be in memory at once."""
    group, total = [], 0
    for place, header in enumerate(headers):
        if header.plain:
            if group and total + header.width * header.height > PIXELS_AT_ONCE:
                yield group
                group, total = [], 0
            group.append(place)
            total += header.width * header.height
    if group:
        yield group


def _jpegs(encoded, device) -> Sequence[torch.Tensor | None]:
    """Each decoded by torchvision, or None. A batch is decoded whole or not at all: then one by one."""
    try:
        return _decode_jpeg(encoded, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return [None] if len(encoded) == 1 else [_jpegs([data], device)[0] for data in encoded]


def _decode_jpeg(encoded, device) -> list[torch.Tensor]:
    from torchvision.io import decode_jpeg

    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torchvision\.io")
    return decode_jpeg(tensors, mode="RGB", device=device)


def _by_pillow(data) -> torch.Tensor:
    image = decode(data)
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(image.height, image.width, 3)
        .permute(2, 0, 1)
    )
