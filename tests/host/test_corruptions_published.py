"""The corruptions against the packaged re-implementation of the published code, where somebody has installed it (opt-in).

imagecorruptions 1.1.2 (Apache-2.0) does not run with numpy 2 and today's scikit-image as it is; three old names are lent to it
here. It is no dependency of tinkit, not even for development. Its elastic transform is another one than ImageNet-C's, and its
frost is photographs: of these two only what must be alike is compared.
"""

import functools
import warnings

import numpy as np
import pytest
from PIL import Image

from tinkit.host.evaluate.corruptions import NAMES, SEVERITIES, corrupt

pytestmark = pytest.mark.slow
FIXED = {"defocus_blur": 1, "zoom_blur": 1, "brightness": 1, "contrast": 1, "pixelate": 1, "jpeg_compression": 0}
DRAWS = 12


@pytest.fixture(scope="module")
def theirs():
    """corrupt(pixels, name, severity) of the package."""
    pytest.importorskip("cv2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lent = {"float_": np.float64} if not hasattr(np, "float_") else {}
        for name, value in lent.items():
            setattr(np, name, value)
        import sys
        import types

        import scipy.ndimage

        old = types.ModuleType("scipy.ndimage.interpolation")
        old.map_coordinates = scipy.ndimage.map_coordinates
        sys.modules.setdefault("scipy.ndimage.interpolation", old)
        package = pytest.importorskip("imagecorruptions")
        inside = sys.modules["imagecorruptions.corruptions"]
        inside.gaussian = functools.partial(_gaussian, inside.gaussian)
    yield lambda pixels, name, severity: package.corrupt(pixels, corruption_name=name, severity=severity)
    for name in lent:
        delattr(np, name)


def _gaussian(smooth, image, sigma, multichannel=False, **options):
    return smooth(image, sigma=sigma, channel_axis=-1 if multichannel else None, **options)


@pytest.fixture(scope="module")
def photos():
    from skimage import data

    return [
        np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC))
        for picture in (data.astronaut(), data.coffee(), data.chelsea())
    ]


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", FIXED)
def test_without_chance_the_pictures_are_equal(theirs, photos, name, severity):
    """To one grey level: rounding before the cut-off. Their zoom keeps the corner of what grew too far, not the middle."""
    for photo in photos:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs(photo, name, severity).astype(int)
        found = corrupt(photo, name, severity, np.random.default_rng(0)).astype(int)
        apart = np.abs(found - expected)
        if name == "zoom_blur":
            assert apart.mean() < 1
        else:
            assert (apart > FIXED[name]).mean() < 1e-4


def looks(pixels, clean):
    """Mean level, mean change, and how fine it is: of the picture and of the difference at 1 and 8 pixels."""
    change = pixels.astype(float) - clean
    steps = [
        np.abs(np.diff(some[::n, ::n], axis=axis)).mean()
        for some in (pixels.astype(float), change)
        for n in (1, 8)
        for axis in (0, 1)
    ]
    return np.array([pixels.mean(), pixels.std(), np.abs(change).mean(), change.std(), *steps])


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*FIXED, "elastic_transform", "frost")])
def test_by_chance_the_pictures_look_alike(theirs, photos, name, severity):
    """Twelve statistics over twelve draws: ours are from theirs as far as theirs from each other, with room for chance.

    The comparison has teeth: the next severity does not pass it.
    """
    photo = photos[severity % 3]
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.array([looks(theirs(photo, name, severity), photo) for _ in range(DRAWS)])

    def apart(other):
        found = np.array([looks(corrupt(photo, name, other, np.random.default_rng(i)), photo) for i in range(DRAWS)])
        spread = np.sqrt((expected.var(axis=0, ddof=1) + found.var(axis=0, ddof=1)) / DRAWS)
        difference = np.abs(found.mean(axis=0) - expected.mean(axis=0))
        return difference - 0.01 * np.abs(expected.mean(axis=0)) - 4 * spread

    assert (apart(severity) < 0.05).all()
    assert (apart(severity + 1 if severity < 5 else 4) > 0.05).any()


def test_frost_is_about_as_strong(theirs, photos):
    """Mean change over many draws, their five photographs against what is drawn here: within a quarter."""
    np.random.seed(0)
    for severity in (1, 3, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.mean(
                [np.abs(theirs(photos[0], "frost", severity).astype(float) - photos[0]).mean() for _ in range(30)]
            )
        found = np.mean(
            [
                np.abs(corrupt(photos[0], "frost", severity, np.random.default_rng(i)).astype(float) - photos[0]).mean()
                for i in range(30)
            ]
        )
        assert found == pytest.approx(expected, rel=0.25)
