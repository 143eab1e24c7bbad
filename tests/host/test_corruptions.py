"""The standard corruptions against their published description: each step against an independent or a hand-worked result."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tinkit.host.evaluate import blurs, corruptions, weather
from tinkit.host.evaluate.corruptions import CORRUPTIONS, NAMES, SEVERITIES, STEPS, corrupt

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog",
          "elastic_transform")  # fmt: skip


@pytest.fixture(scope="module")
def photo():
    """A photograph, (224, 224, 3) uint8."""
    from skimage import data

    return np.asarray(Image.fromarray(data.astronaut()).resize((224, 224), Image.Resampling.BICUBIC))


def generator(seed=0):
    return np.random.default_rng(seed)


def flat(level, side=128):
    return np.full((side, side, 3), level, np.float32)


def test_there_are_fifteen_in_four_groups_with_five_strengths_each():
    assert list(CORRUPTIONS) == ["noise", "blur", "weather", "digital"]
    assert len(NAMES) == 15 == len(set(NAMES))
    assert set(STEPS) == set(NAMES)
    assert all(len(parameters) == 5 for _, parameters in STEPS.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_alone_decides(photo, name):
    small = photo[40:104, 30:126]  # not square
    before = small.copy()
    for severity in (1, 5):
        first, again, other = (corrupt(small, name, severity, generator(seed)) for seed in (3, 3, 4))
        assert first.dtype == np.uint8
        assert first.shape == small.shape
        assert (first == again).all()
        assert (first != other).any() == (name in RANDOM)
        assert (first != small).any()
    assert (small == before).all()


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "motion_blur", "zoom_blur",
                                  "fog", "brightness", "contrast", "pixelate", "jpeg_compression"])  # fmt: skip
def test_a_higher_severity_takes_more_away(photo, name):
    """The others are not in order in the published parameters either: more of one number, less of another."""
    lost = [
        np.mean([np.abs(corrupt(photo, name, s, generator(i)).astype(float) - photo).mean() for i in range(2)])
        for s in SEVERITIES
    ]
    assert lost == sorted(lost)
    assert lost[4] > lost[0] * 1.2


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_published_strength(severity):
    deviation, photons, share = (STEPS[name][1][severity - 1] for name in CORRUPTIONS["noise"])
    noise = corruptions.gaussian_noise(flat(0.5), deviation, generator()) - 0.5
    assert noise.std() == pytest.approx((0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1], rel=0.02)
    assert abs(noise.mean()) < 0.01
    shot = corruptions.shot_noise(flat(0.25), photons, generator())
    assert shot.mean() == pytest.approx(0.25, rel=0.02)
    assert shot.var() == pytest.approx(0.25 / (60, 25, 12, 5, 3)[severity - 1], rel=0.05)
    hit = corruptions.impulse_noise(flat(0.5), share, generator())
    assert set(np.unique(hit)) == {0, 0.5, 1}
    assert (hit != 0.5).mean() == pytest.approx((0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1], rel=0.05)
    assert (hit == 1).sum() == pytest.approx((hit == 0).sum(), rel=0.1)
    assert ((hit[..., 0] == 1) & (hit[..., 1] == 0.5)).sum() > 0  # single values of single channels


def test_a_point_out_of_focus_is_a_disc():
    point = np.zeros((64, 64, 3), np.float32)
    point[32, 32] = 1
    blurred = blurs.defocus_blur(point, (3, 0.1), generator())[..., 1]
    assert (blurred > 1e-6).sum() == 29  # whole-numbered points within 3 of the middle, counted by hand
    assert blurred[32, 35] == pytest.approx(1 / 29, abs=1e-6)
    assert abs(blurred[34, 35]) < 1e-6
    # A radius of 8 touches the border of its kernel: on each of four sides the column of 7 points counts once more with the
    # Gaussian's outer tap, and that of 1 point once less. 197 points in all.
    tap = np.exp(-2) / (1 + 2 * np.exp(-2))
    sums = {4: 1, 6: 1, 8: 1 + 4 * tap * (7 - 1) / 197, 10: 1.0108}
    for radius in sums:
        disc = blurs.defocus_blur(point, (radius, 0.5), generator())[..., 0]
        assert disc.sum() == pytest.approx(sums[radius], abs=1e-4)
        assert disc[32, 32 + radius - 3] == pytest.approx(disc[32, 32], rel=1e-3)  # flat inside
        assert abs(disc[32, 32 + radius + 2]) < 1e-3 * disc[32, 32]
        assert disc[32, 32] == pytest.approx(1 / (np.pi * radius**2), rel=0.06)


def test_the_border_out_of_focus_is_mirrored(photo):
    picture = photo.astype(np.float32) / 255
    expected = ndimage.convolve(picture[..., 0], blurs._disc(6, 0.5), mode="mirror")
    assert blurs.defocus_blur(picture, (6, 0.5), generator())[..., 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_copies_one_pixel_after_the_other(severity, photo):
    """The published loop, word for word what it does, on a small picture and with the same draws."""
    sigma, reach, rounds = STEPS["glass_blur"][1][severity - 1]
    picture = photo[100:124, 90:120].astype(np.float32) / 255
    soft = ndimage.gaussian_filter(picture.astype(float), (sigma, sigma, 0), mode="nearest")
    levels = np.floor(soft * 255 + 1e-3).astype(np.uint8)
    random = generator(5)
    for _ in range(rounds):
        rows, columns = range(24 - reach, reach, -1), range(30 - reach, reach, -1)
        across, down = random.integers(-reach, reach, size=(2, len(rows) * len(columns)))
        for number, (row, column) in enumerate((row, column) for row in rows for column in columns):
            levels[row, column] = levels[row + down[number], column + across[number]]
    expected = ndimage.gaussian_filter(levels / 255, (sigma, sigma, 0), mode="nearest")
    found = blurs.glass_blur(picture, (sigma, reach, rounds), generator(5))
    assert found == pytest.approx(expected, abs=1.5 / 255 / 2)
    swapped = np.abs(found - ndimage.gaussian_filter(soft, (sigma, sigma, 0), mode="nearest")).max()
    assert swapped > 0.02  # and the throwing is no trifle


def test_motion_draws_a_point_out_to_one_side():
    point = np.zeros((41, 41), np.float32)
    point[20, 20] = 1
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3.0**2))
    weights /= weights.sum()
    level = blurs.along(point, 10, 3, 0)
    assert level[20, 20 : 20 - 11 : -1] == pytest.approx(weights[:11], abs=1e-6)
    assert level.sum() == pytest.approx(1, abs=1e-5)
    assert level[:, 21:].max() == 0
    upright = blurs.along(point, 10, 3, -90)
    assert upright[20 : 20 + 11, 20] == pytest.approx(weights[:11], abs=1e-6)
    # at 30 degrees step 3 goes ceil(1.5 - 0.5) = 1 down and ceil(2.598 - 0.5) = 3 to the right
    slanted = blurs.along(point, 10, 3, 30)
    assert slanted[20 - 1, 20 - 3] == pytest.approx(weights[3], abs=1e-6)


def test_motion_stays_within_45_degrees_and_repeats_the_border():
    wide = np.zeros((81, 81, 3), np.float32)
    wide[40, 40] = 1
    for seed in range(20):
        down, across = np.nonzero(blurs.motion_blur(wide, (20, 15), generator(seed))[..., 0])
        assert np.ptp(across) >= np.ptp(down) - 1
    assert blurs.motion_blur(flat(0.6), (20, 15), generator()) == pytest.approx(flat(0.6), abs=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_zoom_is_the_mean_of_scipys_zooms(photo, severity):
    picture = photo[::2, ::2].astype(np.float32) / 255
    factors = np.arange(1, *STEPS["zoom_blur"][1][severity - 1])
    total = picture.copy()
    for factor in factors:
        cut = int(np.ceil(112 / factor))
        top = (112 - cut) // 2
        grown = ndimage.zoom(picture[top : top + cut, top : top + cut], (factor, factor, 1), order=1)
        trim = (grown.shape[0] - 112) // 2
        total += grown[trim : trim + 112, trim : trim + 112]
    found = blurs.zoom_blur(picture, STEPS["zoom_blur"][1][severity - 1], generator())
    assert found == pytest.approx(total / (len(factors) + 1), abs=1e-4)
    assert len(factors) == (12, 16, 11, 13, 11)[severity - 1]


def test_plasma_by_hand_on_four_by_four():
    """Every point of two steps written out, with the same draws."""
    random, w = generator(7), 100.0
    draws = [random.uniform(-w, w, (1, 1)) for _ in range(3)]
    h = np.zeros((4, 4))
    h[2, 2] = 0 + w * draws[0][0, 0]
    h[0, 2] = (h[0, 0] * 2 + h[2, 2] * 2) / 4 + w * draws[1][0, 0]
    h[2, 0] = (h[0, 0] * 2 + h[2, 2] * 2) / 4 + w * draws[2][0, 0]
    w /= 1.5
    draws = [random.uniform(-w, w, (2, 2)) for _ in range(3)]
    for i, j in np.ndindex(2, 2):
        r, c = 2 * i, 2 * j
        h[r + 1, c + 1] = (
            h[r, c] + h[r, (c + 2) % 4] + h[(r + 2) % 4, c] + h[(r + 2) % 4, (c + 2) % 4]
        ) / 4 + w * draws[0][i, j]
    for i, j in np.ndindex(2, 2):
        r, c = 2 * i, 2 * j
        h[r, c + 1] = (h[r, c] + h[r, (c + 2) % 4] + h[r + 1, c + 1] + h[(r - 1) % 4, c + 1]) / 4 + w * draws[1][i, j]
        h[r + 1, c] = (h[r, c] + h[r, (c + 2) % 4] + h[r + 1, c + 1] + h[r + 1, (c - 1) % 4]) / 4 + w * draws[2][i, j]
    expected = (h - h.min()) / (h.max() - h.min())
    assert weather.plasma(4, 1.5, generator(7)) == pytest.approx(expected, abs=1e-6)


def test_fog_adds_its_layer_and_scales():
    layer = weather.plasma(64, 2, generator(1))[..., None]
    assert layer.min() == 0
    assert layer.max() == 1
    picture = flat(0.4, 64)
    picture[0, 0] = 0.8
    expected = (picture + 1.5 * layer) * 0.8 / (0.8 + 1.5)
    assert weather.fog(picture, (1.5, 2), generator(1)) == pytest.approx(expected, abs=1e-6)
    assert (weather.fog(flat(0, 32), (1.5, 2), generator()) == 0).all()


def test_snow_falls_steeply_and_whitens():
    black = np.zeros((224, 224, 3), np.float32)
    fallen = weather.snow(black, (0.1, 0.3, 3, 0.5, 10, 4, 0.8), generator(2))
    flakes = fallen - 0.2 * 0.5  # what whitening leaves of black: (1 - keep) * (0 * 1.5 + 0.5)
    assert flakes.min() == pytest.approx(0, abs=1e-6)
    assert flakes.max() > 0.3
    assert flakes == pytest.approx(np.rot90(flakes, 2), abs=1e-6)  # as they are and turned
    assert (flakes[..., 0] == flakes[..., 2]).all()
    slopes = [np.abs(np.diff(flakes[..., 0], axis=axis)).mean() for axis in (0, 1)]
    assert slopes[0] < slopes[1]  # streaks run down
    red = np.zeros((64, 64, 3), np.float32)
    red[..., 0] = 1
    white = 0.7 * red + 0.3 * np.maximum(red, 0.299 * 1.5 + 0.5)
    assert weather.snow(red, (-9, 0.1, 2, 0.5, 12, 4, 0.7), generator()) == pytest.approx(white, abs=1e-6)


def test_frost_has_the_colours_and_the_contrast_of_the_photographs():
    drawn = np.stack(
        [weather.frost(np.zeros((224, 224, 3), np.float32), (1, 1), generator(seed)) for seed in range(60)]
    )
    colours = drawn.mean(axis=(1, 2)) * 255
    for colour, _ in weather.FROSTS:
        assert np.abs(colours - colour).max(axis=1).min() < 4
    assert (colours[:, 2] > colours[:, 0]).all()  # bluish, each
    contrast = drawn.std(axis=(1, 2)).mean() * 255
    assert contrast == pytest.approx(np.mean([deviation for _, deviation in weather.FROSTS]), abs=5)


def test_frost_is_as_fine_as_the_photographs():
    """Mean step at 1, 4 and 16 pixels over the standard deviation: 0.40, 0.61 and 0.74 on the five photographs."""
    layers = [weather.crystals((224, 224), generator(seed)) for seed in range(6)]
    steps = [np.mean([np.abs(np.diff(layer[::n, ::n], axis=1)).mean() for layer in layers]) for n in (1, 4, 16)]
    assert np.allclose([layer.std() for layer in layers], 1, atol=1e-3)
    assert steps == pytest.approx([0.40, 0.61, 0.74], abs=0.15)


def test_frost_weighs_picture_and_layer():
    layer = weather.frost(flat(0, 64), (1, 1), generator(3))
    assert weather.frost(flat(0.5, 64), (0.6, 0.75), generator(3)) == pytest.approx(0.6 * 0.5 + 0.75 * layer, abs=1e-5)


@pytest.mark.parametrize("add", [0.1, 0.5])
def test_brightness_is_the_value_of_hsv(photo, add):
    some = photo[::37, ::29].reshape(-1, 3).astype(float) / 255
    some = np.vstack([some, [[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0.004]]])
    expected = [colorsys.hsv_to_rgb(h, s, min(v + add, 1)) for h, s, v in (colorsys.rgb_to_hsv(*rgb) for rgb in some)]
    found = weather.brightness(some[None].astype(np.float32), add, generator())[0]
    assert found == pytest.approx(np.array(expected), abs=1e-5)


def test_contrast_by_hand():
    picture = np.zeros((16, 16, 3), np.float32)
    picture[:8, :, 0], picture[..., 1] = 1, 0.5  # red: half 1, half 0, mean 0.5
    found = corruptions.contrast(picture, 0.4, generator())
    assert found[0, 0] == pytest.approx([0.7, 0.5, 0])
    assert found[15, 0] == pytest.approx([0.3, 0.5, 0])


@pytest.mark.parametrize("sigma", [244 * 0.7, 244 * 0.08, 244 * 0.01])
def test_the_wide_gaussian_is_scipys(sigma):
    field = generator().uniform(-1, 1, (96, 64))
    expected = ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
    assert corruptions.smoothed(field, sigma) == pytest.approx(expected, abs=1e-9)


def test_the_affine_map_takes_the_three_points_where_they_jump():
    class Drawn:
        def uniform(self, low, high, shape):
            assert (low, high, shape) == (-24.4, 24.4, (3, 2))
            return np.array([[3.0, -2], [0, 5], [-7, 1]])

    matrix, offset = corruptions._affine((224, 200), 24.4, Drawn())
    before = np.array([[112 + 66, 100 + 66], [112 - 66, 100 + 66], [112 - 66, 100 - 66]])
    after = before + Drawn().uniform(-24.4, 24.4, (3, 2))
    assert after @ matrix.T + offset == pytest.approx(before)


def test_elastic_moves_what_lies_where_it_says(photo):
    picture = photo.astype(np.float32) / 255
    assert corruptions.elastic_transform(picture, (0, 2.44, 0), generator()) == pytest.approx(picture, abs=1e-5)

    ramp = np.repeat(np.arange(224, dtype=np.float32)[:, None, None] / 255, 224, axis=1).repeat(3, axis=2)
    bent = corruptions.elastic_transform(ramp, (244 * 0.12, 2.44, 0), generator(1))
    random = generator(1)
    random.uniform(0, 0, (3, 2))
    shift = 244 * 0.12 * ndimage.gaussian_filter(random.uniform(-1, 1, (224, 224)), 2.44, mode="reflect", truncate=3)
    inside = np.s_[20:-20, 20:-20]
    assert (bent[..., 0] * 255)[inside] == pytest.approx((ramp[..., 0] * 255 + shift)[inside], abs=1e-3)


def test_pixelate_makes_blocks_of_their_mean(photo):
    found = corrupt(photo, "pixelate", 5, generator()).astype(float)
    blocks = photo.reshape(56, 4, 56, 4, 3).mean(axis=(1, 3))
    assert np.abs(found[::4, ::4] - blocks).max() <= 1
    assert (found.reshape(56, 4, 56, 4, 3) == found[::4, ::4].reshape(56, 1, 56, 1, 3)).all()


@pytest.mark.parametrize(("severity", "quality"), list(zip(SEVERITIES, (25, 18, 15, 10, 7))))
def test_jpeg_has_its_quality(photo, severity, quality):
    """A JPEG written again with the same tables loses next to nothing; with finer ones it would not show the same picture."""
    found = corrupt(photo, "jpeg_compression", severity, generator())
    lost = {}
    for other in (quality - 2, quality, quality + 2):
        written = io.BytesIO()
        Image.fromarray(photo).save(written, "JPEG", quality=other)
        lost[other] = np.abs(np.asarray(Image.open(written)).astype(float) - found).mean()
    assert lost[quality] == 0 < min(lost[quality - 2], lost[quality + 2])


def test_levels_are_cut_off_and_whole_ones_stay():
    assert blurs.whole_levels(np.array([99.999999, 100.7, -3, 300]) / 255).tolist() == [100, 100, 0, 255]
    grey = np.full((224, 224, 3), 100, np.uint8)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate"):
        assert (corrupt(grey, name, 3, generator()) == 100).all(), name


@pytest.mark.parametrize(
    ("pixels", "name", "severity"),
    [
        (np.zeros((224, 224, 3), np.float32), "fog", 1),
        (np.zeros((224, 224), np.uint8), "fog", 1),
        (np.zeros((15, 224, 3), np.uint8), "fog", 1),
        (np.zeros((224, 224, 3), np.uint8), "rain", 1),
        (np.zeros((224, 224, 3), np.uint8), "fog", 0),
        (np.zeros((224, 224, 3), np.uint8), "fog", 6),
    ],
)
def test_what_is_no_picture_and_no_corruption_is_refused(pixels, name, severity):
    with pytest.raises(ValueError, match=r"a picture is|no corruption"):
        corrupt(pixels, name, severity, generator())
