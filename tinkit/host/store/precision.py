"""Features as they lie on disk: float32, float16, or int8 with a scale for each vector, and what int8 costs.

A vector is a row of the global feature or of the logits, one position of the local ones, one place of a tap. int8 is
symmetric: scale = max|x| / 127 in float32, x is read back as q * scale, so |x - q * scale| <= scale / 2. The scale is
float32 because float16 would save 2 bytes of a vector's 1,284 and lose small vectors; the loss is measured on every
vector that is written, on the device that computed it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from tinkit.host.store.identity import TAP

DTYPES = ("float16", "float32", "int8")
SCALE = ".scale"  # behind an array's name in the name of the array of its scales
LEVELS = 127
TINY = torch.finfo(torch.float32).tiny


def vector_axis(name: str) -> int:
    """The axis along which one vector lies: channels of a tap (B,C,H,W), the last one elsewhere."""
    return 1 if name.startswith(TAP) else -1


def packed(name: str, values: torch.Tensor, dtype: str) -> dict[str, torch.Tensor]:
    """One array of features as the arrays that are stored: itself in the dtype, or int8 and its scales."""
    if dtype != "int8":
        return {name: values.to(getattr(torch, dtype))}
    values = values.float()
    scale = values.abs().amax(vector_axis(name), keepdim=True).div(LEVELS).clamp_min(TINY)
    return {name: (values / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8), name + SCALE: scale}


def unpacked(rows: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype | None) -> torch.Tensor:
    """What was stored as numbers of `dtype` (None: the stored one; float32 for int8)."""
    if scale is not None:
        rows = rows.to(torch.float32).mul_(scale)
    return rows if dtype is None else rows.to(dtype)


@dataclass(frozen=True)
class Loss:
    """What int8 costs: |x - x'| / |x| and the cosine of x and x' over vectors; x the teacher's, x' what is read back."""

    vectors: int
    error_mean: float
    error_worst: float
    cosine_mean: float
    cosine_worst: float

    def __add__(self, other: "Loss") -> "Loss":
        mine, theirs = self.vectors / (self.vectors + other.vectors), other.vectors / (self.vectors + other.vectors)
        return Loss(
            self.vectors + other.vectors,
            self.error_mean * mine + other.error_mean * theirs,
            max(self.error_worst, other.error_worst),
            self.cosine_mean * mine + other.cosine_mean * theirs,
            min(self.cosine_worst, other.cosine_worst),
        )

    def __str__(self):
        return (
            f"relative error {self.error_mean:.4f} (worst {self.error_worst:.4f}), "
            f"cosine {self.cosine_mean:.6f} (worst {self.cosine_worst:.6f})"
        )


def measured_loss(name: str, values: torch.Tensor, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """(5,) float32 on the values' device: the fields of `Loss`. Vectors of zeros, which are kept exactly, count as 0 and 1."""
    axis, values = vector_axis(name), values.float()
    back = unpacked(stored[name], stored[name + SCALE], torch.float32)
    length, own = values.norm(dim=axis), back.norm(dim=axis)
    zero = length == 0
    error = torch.where(zero, 0.0, (values - back).norm(dim=axis) / length.clamp_min(TINY))
    cosine = torch.where(zero, 1.0, (values * back).sum(axis) / (length * own).clamp_min(TINY))
    count = torch.tensor(float(error.numel()), device=values.device)
    return torch.stack([count, error.mean(), error.max(), cosine.mean(), cosine.min()])


def loss_of(measured_5) -> Loss:
    count, *rest = np.asarray(measured_5, np.float64).tolist()
    return Loss(int(count), *rest)
