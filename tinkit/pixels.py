"""What happens to pixels between a picture and a network, in numpy alone: the same code on workstation and board.

A `Preprocessing` is written into the manifest; whoever embeds the model elsewhere can follow it to the letter:
take the centred square of `crop_pct` times the short side, resample it to `size` with Pillow's antialiased
`interpolation`, divide by 255, subtract `mean`, divide by `std`, channels first.
"""

from dataclasses import asdict, dataclass
from typing import Tuple

import numpy as np


@dataclass(frozen=True)
class Preprocessing:
    """size in pixels (square); mean and std of RGB in 0..1; crop_pct is a share of the short side, 0 < crop_pct <= 1."""

    size: int
    mean: Tuple[float, float, float]
    std: Tuple[float, float, float]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"

    def to_json(self):
        return dict(asdict(self), mean=list(self.mean), std=list(self.std), crop="centre square", colour="RGB")

    @classmethod
    def from_json(cls, value):
        return cls(
            size=int(value["size"]),
            mean=tuple(value["mean"]),
            std=tuple(value["std"]),
            crop_pct=float(value["crop_pct"]),
            interpolation=str(value["interpolation"]),
        )


def centre_box(width, height, crop_pct):
    """The centred square as (left, top, right, bottom) in floating-point pixels."""
    side = min(width, height) * crop_pct
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def normalise(pixels_BHWC, preprocessing):
    """uint8 BHWC -> float32 BCHW, contiguous, ready for the network."""
    mean = np.asarray(preprocessing.mean, np.float32) * 255
    std = np.asarray(preprocessing.std, np.float32) * 255
    normal = (pixels_BHWC.astype(np.float32) - mean) / std
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))
