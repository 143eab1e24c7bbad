"""Fidelity: laws of the measures, and a gate that passes exactly at its limit and fails just outside."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.neighbors import KNeighborsClassifier

from tinkit.fidelity import (
    FAILED,
    NOT_JUDGED,
    PASSED,
    Fidelity,
    compare_answers,
    cosine_difference,
    cosine_per_picture,
    cosine_spearman,
    judge,
    knn_predict,
    linear_cka,
    neighbour_overlap,
    ranks,
    verdict_of,
)
from tinkit.target import Gate

NAMES = [f"picture {i}.jpg" for i in range(12)]
LOOSE = Gate(min_cosine=0.5, max_error_share=0.5)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def rotation(seed, width):
    return np.linalg.qr(draw(seed, width, width))[0]


def compare(answers, reference, gate=LOOSE):
    return compare_answers("onnx -> runtime", "embedding", answers, reference, NAMES, gate)


def test_equal_answers_are_perfect():
    answers = draw(0, 12, 8)
    seen = compare(answers, answers, Gate(1.0, 1e-12))
    assert seen.cosine_min == pytest.approx(1, abs=1e-12)
    assert seen.max_error == 0
    assert seen.max_error_share == 0
    assert cosine_difference(answers, answers) == 0
    assert neighbour_overlap(answers, answers, k=3) == 1


def test_opposite_answers_have_cosine_minus_one_and_orthogonal_ones_zero():
    np.testing.assert_allclose(cosine_per_picture([[1, 2], [1, 0]], [[-2, -4], [0, 3]]), [-1, 0], atol=1e-12)


def test_compare_by_hand():
    seen = compare_answers("h", "o", [[3.0, 4.0], [2.0, 0.0]], [[4.0, 3.0], [1.0, 0.0]], ["first", "second"])
    assert seen.cosine_min == pytest.approx(0.96)  # (12 + 12) / (5 * 5)
    assert seen.cosine_mean == pytest.approx(0.98)
    assert seen.max_error == 1
    assert seen.max_error_share == 0.25  # 1 of a largest |reference| of 4
    assert [w["name"] for w in seen.worst] == ["first", "second"]
    assert (seen.verdict, seen.reason, seen.gate) == (NOT_JUDGED, "no gate", None)


def test_an_answer_of_any_rank_is_compared_as_one_vector():
    a, b = draw(1, 12, 4, 5), draw(2, 12, 4, 5)
    np.testing.assert_allclose(cosine_per_picture(a, b), cosine_per_picture(a.reshape(12, 20), b.reshape(12, 20)))


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_cosine_difference_ignores_rotation_and_scale(seed, scale):
    a, b = draw(seed, 12, 6), draw(seed + 1, 12, 9)
    turned = scale * a @ rotation(seed + 2, 6)
    assert cosine_difference(turned, b) == pytest.approx(cosine_difference(a, b), abs=1e-12)
    assert cosine_difference(a, turned) == pytest.approx(0, abs=1e-12)
    assert cosine_difference(b, a) == pytest.approx(cosine_difference(a, b))


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_neighbours_stay_under_rotation_and_scale(seed, scale):
    a = draw(seed, 12, 6)
    assert neighbour_overlap(a, scale * a @ rotation(seed + 2, 6), k=3) == 1


def test_cosine_difference_by_hand():
    a = [[1, 0], [0, 1], [1, 0]]  # cosines 0, 1, 0 of the pairs (0,1), (0,2), (1,2)
    b = [[1, 0], [1, 0], [0, 1]]  # cosines 1, 0, 0
    assert cosine_difference(a, b) == pytest.approx(2 / 3)


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=20))
def test_ranks_share_ties_as_scipy_does(values):
    np.testing.assert_array_equal(ranks(values), rankdata(values))


def test_spearman_agrees_with_scipy():
    a, b = draw(10, 15, 6), draw(11, 15, 9)
    b[3], a[7] = b[4], a[8]  # equal pictures: equal cosines with all the others
    upper = np.triu_indices(15, 1)
    pairs = [(rows @ rows.T / np.outer(*2 * [np.linalg.norm(rows, axis=1)]))[upper] for rows in (a, b)]
    assert cosine_spearman(a, b) == pytest.approx(spearmanr(*(np.round(p, 12) for p in pairs)).statistic, abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_spearman_sees_order_alone(seed, scale):
    a, b = draw(seed, 12, 6), draw(seed + 1, 12, 9)
    assert cosine_spearman(a, scale * a @ rotation(seed + 2, 6)) == pytest.approx(1)
    assert cosine_spearman(a, b) == pytest.approx(cosine_spearman(b, a))
    assert cosine_spearman(on_circle(0, 10, 30, 70), on_circle(0, 20, 60, 140)) == pytest.approx(1)  # angles doubled
    assert cosine_spearman(on_circle(0, 10, 100), on_circle(0, 10, -90)) == pytest.approx(0.5)  # ranks 3 1 2, 3 2 1


def test_a_constant_side_has_no_structure_and_is_no_nan():
    rows, constant = draw(12, 9, 4), np.full((9, 5), 0.1) * np.arange(1, 6)
    assert cosine_spearman(rows, constant) == 0
    assert linear_cka(rows, constant) == linear_cka(constant, rows) == 0


def test_linear_cka_by_hand_and_against_the_gram_form():
    assert linear_cka([[1, 0], [-1, 0]], [[3], [3.5]]) == pytest.approx(1)  # two points: one direction each
    # columns x = (1, -1, 0) and y = (0, 1, -1) centred already: (x.y)^2 / (x.x y.y) = 1 / 4
    assert linear_cka([[1], [-1], [0]], [[5], [6], [4]]) == pytest.approx(1 / 4)
    a, b = draw(13, 20, 6), draw(14, 20, 9)
    centre = np.eye(20) - 1 / 20
    gram_a, gram_b = (centre @ rows @ rows.T @ centre for rows in (a, b))
    by_gram = (gram_a * gram_b).sum() / np.sqrt((gram_a**2).sum() * (gram_b**2).sum())
    assert linear_cka(a, b) == pytest.approx(by_gram, abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_linear_cka_ignores_rotation_scale_and_shift(seed, scale):
    a, b = draw(seed, 12, 6), draw(seed + 1, 12, 9)
    turned = scale * (a + 2) @ rotation(seed + 2, 6)
    assert linear_cka(turned, b) == pytest.approx(linear_cka(a, b), abs=1e-9)
    assert linear_cka(turned, a) == pytest.approx(1, abs=1e-9)
    assert linear_cka(a, b) < 1
    assert linear_cka(a * np.arange(1, 7), a) < 1  # not free of a linear map


def on_circle(*degrees):
    return [[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]


def test_neighbour_overlap_by_hand():
    a = on_circle(0, 10, 90, 105)  # pairs 0-1 and 2-3 are nearest to each other
    b = on_circle(0, 90, 10, 105)  # 1 and 2 have changed places: 0-2 and 1-3
    assert neighbour_overlap(a, b, k=1) == 0
    assert neighbour_overlap(a, on_circle(0, 10, 90, 60), k=1) == 1
    assert neighbour_overlap(a, on_circle(0, 10, 28, 200), k=1) == 0.5  # 2 goes to 1 instead of 3
    assert neighbour_overlap(a, b, k=3) == 1  # all the others are neighbours


def test_knn_agrees_with_scikit_learn():
    bank, queries = draw(3, 200, 16), draw(4, 50, 16)
    labels = np.random.default_rng(5).integers(0, 5, 200)

    def weights(distance):  # scikit-learn's cosine distance is 1 - similarity
        return np.exp((1 - distance) / 0.07)

    theirs = KNeighborsClassifier(10, metric="cosine", algorithm="brute", weights=weights).fit(bank, labels)
    np.testing.assert_array_equal(knn_predict(bank, labels, queries, chunk=7), theirs.predict(queries))


def test_knn_of_the_bank_itself_finds_itself():
    bank = draw(6, 30, 8)
    labels = np.arange(30) % 4
    np.testing.assert_array_equal(knn_predict(bank, labels, bank, k=1), labels)


def test_a_gate_passes_exactly_at_its_limits():
    assert judge(np.array([0.9, 1.0]), 0.05, NAMES, Gate(0.9, 0.05))[0] == PASSED


def test_a_gate_fails_just_outside_its_limits_and_names_the_worst_picture():
    gate = Gate(0.9, 0.05)
    verdict, reason = judge(np.array([1.0, np.nextafter(0.9, 0)]), 0.05, NAMES, gate)
    assert verdict == FAILED
    assert "picture 1.jpg" in reason
    verdict, reason = judge(np.array([0.95, 1.0]), np.nextafter(0.05, 1), NAMES, gate)
    assert verdict == FAILED
    assert "picture 0.jpg" in reason


def test_one_bad_picture_fails_though_the_mean_is_fine():
    answers = draw(7, 12, 8)
    spoilt = answers.copy()
    spoilt[4] *= -1
    seen = compare(spoilt, answers, Gate(0.5, 100.0))
    assert seen.cosine_mean > 0.8
    assert seen.verdict == FAILED
    assert "picture 4.jpg" in seen.reason
    assert seen.worst[0] == {"index": 4, "name": "picture 4.jpg", "cosine": pytest.approx(-1)}


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_fails_and_is_named(poison):
    answers = draw(8, 12, 8)
    spoilt = answers.copy()
    spoilt[9, 3] = poison
    seen = compare(spoilt, answers)
    assert seen.verdict == FAILED
    assert "picture 9.jpg" in seen.reason
    assert seen.cosine_min == -1
    assert seen.max_error == float("inf")


def test_a_reference_that_is_not_finite_never_passes():
    answers = draw(8, 12, 8)
    reference = answers.copy()
    reference[2, 0] = np.nan
    seen = compare(answers, reference)
    assert seen.verdict == FAILED
    assert "picture 2.jpg" in seen.reason


def test_answers_of_zeros_never_pass():
    assert compare(np.zeros((12, 8)), draw(9, 12, 8)).verdict == FAILED


def test_shapes_that_differ_are_a_programmers_error():
    with pytest.raises(ValueError, match="differ in shape"):
        compare(draw(0, 12, 8), draw(0, 12, 7))
    with pytest.raises(ValueError, match="no answers"):
        compare(np.zeros((0, 8)), np.zeros((0, 8)))


def test_fidelity_survives_json():
    seen = compare(draw(0, 12, 8), draw(1, 12, 8))
    assert Fidelity.from_json(json.loads(json.dumps(seen.to_json()))) == seen


def test_one_verdict_for_many():
    def hop(verdict):
        return Fidelity("h", "o", 1, 1.0, 1.0, 1.0, 0.0, 0.0, [], verdict=verdict)

    assert verdict_of([hop(PASSED), hop(FAILED), hop(NOT_JUDGED)]) == FAILED
    assert verdict_of([hop(PASSED), hop(NOT_JUDGED)]) == PASSED
    assert verdict_of([hop(NOT_JUDGED)]) == NOT_JUDGED
    assert verdict_of([]) == NOT_JUDGED


def test_the_mean_passes_exactly_at_its_limit_and_fails_just_outside():
    cosines = np.array([0.75, 1.0])
    assert judge(cosines, 0.0, NAMES, Gate(0.5, 0.5, min_cosine_mean=0.875))[0] == PASSED
    verdict, reason = judge(cosines, 0.0, NAMES, Gate(0.5, 0.5, min_cosine_mean=float(np.nextafter(0.875, 1))))
    assert verdict == FAILED
    assert "mean cosine 0.875" in reason
    assert "picture 0.jpg" in reason


def test_a_mean_that_is_not_judged_is_not_told_and_one_that_is_travels():
    answers = draw(0, 12, 8)
    assert compare(answers, answers).gate == {"min_cosine": 0.5, "max_error_share": 0.5}
    seen = compare(answers, answers, Gate(0.5, 0.5, 0.75))
    assert seen.gate == {"min_cosine": 0.5, "max_error_share": 0.5, "min_cosine_mean": 0.75}
    assert "0.75 on average" in seen.reason
