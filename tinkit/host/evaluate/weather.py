"""The weather of ImageNet-C: snow, frost, fog and brightness.

Written from the published code and description (Hendrycks & Dietterich 2019, arXiv 1903.12261, github.com/hendrycks/robustness,
Apache-2.0), but for the frost: that one lays photographs of frost over the picture, and tinkit carries none. Its frost is drawn:
needles of noise in a few directions, with the colours and the contrast of those photographs and the published weights.
Numbers under frost are therefore comparable between networks, and not with those published. Pictures: float32 (H, W, 3), 0 to 1.
"""

import numpy as np

from tinkit.host.evaluate.blurs import along, gaussian, whole_levels, zoomed

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601
# Mean and standard deviation of red, green and blue, 0 to 255, of the five photographs that are drawn from (two are the same).
FROSTS = (
    ((78, 149, 166), (27, 17, 15)),
    ((201, 205, 215), (21, 22, 23)),
    ((201, 205, 215), (21, 22, 23)),
    ((138, 153, 165), (29, 29, 30)),
    ((112, 123, 135), (44, 43, 42)),
)
NEEDLES, SHARPNESS = 6, 0.8  # directions; pixels


def snow(picture_HWC, parameters, random):
    """Flakes: thresholded noise, enlarged, moved; laid over the whitened picture as they are and turned by 180 degrees."""
    mean, deviation, zoom, threshold, radius, sigma, keep = parameters
    noise = random.normal(mean, deviation, picture_HWC.shape[:2]).astype(np.float32)
    flakes = zoomed(noise, zoom)
    flakes = np.where(flakes < threshold, np.float32(0), np.clip(flakes, 0, 1))
    flakes = whole_levels(flakes).astype(np.float32) / 255
    flakes = np.rint(along(flakes, radius, sigma, random.uniform(-135, -45)) * 255)[..., None] / 255
    white = np.maximum(picture_HWC, (picture_HWC @ GREY)[..., None] * 1.5 + 0.5)
    return keep * picture_HWC + (1 - keep) * white + flakes + np.rot90(flakes, 2)


def frost(picture_HWC, parameters, random):
    """Weighted sum of the picture and a layer of drawn frost."""
    keep, ice = parameters
    colour, contrast = (np.array(entry, np.float32) / 255 for entry in FROSTS[random.integers(len(FROSTS))])
    layer = np.clip(colour + contrast * crystals(picture_HWC.shape[:2], random)[..., None], 0, 1)
    return keep * picture_HWC + ice * layer


def crystals(shape, random):
    """(H, W) float32 of mean 0 and standard deviation 1: half of the variance needles, half a cloud under them.

    Needles are noise moved along six directions, the strongest at each pixel. Chosen so that neighbours at 1, 4 and 16 pixels
    differ by about as much, in standard deviations, as in those photographs (0.4, 0.6 and 0.75).
    """
    turn = random.uniform(0, 180 / NEEDLES)
    moved = [along(random.standard_normal(shape, np.float32), 12, 7, turn + 180 / NEEDLES * n) for n in range(NEEDLES)]
    needles = gaussian(np.max(moved, axis=0)[..., None], SHARPNESS)[..., 0]
    cloud = plasma(_side(shape), 1.6, random)[: shape[0], : shape[1]]
    return _standard(_standard(needles) + _standard(cloud))


def _standard(layer):
    return (layer - layer.mean()) / max(float(layer.std()), 1e-6)


def _side(shape):
    """The power of two that covers a picture."""
    return 1 << (max(shape) - 1).bit_length()


def fog(picture_HWC, parameters, random):
    """A layer of plasma added, then the whole scaled so that the brightest value could stay."""
    thickness, decay = parameters
    height, width = picture_HWC.shape[:2]
    layer = plasma(_side((height, width)), decay, random)[:height, :width, None]
    brightest = float(picture_HWC.max())
    return (picture_HWC + thickness * layer) * (brightest / (brightest + thickness))


def plasma(size, decay, random):
    """(size, size) float32 in 0 to 1 by diamond and square, the borders joined; `size` is a power of two.

    Every step halves the distance of the points and divides the swing of the noise by decay ** 2. The points between two
    rows take their two known neighbours from one row, as the published code does.
    """
    heights = np.zeros((size, size))
    step, swing = size, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        beside = corners + np.roll(corners, -1, axis=1)
        centres = _near((beside + np.roll(beside, -1, axis=0)) / 4, swing, random)
        heights[half::step, half::step] = centres
        heights[::step, half::step] = _near((beside + centres + np.roll(centres, 1, axis=0)) / 4, swing, random)
        heights[half::step, ::step] = _near((beside + centres + np.roll(centres, 1, axis=1)) / 4, swing, random)
        step, swing = half, swing / decay
    heights -= heights.min()
    return (heights / heights.max()).astype(np.float32)


def _near(values, swing, random):
    return values + swing * random.uniform(-swing, swing, values.shape)


def brightness(picture_HWC, parameters, random):
    """`parameters` added to the value of hue, saturation and value: with these kept, colours grow by new / old value."""
    value = picture_HWC.max(axis=2, keepdims=True)
    brighter = np.minimum(value + np.float32(parameters), 1)
    return np.where(value > 0, picture_HWC * (brighter / np.maximum(value, 1e-6)), brighter)
