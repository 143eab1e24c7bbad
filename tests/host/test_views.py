"""A view is a pure function of (picture, seed), and teacher and student see the same part of the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from tinkit.errors import TinkitError
from tinkit.host.images import Picture
from tinkit.host.views import (
    EVALUATION,
    AllViews,
    ViewPolicy,
    Views,
    collate,
    draw,
    normalise_on_device,
    refuse_broken,
    render,
)
from tinkit.pixels import Preprocessing, centre_box, normalise

CONTENT = "ab" * 32
SMALL = Preprocessing(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
LARGE = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def picture(tmp_path):
    rows = np.linspace(0, 255, 60)[:, None, None]
    columns = np.linspace(0, 255, 90)[None, :, None]
    pixels = np.concatenate([rows + 0 * columns, 0 * rows + columns, (rows + columns) / 2], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    return Picture(str(tmp_path / "a.png"), "a.png", CONTENT)


def test_drawn_twice_is_equal_and_other_addresses_differ():
    policy = ViewPolicy(seed=3)
    one = draw(policy, CONTENT, 0, 1.5)
    assert one == draw(policy, CONTENT, 0, 1.5)
    others = [draw(policy, CONTENT, 1, 1.5), draw(policy, "cd" * 32, 0, 1.5), draw(ViewPolicy(seed=4), CONTENT, 0, 1.5)]
    assert all(other != one for other in others)


def test_boxes_stay_inside_and_keep_their_area():
    policy = ViewPolicy()
    for number in range(200):
        view = draw(policy, CONTENT, number, 1.5)
        assert 0 <= view.left <= view.left + view.width <= 1 + 1e-9
        assert 0 <= view.top <= view.top + view.height <= 1 + 1e-9
        assert view.width * view.height <= policy.scale_max + 1e-9
        assert 0.9 <= view.brightness <= 1.1


def test_pixels_replay_to_the_bit(picture):
    views = Views([picture], ViewPolicy(), [SMALL, LARGE], 0.9)
    first, again = views[(0, 1)], views[(0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert first[1:] == (0, 1)
    stacked = AllViews([picture], ViewPolicy(), [LARGE], 0.9, numbers=[0, 1])[0]
    assert torch.equal(stacked[1], first[0][1])


def test_both_sizes_show_the_same_part(picture):
    (small, large), _, _ = Views([picture], ViewPolicy(), [SMALL, LARGE], 0.9)[(0, 0)]
    shrunk = torch.nn.functional.avg_pool2d(large.float()[None], 2)[0]
    assert (shrunk - small.float()).abs().mean() < 3


def test_a_flip_is_a_mirror(picture):
    from dataclasses import replace

    image = Image.open(picture.path)
    view = draw(ViewPolicy(), CONTENT, 0, 1.5)
    plain = render(image, replace(view, flip=False), 16, "bicubic")
    assert torch.equal(render(image, replace(view, flip=True), 16, "bicubic"), plain.flip(2))


def test_evaluation_view_is_the_deployed_preprocessing(picture):
    from tinkit.device.pictures import network_pixels

    (pixels,), _, _ = Views([picture], ViewPolicy(), [SMALL], SMALL.crop_pct)[(0, EVALUATION)]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), network_pixels(picture.path, SMALL))
    assert centre_box(90, 60, 1.0) == (15, 0, 75, 60)


def test_normalisation_on_the_device_is_the_board_s():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    ours = normalise_on_device(pixels, SMALL)
    theirs = normalise(pixels.permute(0, 2, 3, 1).numpy(), SMALL)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=2e-6)


def test_a_picture_that_vanishes_is_named(picture):
    import os

    views = Views([picture], ViewPolicy(), [SMALL], 0.9)
    os.unlink(picture.path)
    with pytest.raises(TinkitError, match=r"a\.png"):
        refuse_broken(collate([views[(0, 0)]]))
