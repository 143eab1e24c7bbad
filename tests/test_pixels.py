"""Preprocessing: the centred square, and normalisation with the numbers that the manifest carries."""

import json

import numpy as np
import pytest

from tinkit.pixels import Preprocessing, centre_box, normalise

IMAGENET = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_json_round_trip_through_text():
    assert Preprocessing.from_json(json.loads(json.dumps(IMAGENET.to_json()))) == IMAGENET


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (1, 1), (33, 33)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_centre_box_is_a_centred_square_inside_the_picture(size, crop_pct):
    left, top, right, bottom = centre_box(*size, crop_pct)
    assert right - left == pytest.approx(min(size) * crop_pct)
    assert bottom - top == pytest.approx(min(size) * crop_pct)
    assert (left + right, top + bottom) == pytest.approx(size)
    assert left >= 0
    assert top >= 0


def test_centre_box_by_hand():
    assert centre_box(200, 100, 0.5) == (75.0, 25.0, 125.0, 75.0)


def test_normalise_by_hand():
    pixels = np.array([[[[0, 255, 128]]]], np.uint8)  # one pixel: red 0, green 255, blue 128
    seen = normalise(pixels, Preprocessing(1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.25)))
    assert seen.shape == (1, 3, 1, 1)
    np.testing.assert_allclose(seen[0, :, 0, 0], [-1, 1, (128 / 255 - 0.5) / 0.25], atol=1e-6)


def test_normalise_keeps_channels_and_positions_and_is_ready_for_a_network():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    seen = normalise(pixels, IMAGENET)
    assert seen.dtype == np.float32
    assert seen.flags.c_contiguous
    back = (seen.transpose(0, 2, 3, 1) * np.float32(IMAGENET.std) + np.float32(IMAGENET.mean)) * 255
    np.testing.assert_array_equal(back.round().astype(np.uint8), pixels)
