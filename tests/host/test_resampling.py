"""Intervals: as wide as theory says, kept within bounds, the same from the same seed."""

import numpy as np
import pytest

from tinkit.host.evaluate import resampling
from tinkit.host.evaluate.resampling import halves, interval, interval_of_halves, interval_of_mean

VALUES = np.random.default_rng(0).gamma(2.0, size=400)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    low, high = interval_of_mean(VALUES)
    error = VALUES.std(ddof=1) / 20
    np.testing.assert_allclose([low, high], VALUES.mean() + 1.96 * error * np.array([-1, 1]), atol=0.15 * error)


def test_the_columns_are_resampled_together():
    low, high = interval(lambda a, b: (a - b).mean(), VALUES, VALUES + 3, resamples=50)
    assert low == pytest.approx(-3)
    assert high == pytest.approx(-3)


def test_the_general_form_and_that_of_the_mean_agree():
    assert interval(np.mean, VALUES, resamples=200) == pytest.approx(interval_of_mean(VALUES, resamples=200), rel=1e-12)


def test_how_many_are_drawn_at_a_time_changes_nothing(monkeypatch):
    whole = interval_of_mean(VALUES, resamples=100)
    monkeypatch.setattr(resampling, "AT_ONCE", 1000)
    assert interval_of_mean(VALUES, resamples=100) == whole


def test_a_seed_is_an_address():
    assert interval_of_mean(VALUES, seed=1) == interval_of_mean(VALUES, seed=1) != interval_of_mean(VALUES, seed=2)


def test_one_picture_has_nothing_to_vary():
    assert interval_of_mean([0.25]) == (0.25, 0.25)
    assert interval(np.max, [0.5], resamples=10) == (0.5, 0.5)


@pytest.mark.parametrize("count", [8, 9])
def test_a_half_is_a_half_without_repeats(count):
    drawn = halves(count, 50, seed=3)
    assert set(np.unique(drawn)) == {0, 1}
    assert (drawn.sum(axis=1) == count // 2).all()
    assert len(np.unique(drawn, axis=0)) > 20
    np.testing.assert_array_equal(drawn, halves(count, 50, seed=3))
    np.testing.assert_allclose(halves(count, 4000, seed=3).mean(axis=0), count // 2 / count, atol=0.05)


@pytest.mark.parametrize("count", [400, 399, 51])
def test_the_halves_of_a_mean_give_the_normal_interval(count):
    values = VALUES[:count]
    drawn = halves(count, 4000)
    low, high = interval_of_halves(values.mean(), drawn @ values / (count // 2), count)
    error = values.std(ddof=1) / np.sqrt(count)
    np.testing.assert_allclose([low, high], values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.15 * error)


def test_a_value_from_more_pictures_has_a_narrower_interval():
    drawn = halves(100, 400) @ VALUES[:100] / 50
    sample = np.diff(interval_of_halves(2.0, drawn, 100))
    assert np.diff(interval_of_halves(2.0, drawn, 100, pictures=10_000)) == pytest.approx(sample / 10)


def test_the_ends_are_kept_within_what_the_number_can_be():
    assert interval_of_halves(0.99, [0.5, 0.9, 1.0, 0.9], 10, low=0, high=1)[1] == 1
    assert interval_of_halves(0.01, [0.5, 0.1, 0.0, 0.1], 10, low=0, high=1)[0] == 0


def test_a_shift_of_the_halves_is_no_spread():
    assert interval_of_halves(0.5, [0.7, 0.8, 0.9], 10) == pytest.approx(interval_of_halves(0.5, [0.2, 0.3, 0.4], 10))


def test_the_halves_of_a_statistic_of_pairs_cover_the_truth_as_normal_theory_does():
    """Gini's mean difference of normal values is 2 / sqrt(pi); theory: 1.96 standard errors by Hajek's projection."""
    truth, draws, count = 2 / np.sqrt(np.pi), 400, 60
    held = {"halves": 0, "theory": 0}
    for seed in range(draws):
        values = np.random.default_rng(seed).normal(size=count)
        apart = np.abs(values[:, None] - values)
        value = apart.sum() / (count * (count - 1))
        drawn = halves(count, 400, seed)
        found = ((drawn @ apart) * drawn).sum(axis=1) / (count // 2 * (count // 2 - 1))
        low, high = interval_of_halves(value, found, count)
        held["halves"] += low <= truth <= high
        error = 2 * (apart.sum(axis=1) / (count - 1)).std(ddof=1) / np.sqrt(count)
        held["theory"] += abs(value - truth) < 1.96 * error
    assert abs(held["halves"] - held["theory"]) <= 0.02 * draws, held
    assert held["halves"] >= 0.9 * draws, held
