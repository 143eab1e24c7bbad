"""Calibration: worked by hand, against scikit-learn's calibration curve, and (slow) against torchmetrics."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from tinkit.host.evaluate.calibration import BINS, expected_calibration_error, reliability


def made_up(count=2000, seed=0):
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.1, 1, count)
    return confidence, random.random(count) < confidence**2


def test_worked_by_hand():
    """Two bins: (0, 0.5] holds 0.3 and 0.5, one of two right; (0.5, 1] holds 0.9, 0.8 and 1.0, two of three right."""
    confidence, right = [0.3, 0.5, 0.9, 0.8, 1.0], [True, False, True, False, True]
    by_hand = 2 / 5 * abs(1 / 2 - 0.4) + 3 / 5 * abs(2 / 3 - 0.9)
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(by_hand)
    assert reliability(confidence, right, bins=2) == {
        "bins": [
            {"low": 0.0, "high": 0.5, "confidence": pytest.approx(0.4), "accuracy": 0.5, "count": 2},
            {"low": 0.5, "high": 1.0, "confidence": pytest.approx(0.9), "accuracy": pytest.approx(2 / 3), "count": 3},
        ]
    }


def test_the_edges_belong_to_the_lower_bin_and_0_to_the_first():
    edges = np.linspace(0, 1, BINS + 1)
    counts = [entry["count"] for entry in reliability(edges, np.ones(BINS + 1))["bins"]]
    assert counts == [2] + [1] * (BINS - 1)


def test_scikit_learns_curve_is_the_same():
    confidence, right = made_up()
    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS, strategy="uniform")
    bins = reliability(confidence, right)["bins"]
    np.testing.assert_allclose([entry["accuracy"] for entry in bins], accuracy)
    np.testing.assert_allclose([entry["confidence"] for entry in bins], mean)
    share = np.array([entry["count"] for entry in bins]) / len(right)
    assert expected_calibration_error(confidence, right) == pytest.approx((share * np.abs(accuracy - mean)).sum())


def test_it_is_0_when_confidence_is_honest_and_grows_when_it_is_not():
    confidence = np.repeat([0.25, 0.5, 0.75], 4)
    right = [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0]
    assert expected_calibration_error(confidence, right) == 0
    assert expected_calibration_error(confidence + 0.2, right) == pytest.approx(0.2)
    assert expected_calibration_error(np.ones(4), np.zeros(4)) == 1


def test_nothing_and_nonsense():
    assert expected_calibration_error([], []) == 0
    assert reliability([], []) == {"bins": []}
    for confidence, right in (([1.1], [1]), ([np.nan], [1]), ([0.5, 0.5], [1]), ([[0.5]], [[1]])):
        with pytest.raises(ValueError, match="confidence"):
            expected_calibration_error(confidence, right)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_torchmetrics_gives_the_same_number():
    metrics = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    import torch

    random = np.random.default_rng(3)
    proba = random.dirichlet(np.full(5, 0.5), 3000)
    right = random.random(3000) < 0.5 + 0.4 * np.sin(20 * proba.max(1))  # too sure here, not sure enough there
    labels = np.where(right, proba.argmax(1), proba.argmin(1))
    theirs = metrics.multiclass_calibration_error(
        torch.from_numpy(proba), torch.from_numpy(labels), num_classes=5, n_bins=BINS, norm="l1"
    )
    ours = expected_calibration_error(proba.max(1), proba.argmax(1) == labels)
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    assert ours > 0.05
    assert expected_calibration_error(proba.max(1), proba.argmax(1) == labels, bins=5) != pytest.approx(ours, abs=1e-6)
