"""The four blurs of ImageNet-C, and two tools that its weather needs too: motion and a zoom that keeps the size.

Written from the published code and description (Hendrycks & Dietterich 2019, arXiv 1903.12261, github.com/hendrycks/robustness,
Apache-2.0); the motion blur from the description of ImageMagick's, which that code calls. Pictures are float32 (H, W, 3), 0 to 1.
"""

from functools import lru_cache
from math import ceil, cos, radians, sin

import numpy as np
from scipy import ndimage, signal

WHOLE = 1e-3  # of a grey level: what rounding errors may take from a number that should be whole


def whole_levels(picture, scale=255.0) -> np.ndarray:
    """uint8 of a picture in 0 to 1: cut off and not rounded, as the published pictures were."""
    return np.clip(picture * scale + WHOLE, 0, 255).astype(np.uint8)


def gaussian(picture_HWC, sigma):
    """A Gaussian of `sigma` pixels over height and width, cut at 4 sigma, the border repeated."""
    return ndimage.gaussian_filter(picture_HWC, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def defocus_blur(picture_HWC, parameters, random):
    """A disc of a radius, its rim softened by a small Gaussian."""
    radius, softness = parameters
    kernel = _disc(radius, softness)
    reach = len(kernel) // 2
    padded = np.pad(picture_HWC, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    return signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


@lru_cache(maxsize=8)
def _disc(radius, softness):
    """(L, L) float32 kernel over -8..8 or -radius..radius; the Gaussian has 3 taps, 5 for a radius above 8.

    Its sum is 1 before the Gaussian. Where the disc touches the border, at radius 8 and 10, mirroring there adds 1 % to it, and
    severity 4 and 5 come out brighter by that; the published code leaves it so.
    """
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    across = np.arange(-reach, reach + 1)
    disc = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float32)
    disc /= disc.sum()
    soft = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * softness**2))
    soft /= soft.sum()
    for axis in (0, 1):
        disc = ndimage.correlate1d(disc, soft, axis, mode="mirror")
    return disc


def glass_blur(picture_HWC, parameters, random):
    """Blurred, pixels thrown about within `reach`, blurred again.

    The published code sets out to swap two pixels, and copies the second over the first, because both are views of one
    array; ImageNet-C is made so, and so is this. The copies are in sequence, bottom right first: each sees those before.
    """
    sigma, reach, rounds = parameters
    levels = whole_levels(gaussian(picture_HWC, sigma))
    height, width = levels.shape[:2]
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    to = (rows[:, None] * width + columns).ravel()
    source = list(range(height * width))
    for _ in range(rounds):
        across, down = random.integers(-reach, reach, size=(2, len(to)))
        for here, there in zip(to.tolist(), (to + down * width + across).tolist()):
            source[here] = source[there]
    thrown = levels.reshape(-1, 3)[source].reshape(levels.shape)
    return gaussian(thrown.astype(np.float32) / 255, sigma)


def motion_blur(picture_HWC, parameters, random):
    """Motion along a direction within 45 degrees of the horizontal."""
    radius, sigma = parameters
    return np.rint(along(picture_HWC, radius, sigma, random.uniform(-45, 45)) * 255) / 255


def along(picture, radius, sigma, degrees):
    """ImageMagick's motion blur of (H, W, ...): one-sided, half a Gaussian over 2 radius + 1 steps of one pixel.

    Steps go to whole pixels, ceil(x - 0.5); the border is repeated.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    height, width = picture.shape[:2]
    reach = len(steps)
    padded = np.pad(picture, ((reach, reach), (reach, reach)) + ((0, 0),) * (picture.ndim - 2), mode="edge")
    blurred = np.zeros_like(picture)
    for step, weight in zip(steps.tolist(), weights.astype(picture.dtype)):
        down = reach + ceil(step * sin(radians(degrees)) - 0.5)
        right = reach + ceil(step * cos(radians(degrees)) - 0.5)
        blurred += weight * padded[down : down + height, right : right + width]
    return blurred


def zoom_blur(picture_HWC, parameters, random):
    """The mean of the picture (twice) and of itself at growing zoom: factors of np.arange(1, end, step)."""
    factors = np.arange(1, *parameters).tolist()
    picture_CHW = np.ascontiguousarray(picture_HWC.transpose(2, 0, 1))
    total = picture_CHW.copy()
    for factor in factors:
        total += zoomed(picture_CHW, factor)
    return total.transpose(1, 2, 0) / np.float32(len(factors) + 1)


def zoomed(picture_CHW, factor):
    """The middle of (..., H, W), enlarged by `factor` with straight lines between pixels, at the old size."""
    height, width = picture_CHW.shape[-2:]
    return _enlarging(height, factor) @ picture_CHW @ _enlarging(width, factor).T


@lru_cache(maxsize=256)
def _enlarging(side, factor):
    """(side, side) float32: each row says how a pixel is mixed of two old ones; the corners of the cut-out stay corners."""
    cut = ceil(side / factor)
    grown = round(cut * factor)
    first = (side - cut) // 2
    where = (np.arange(side) + (grown - side) // 2) * (cut - 1) / max(grown - 1, 1)
    low = np.minimum(where.astype(int), cut - 1)
    high, share = np.minimum(low + 1, cut - 1), where - low
    matrix = np.zeros((side, side), np.float32)
    np.add.at(matrix, (np.arange(side), first + low), 1 - share)
    np.add.at(matrix, (np.arange(side), first + high), share)
    return matrix
