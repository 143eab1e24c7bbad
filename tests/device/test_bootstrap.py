"""Intervals of percentiles against data whose percentiles are known: how often the truth lies inside."""

import numpy as np
import pytest

from tinkit.device import bootstrap
from tinkit.device.bootstrap import dependence, intervals

TRUE = {50: 0.0, 90: 1.2815515655, 95: 1.6448536270}  # of the standard normal distribution
SERIES = 60  # two standard errors of a coverage of 95 %: 6 %


def alike(count, share, seed):
    """`count` standard normal numbers, each with `share` of the one before it (autoregressive, first order)."""
    noise = np.random.default_rng(seed).normal(size=count)
    values = np.empty(count)
    values[0] = noise[0]
    for index in range(1, count):
        values[index] = share * values[index - 1] + np.sqrt(1 - share**2) * noise[index]
    return values


def coverage(count, share, percents=(50, 90, 95)):
    """percent -> share of the series whose interval holds the true percentile."""
    seen = {percent: [] for percent in percents}
    for seed in range(SERIES):
        for percent, (low, high) in intervals(alike(count, share, seed), percents)[0].items():
            seen[percent].append(low <= TRUE[percent] <= high)
    return {percent: np.mean(inside) for percent, inside in seen.items() if len(inside) > SERIES / 2}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)


@pytest.mark.parametrize(
    ("count", "share", "judged"), [(500, 0.0, {50, 90, 95}), (600, 0.4, {50, 90}), (1500, 0.8, {50, 90})]
)
def test_the_truth_lies_inside_as_often_as_claimed(count, share, judged):
    seen = coverage(count, share)
    assert judged <= set(seen)
    for percent in seen:
        assert seen[percent] >= 0.86, percent


def test_drawing_single_samples_would_claim_too_much(monkeypatch):
    """The planted fault: neighbours that are alike, taken for independent."""
    monkeypatch.setattr(bootstrap, "dependence", lambda values: (1, 1.0))
    monkeypatch.setattr(bootstrap, "SHORT", 0)
    blocks = bootstrap._resamples
    monkeypatch.setattr(bootstrap, "_resamples", lambda samples, length: blocks(samples, 1))
    assert coverage(1500, 0.8, (50,))[50] < 0.75


def test_dependence_is_none_for_chance_and_grows_with_likeness():
    found = [
        np.median([dependence(alike(1000, share, seed)) for seed in range(20)], axis=0) for share in (0, 0.5, 0.8, 0.95)
    ]
    assert found[0][0] <= 3
    lengths, inflations = zip(*found)
    assert sorted(lengths) == list(lengths)
    for inflation, share in zip(inflations, (0, 0.5, 0.8)):
        assert inflation == pytest.approx((1 + share) / (1 - share), rel=0.25)  # of the mean of such a series


@pytest.mark.parametrize("values", [[1.0], [2.0] * 50, [0.0, 1.0] * 50])
def test_series_without_chance_in_them_are_no_trouble(values):
    length, inflation = dependence(values)
    assert 1 <= length <= len(values)
    assert inflation >= 1


@pytest.mark.parametrize(
    ("count", "percents"),
    [(1, set()), (39, set()), (40, {50}), (199, {50}), (200, {50, 90}), (400, {50, 90, 95}), (2000, {50, 90, 95, 99})],
)
def test_a_percentile_with_too_few_samples_beyond_it_gets_no_interval(count, percents):
    spread = np.random.default_rng(1).permutation(count)
    assert set(intervals(spread, (50, 90, 95, 99, 99.9))[0]) == percents


def test_neighbours_that_are_alike_count_for_less():
    assert 95 in intervals(alike(500, 0.0, 1), (50, 95))[0]
    assert 95 not in intervals(alike(500, 0.8, 1), (50, 95))[0]
    assert intervals(np.repeat(alike(8, 0.0, 1), 50), (50,))[0] == {}  # eight levels: nothing to resample


def test_an_interval_holds_the_percentile_and_narrows_with_samples():
    widths = []
    for count in (100, 1000, 10000):
        samples = np.random.default_rng(2).gamma(4.0, size=count)
        low, high = intervals(samples, (50,))[0][50]
        assert low <= np.percentile(samples, 50) <= high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_the_same_samples_give_the_same_interval_in_any_unit():
    samples = np.random.default_rng(3).gamma(4.0, size=300)
    first, again = intervals(samples, (50, 90)), intervals(list(samples), (50, 90))
    assert first == again
    thousand = intervals(samples * 1024, (50, 90))[0]
    assert thousand[90] == pytest.approx(np.multiply(first[0][90], 1024))


def test_equal_samples_have_an_interval_without_width():
    assert intervals([3.0] * 100, (50,))[0] == {50: (3.0, 3.0)}


def test_long_series_take_fewer_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    assert sum(map(len, bootstrap._resamples(np.zeros(400), 8))) == 1000
    assert sum(map(len, bootstrap._resamples(np.zeros(200_000), 60))) == 200
    assert {drawn.shape[1] for drawn in bootstrap._resamples(np.zeros(400), 8)} == {400 - 6 * 8}
