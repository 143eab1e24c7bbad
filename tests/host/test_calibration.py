"""Histograms that grow and forget the tensors; three ways to read a range from them."""

import tracemalloc

import numpy as np
import pytest
from int8_parts import Net, pictures, run, small_cnn

from tinkit.errors import TinkitError
from tinkit.host.export import calibration
from tinkit.host.export.calibration import BINS, CALIBRATIONS, calibrate, entropy_limit

FEW = calibration.FEW * BINS


def histogram(*parts):
    one = calibration._Histogram()
    for values in parts:
        one.add(values, "tensor")
    return one


def two_nodes():
    """image -> Conv -> Relu, with a fixed weight."""
    net = Net(3)
    return net.model({"embedding": (net.add("Relu", "act", net.conv("conv", "image", (3, 4), 3)), [None] * 4)})


def test_minmax_is_all_that_was_seen():
    images = pictures(10)
    ranges = calibrate(two_nodes(), [{"image": images[:3]}, {"image": images[3:]}]).ranges("minmax")
    seen = run(two_nodes(), images, names=["embedding"])["embedding"]
    assert ranges["embedding"] == (0.0, seen.max())
    assert ranges["image"] == (images.min(), images.max())
    assert set(ranges) == {"image", "conv.out", "embedding"}  # not the weight, not the bias


@pytest.mark.parametrize("how", CALIBRATIONS)
def test_pictures_one_by_one_or_together_give_the_same_ranges(how):
    images = pictures(9)
    together = calibrate(two_nodes(), [{"image": images}])
    alone = calibrate(two_nodes(), ({"image": image[None]} for image in images))
    assert together.pictures == alone.pictures == 9
    for name, ends in together.ranges(how).items():
        # the width of a bin comes from the first batch, and the entropy search sees bins
        np.testing.assert_allclose(alone.ranges(how)[name], ends, rtol=0.1 if how == "entropy" else 0.01)


def test_feeds_are_cut_into_small_batches_unless_the_batch_is_fixed():
    model, sizes = two_nodes(), []
    for dim in (None, 9):
        if dim:
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = dim
        sizes.append([len(part["image"]) for part in calibration._parts(model, {"image": pictures(9)})])
    assert sizes == [[4, 4, 1], [9]]


def test_a_histogram_that_grew_counts_every_value_in_its_place():
    small, large = np.linspace(-0.1, 0.3, 5000), np.linspace(-7, 40, 777)
    one = histogram(small, large)
    values = np.concatenate([small, large]).astype(np.float32)
    edges = np.arange(BINS + 1) * one.width
    for side, part in enumerate((-values[values < 0], values[values >= 0])):
        misplaced = np.cumsum(one.sides[side]) - np.cumsum(np.histogram(part, edges)[0])
        assert one.sides[side].sum() == len(part)
        assert np.abs(misplaced).max() <= 1  # a value on an edge may fall on either side
    assert BINS // 2 * one.width <= 40 <= BINS * one.width


def test_percentiles_are_those_of_the_values_to_a_bin():
    random = np.random.default_rng(0)
    both, positive = random.normal(0, 1, 200_000) ** 3, random.exponential(1, 200_000)
    low, high = histogram(*np.split(both, 4)).range("percentile")
    bin_width = 2 * np.abs(both).max() / BINS
    assert low == pytest.approx(np.percentile(both, 0.01), abs=2 * bin_width)
    assert high == pytest.approx(np.percentile(both, 99.99), abs=2 * bin_width)
    assert high < 0.7 * both.max()  # the tail is off
    low, high = histogram(positive).range("percentile")
    assert low == 0.0
    assert high == pytest.approx(np.percentile(positive, 99.99), rel=0.02)


def test_percentile_cuts_a_side_off_that_hardly_has_values():
    values = np.append(np.linspace(0, 1, 100_000), [-50.0])
    assert histogram(values).range("percentile") == (0.0, pytest.approx(1.0, abs=0.05))
    assert histogram(values).range("minmax")[0] == -50.0


def test_entropy_clips_a_long_tail():
    random = np.random.default_rng(0)
    values = np.append(np.abs(random.normal(0, 1, 200_000)), random.uniform(10, 100, 20))
    low, high = histogram(values).range("entropy")
    assert low == 0.0
    assert 2 < high < 10  # min-max would spend nine tenths of the levels on twenty values
    assert histogram(values).range("minmax")[1] > 90
    low, high = histogram(values * random.choice([-1, 1], len(values))).range("entropy")
    assert low == -high
    assert 2 < high < 10


def test_entropy_keeps_a_uniform_tensor():
    values = np.random.default_rng(0).uniform(-3, 3, 200_000)
    low, high = histogram(values).range("entropy")
    assert high > 0.97 * 3
    assert low < -0.97 * 3


def test_entropy_never_goes_beyond_what_was_seen():
    values = np.random.default_rng(0).uniform(-0.375, 4, 200_000)  # as behind a HardSwish
    low, high = histogram(values).range("entropy")
    assert low == pytest.approx(-0.375, abs=1e-3)
    assert 3.8 < high <= 4


def test_as_many_bins_as_levels_leave_nothing_to_search():
    """Why onnxruntime's own entropy calibration is min-max: it merges 128 bins into 128 levels."""
    random = np.random.default_rng(0)
    values = np.append(np.abs(random.normal(0, 1, 200_000)), random.uniform(10, 50, 20))
    assert entropy_limit(np.histogram(values, calibration.LEVELS)[0]) == calibration.LEVELS
    assert entropy_limit(np.histogram(values, BINS)[0]) < BINS / 3


def test_entropy_is_not_led_by_exact_zeros():
    values = np.random.default_rng(0).uniform(0, 3, 100_000)
    zeros = np.zeros(900_000)
    assert histogram(values, zeros).range("entropy") == histogram(values).range("entropy")


def test_entropy_leaves_few_values_alone():
    values = np.random.default_rng(0).normal(0, 1, FEW - 1)
    assert histogram(values).range("entropy") == histogram(values).range("minmax")
    more = np.append(values, [0.0])
    assert histogram(more).range("entropy") != histogram(more).range("minmax")


@pytest.mark.parametrize("how", CALIBRATIONS)
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1e-40])
def test_a_constant_tensor_has_a_range_with_zero_in_it(how, value):
    low, high = histogram(np.full(FEW + 10, value)).range(how)
    assert low <= 0 <= high
    assert low <= np.float32(value) * 0.999 <= high or abs(value) < 1e-37
    assert np.isfinite([low, high]).all()


def peak(feeds):
    model = small_cnn()
    calibrate(model, feeds(2))  # what is imported and allocated once
    tracemalloc.start()
    histograms = calibrate(model, feeds(4))
    few = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    more = calibrate(model, feeds(60))
    many = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert more.pictures == 15 * histograms.pictures
    return few, many


def test_memory_does_not_grow_with_the_pictures():
    def feeds(count):
        return ({"image": pictures(4, seed)} for seed in range(count))

    few, many = peak(feeds)
    assert many < 1.3 * few + 1_000_000  # two results are alive at the end: 21 tensors of 32 kB each
    kept = []

    def hoarded(count):
        for feed in feeds(count):
            kept.append([feed["image"].copy() for _ in range(3)])
            yield feed

    few, many = peak(hoarded)
    assert many > 1.3 * few + 1_000_000  # the test can fail: one that keeps the pictures three times is caught


def test_the_histograms_of_many_pictures_are_as_large_as_those_of_one():
    sizes = [
        sum(one.sides.nbytes for one in calibrate(two_nodes(), [{"image": pictures(count)}]).tensors.values())
        for count in (1, 40)
    ]
    assert sizes[0] == sizes[1] == 3 * 2 * BINS * 8


def test_groups_of_tensors_see_the_same(monkeypatch):
    images = pictures(4)
    whole = calibrate(small_cnn(), [{"image": images}]).ranges("minmax")
    monkeypatch.setattr(calibration, "GROUP", 5)
    assert calibrate(small_cnn(), [{"image": images}]).ranges("minmax") == whole


def test_what_cannot_be_calibrated_is_said():
    with pytest.raises(TinkitError, match="no picture"):
        calibrate(two_nodes(), [])
    images = pictures(2)
    images[1, 0, 3, 3] = np.nan
    with pytest.raises(TinkitError, match="not finite") as caught:
        calibrate(two_nodes(), [{"image": images}])
    assert caught.value.where == "image"
    with pytest.raises(ValueError, match="minmax, percentile, entropy"):
        calibrate(two_nodes(), [{"image": pictures(1)}]).ranges("mse")
