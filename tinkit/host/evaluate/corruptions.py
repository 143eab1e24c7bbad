"""The 15 standard corruptions of ImageNet-C at five severities, with their published parameters for 224 pixels.

Hendrycks & Dietterich 2019, arXiv 1903.12261; parameters and order of steps from github.com/hendrycks/robustness (Apache-2.0).
The one packaged re-implementation (imagecorruptions 1.1.2) does not run with numpy 2, needs OpenCV, draws from numpy's global
state and has another elastic transform; so these are tinkit's own. They differ from the published pictures in three things:
the frost is drawn (tinkit.host.evaluate.weather), no JPEG of quality 85 is laid over the result, and the random numbers are
others. Lengths are in pixels: at another size than 224 a corruption is another one; corrupt at 224 and resample after.
"""

import io

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from tinkit.host.evaluate.blurs import defocus_blur, glass_blur, motion_blur, whole_levels, zoom_blur
from tinkit.host.evaluate.weather import brightness, fog, frost, snow

SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 224  # what the parameters are for
MIN_SIDE = 16
CORRUPTIONS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
NAMES = tuple(name for names in CORRUPTIONS.values() for name in names)


def corrupt(pixels_HWC, name, severity, random: np.random.Generator) -> np.ndarray:
    """A corrupted copy of one picture, uint8 (H, W, 3), at least 16 pixels a side; the same for the same generator state.

    name: one of `NAMES`. severity: 1 (weak) to 5. ValueError for anything else.
    """
    pixels = np.asarray(pixels_HWC)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < MIN_SIDE:
        raise ValueError(
            f"a picture is uint8 (H, W, 3) of at least {MIN_SIDE} pixels a side, not {pixels.dtype} {pixels.shape}"
        )
    if name not in STEPS or severity not in SEVERITIES:
        raise ValueError(f"no corruption {name!r} of severity {severity!r}")
    step, parameters = STEPS[name]
    return whole_levels(step(pixels.astype(np.float32) / 255, parameters[severity - 1], random))


def gaussian_noise(picture_HWC, deviation, random):
    """Normal noise, its own for every value."""
    return picture_HWC + np.float32(deviation) * random.standard_normal(picture_HWC.shape, np.float32)


def shot_noise(picture_HWC, photons, random):
    """Poisson noise: `photons` is the count that white stands for."""
    return random.poisson(picture_HWC * photons) / photons


def impulse_noise(picture_HWC, share, random):
    """Salt and pepper, as much of each, on single values of single channels."""
    hit = random.random(picture_HWC.shape, np.float32) < share
    salt = random.random(picture_HWC.shape, np.float32) > 0.5
    return np.where(hit, salt, picture_HWC)


def contrast(picture_HWC, keep, random):
    """Each channel drawn towards its mean."""
    mean = picture_HWC.mean(axis=(0, 1), keepdims=True, dtype=np.float64)
    return (picture_HWC - mean) * keep + mean


def elastic_transform(picture_HWC, parameters, random):
    """A random affine map (three points moved by up to `jump` pixels), then a smooth field of shifts of `strength`."""
    strength, sigma, jump = parameters
    matrix, offset = _affine(picture_HWC.shape[:2], jump, random)
    shifts = [strength * smoothed(random.uniform(-1, 1, picture_HWC.shape[:2]), sigma) for _ in range(2)]
    where = np.indices(picture_HWC.shape[:2]) + shifts
    bent = np.empty_like(picture_HWC)
    for channel in range(3):
        turned = ndimage.affine_transform(picture_HWC[..., channel], matrix, offset, order=1, mode="mirror")
        bent[..., channel] = ndimage.map_coordinates(turned, where, order=1, mode="reflect")
    return bent


def _affine(shape, jump, random):
    """(matrix, offset), output to input in (row, column): three points about the middle move by up to `jump` each way."""
    middle, reach = np.array(shape) // 2, min(shape) // 3
    before = middle + reach * np.array([[1, 1], [-1, 1], [-1, -1]])
    after = before + random.uniform(-jump, jump, (3, 2))
    solved = np.linalg.solve(np.hstack([after, np.ones((3, 1))]), before)
    return solved[:2].T, solved[2]


def smoothed(field_HW, sigma):
    """A Gaussian cut at 3 sigma, the border mirrored: by cosine transform, since sigma may be as wide as the picture."""
    steps = np.arange(int(3 * sigma + 0.5) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2)) * np.where(steps > 0, 2, 1)
    weights /= weights.sum()
    found = fft.dctn(field_HW, norm="ortho")
    for axis, side in enumerate(field_HW.shape):
        passed = np.cos(np.pi * np.arange(side)[:, None] * steps / side) @ weights
        found *= passed[:, None] if axis == 0 else passed
    return fft.idctn(found, norm="ortho")


def pixelate(picture_HWC, share, random):
    """Shrunk to `share` of its sides and enlarged again, both by the mean of boxes."""
    height, width = picture_HWC.shape[:2]
    small = _image(picture_HWC).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX), np.float32) / 255


def jpeg_compression(picture_HWC, quality, random):
    """Written and read as JPEG of a quality of Pillow's scale."""
    written = io.BytesIO()
    _image(picture_HWC).save(written, "JPEG", quality=quality)
    return np.asarray(Image.open(written), np.float32) / 255


def _image(picture_HWC):
    return Image.fromarray(whole_levels(picture_HWC))


# name -> the step and its parameters, severity 1 to 5. The elastic transform counts in 244 pixels, as the published code does.
STEPS = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": (glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": (motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": (
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": (fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (
        elastic_transform,
        (
            (244 * 2, 244 * 0.7, 244 * 0.1),
            (244 * 2, 244 * 0.08, 244 * 0.2),
            (244 * 0.05, 244 * 0.01, 244 * 0.02),
            (244 * 0.07, 244 * 0.01, 244 * 0.02),
            (244 * 0.12, 244 * 0.01, 244 * 0.02),
        ),
    ),
    "pixelate": (pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (jpeg_compression, (25, 18, 15, 10, 7)),
}
