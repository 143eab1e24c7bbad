"""What makes a store: teacher, views, pictures, arrays and their dtype. Its hash is the store's name.

Another identity is another store. A picture's row is a function of the picture's content and of everything here but the
list of pictures, so two stores that differ in that list alone may lend each other rows (`reuse`).
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinkit.host.images import Picture

SCHEMA = "tinkit-store-2"
TAP = "tap."  # in front of a tap's name in the name of its array
HASH_BYTES = 32  # of a sha256
BLOCK = 65_536  # pictures at a time where all are walked


def identity_of(teacher, views, parts, dtype: str, grid: int | None = None, contents_N32=None) -> dict[str, Any]:
    """Everything that shapes the stored numbers. `grid`: local features pooled to at most grid x grid positions."""
    if contents_N32 is None:
        contents_N32 = contents_of(views.pictures)
    return {
        "schema": SCHEMA,
        "teacher": teacher.identity,
        "views": {"policy": views.policy.to_json(), "numbers": list(views.numbers), "crop_pct": views.crop_pct},
        "pictures": {"count": len(contents_N32), "sha256": sha256_of_contents(contents_N32)},
        **_arithmetic(views),
        "local": "local" in parts,
        "dtype": dtype,
        **{part: True for part in ("logits", "taps") if part in parts},
        **({} if grid is None or "local" not in parts else {"grid": grid}),
    }


def _arithmetic(views) -> dict[str, str]:
    """What turns bytes into the pixels of a view: another decoder or another library's version gives other pixels."""
    import torchvision

    from tinkit.host.decoders import identity

    colour = torchvision.__version__.split("+")[0]
    decoder = identity(getattr(views, "decoder", "pillow"), getattr(views, "device", "cpu"))
    return {"decoder": decoder, "colour": f"torchvision {colour}"}


def without_list(identity: dict) -> dict:
    """The identity less the pictures and the numbers of their views: equal for stores whose rows may be exchanged."""
    views = {name: value for name, value in identity["views"].items() if name != "numbers"}
    return {**{name: value for name, value in identity.items() if name != "pictures"}, "views": views}


def contents_of(pictures: Sequence[Picture]) -> np.ndarray:
    """The addresses of the pictures, (N, 32) uint8: 32 bytes a picture and no object."""
    contents_N32 = np.empty((len(pictures), HASH_BYTES), np.uint8)
    for start in range(0, len(pictures), BLOCK):
        stop = min(start + BLOCK, len(pictures))
        block = b"".join(bytes.fromhex(pictures[n].content) for n in range(start, stop))
        contents_N32[start:stop] = np.frombuffer(block, np.uint8).reshape(-1, HASH_BYTES)
    return contents_N32


def sha256_of_contents(contents_N32: np.ndarray) -> str:
    """sha256 of the addresses in hexadecimal, one a line, without a last line's end."""
    digest = hashlib.sha256()
    for start in range(0, len(contents_N32), BLOCK):
        block = np.ascontiguousarray(contents_N32[start : start + BLOCK]).tobytes()
        digest.update((b"\n" if start else b"") + block.hex("\n", HASH_BYTES).encode())
    return digest.hexdigest()
