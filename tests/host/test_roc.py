"""Scores of known and strange pictures: every metric against scikit-learn, ties included, and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from tinkit.host.evaluate import roc

SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=40)  # few different ones: many ties


def by_sklearn(known, strange):
    """The five metrics from another library; FPR at the first threshold of the whole curve that reaches 95 %."""
    is_known = np.r_[np.ones(len(known)), np.zeros(len(strange))]
    scores = np.r_[known, strange].astype(float)

    def false_alarms(positive, scores):
        share, recall, _ = roc_curve(positive, scores, drop_intermediate=False)
        return share[np.argmax(recall >= 0.95 - 1e-12)]

    return {
        "auroc": roc_auc_score(is_known, scores),
        "aupr_known": average_precision_score(is_known, scores),
        "aupr_strange": average_precision_score(1 - is_known, -scores),
        "fpr95_known": false_alarms(is_known, scores),
        "fpr95_strange": false_alarms(1 - is_known, -scores),
    }


def metrics(known, strange, *weights):
    return {name: value[0] for name, value in roc.Ranking.of(known, strange).metrics(*weights).items()}


@given(SCORES, SCORES)
def test_all_metrics_are_scikit_learns(known, strange):
    assert metrics(known, strange) == pytest.approx(by_sklearn(known, strange))


@given(SCORES, SCORES, st.integers(0, 99))
def test_a_weight_is_a_picture_counted_more_than_once(known, strange, seed):
    random = np.random.default_rng(seed)
    often = [random.integers(0, 4, (3, len(side))) for side in (known, strange)]
    for counts in often:
        counts[:, 0] = 1  # never nobody
    found = roc.Ranking.of(known, strange).metrics(*often)
    for i in range(3):
        expected = by_sklearn(np.repeat(known, often[0][i]), np.repeat(strange, often[1][i]))
        assert {name: value[i] for name, value in found.items()} == pytest.approx(expected)


def test_by_hand():
    """Falling: known 5, strange 4, known 3, known 3 tied with strange 3, strange 1."""
    found = metrics([5, 3, 3], [4, 3, 1])
    assert found["auroc"] == pytest.approx((3 + 2 * (0 + 0.5 + 1)) / 9)
    assert found["aupr_known"] == pytest.approx((1 * 1 + 2 * 3 / 5) / 3)
    assert found["aupr_strange"] == pytest.approx((1 * 1 + 1 * 2 / 4 + 1 * 3 / 5) / 3)
    assert found["fpr95_known"] == pytest.approx(2 / 3)  # all known pass at 3: so do strange 4 and 3
    assert found["fpr95_strange"] == pytest.approx(2 / 3)  # all strange are flagged up to 4: so are both known 3


def test_both_conventions_differ_and_exactly_95_percent_is_enough():
    known = np.r_[np.full(19, 1.0), -5]  # one known picture of 20 lies below every strange one
    strange = np.linspace(0, 0.5, 40)
    found = metrics(known, strange)
    assert found["fpr95_known"] == 0  # 19 of 20 pass at 1
    assert found["fpr95_strange"] == 1 / 20
    one_more = metrics(np.r_[np.full(18, 1.0), -5, -5], strange)
    assert one_more["fpr95_known"] == 1  # 18 of 20 are not 95 %


@given(SCORES, SCORES)
def test_turned_around_known_is_strange(known, strange):
    found, turned = metrics(known, strange), metrics(-np.array(strange), -np.array(known))
    assert found["auroc"] == pytest.approx(turned["auroc"])
    for name in ("aupr", "fpr95"):
        assert found[f"{name}_known"] == pytest.approx(turned[f"{name}_strange"])
    assert metrics(strange, known)["auroc"] == pytest.approx(1 - found["auroc"])


def test_only_the_order_counts_and_a_fault_in_it_shows():
    random = np.random.default_rng(0)
    known, strange = random.normal(1, 1, 50), random.normal(0, 1, 60)
    found = metrics(known, strange)
    assert metrics(np.exp(known), np.exp(strange)) == pytest.approx(found)
    wrong = strange.copy()
    wrong[np.argmin(strange)] = known.max() + 1  # the least suspicious of all
    assert metrics(known, wrong)["auroc"] < found["auroc"]
    assert metrics(known, wrong)["aupr_known"] < found["aupr_known"]


def test_the_curve_is_short_rises_and_has_the_area():
    random = np.random.default_rng(1)
    known, strange = random.normal(1, 1, 3000), random.normal(0, 1, 2000)
    points = np.array(roc.Ranking.of(known, strange).curve())
    assert len(points) <= 100
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    assert (np.diff(points, axis=0) >= 0).all()
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(roc_auc_score(*labelled(known, strange)), abs=2e-3)
    apart = np.array(roc.Ranking.of(known + 100, strange).curve())
    assert np.abs(apart - [0, 1]).sum(axis=1).min() <= 0.02  # the corner, to the distance of two points
    assert roc.Ranking.of([2, 1], [1, 0]).curve() == [[0, 0], [0, 0.5], [0.5, 1], [1, 1]]


def labelled(known, strange):
    return np.r_[np.ones(len(known)), np.zeros(len(strange))], np.r_[known, strange]


def test_weights_are_a_bootstrap_with_a_seed(monkeypatch):
    def drawn(strange, seed):
        parts = list(roc.weights(30, strange, 200, seed))
        return np.concatenate([known for known, _ in parts]), np.concatenate([others for _, others in parts])

    known, strange = drawn(20, (5, 0))
    assert known.shape == (200, 30)
    assert strange.shape == (200, 20)
    assert (known.sum(axis=1) == 30).all()
    assert (strange.sum(axis=1) == 20).all()
    assert (known == 0).mean() == pytest.approx((1 - 1 / 30) ** 30, abs=0.03)
    assert (drawn(45, (5, 3))[0] == known).all()  # known ones are the same for every set
    assert (drawn(20, (5, 1))[1] != strange).any()
    assert (drawn(20, (6, 0))[0] != known).any()
    monkeypatch.setattr(roc, "AT_ONCE", 100)
    assert (drawn(20, (5, 0))[1] == strange).all()  # however few at once


def test_fewer_resamplings_of_very_many_pictures():
    assert roc.resamples(20_000) == 1000
    assert roc.resamples(1_000_000) == 200
    assert roc.resamples(10**9) == 100


@pytest.mark.parametrize(("known", "strange"), [([], [1]), ([1], []), ([np.nan], [1]), ([1], [np.inf])])
def test_no_scores_or_none_that_order_are_refused(known, strange):
    with pytest.raises(ValueError, match="finite"):
        roc.Ranking.of(known, strange)
