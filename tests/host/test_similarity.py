"""Similarity without labels: each number against scipy, a hand-worked value or tinkit.fidelity, each law with a fault."""

import json
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from tinkit import fidelity
from tinkit.errors import TinkitError
from tinkit.host.evaluate import cka, pairs, similarity
from tinkit.host.evaluate.measure import Measure
from tinkit.host.evaluate.resampling import halves

NAMES = [f"folder/{i}.jpg" for i in range(200)]
MEASURES = ["cosine", "cosine_p1", "cosine_difference_mapped", "cosine_difference", "spearman", "cka", "cka_debiased"]


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotation(seed, width):
    return np.linalg.qr(draw(seed, width, width))[0].astype(np.float32)


def turned(rows):
    return rows @ rotation(9, rows.shape[1])


TEACHER = draw(0, 200, 6) @ draw(1, 6, 12) + 1
MAPPED = TEACHER @ draw(2, 12, 8)
STUDENT = MAPPED + draw(3, 200, 8)


def block(teacher=TEACHER, mapped=MAPPED, student=STUDENT, **options):
    return similarity.similarity(teacher, mapped, student, NAMES[: len(student)], **options)


def values(found):
    return {measure.name: measure.student for measure in similarity.measures(found)}


def test_the_numbers_are_those_of_the_held_out_monitor():
    found = values(block())
    cosine = fidelity.cosine_per_picture(STUDENT, MAPPED)
    assert found["cosine"] == pytest.approx(cosine.mean(), abs=1e-9)
    assert found["cosine_p1"] == pytest.approx(np.percentile(cosine, 1), abs=1e-9)
    assert found["cosine_difference"] == pytest.approx(fidelity.cosine_difference(STUDENT, TEACHER), abs=1e-6)
    assert found["cosine_difference_mapped"] == pytest.approx(fidelity.cosine_difference(STUDENT, MAPPED), abs=1e-6)
    assert found["spearman"] == pytest.approx(fidelity.cosine_spearman(STUDENT, TEACHER), abs=1e-5)
    assert found["cka"] == pytest.approx(fidelity.linear_cka(STUDENT, TEACHER), abs=1e-9)
    for k in (1, 10, 50):
        assert found[f"overlap@{k}"] == pytest.approx(fidelity.neighbour_overlap(STUDENT, TEACHER, k), abs=1e-9)


def test_a_teacher_turned_is_the_teacher_and_one_that_is_bent_is_not():
    same = block(TEACHER, turned(TEACHER), turned(TEACHER))
    found = values(same)
    for name in ("cosine", "cosine_p1", "spearman", "cka", "cka_debiased", "overlap@1", "overlap@10", "overlap@50"):
        assert found[name] == pytest.approx(1, abs=1e-4), name
    assert found["cosine_difference"] == pytest.approx(0, abs=1e-6)
    assert found["cosine_difference_mapped"] == pytest.approx(0, abs=1e-6)
    bent = values(block(TEACHER, turned(TEACHER), turned(TEACHER * np.linspace(0.2, 2, 12, dtype=np.float32))))
    assert bent["cosine_difference"] > 0.01
    for name in ("cosine", "spearman", "cka", "cka_debiased", "overlap@1", "overlap@10"):
        assert bent[name] < 0.99, name


def test_the_names_that_a_budget_may_use():
    found = [measure.name for measure in similarity.measures(block())]
    assert found == [*MEASURES, "overlap@1", "overlap@10", "overlap@50"]
    without = [measure.name for measure in similarity.measures(block(mapped=None))]
    assert without == [*MEASURES[3:], "overlap@1", "overlap@10", "overlap@50"]
    fitted = [measure.name for measure in similarity.measures(block(fitted=True))]
    assert fitted[:4] == ["fitted_cosine", "fitted_cosine_p1", "fitted_cosine_difference_mapped", "cosine_difference"]


def test_every_measure_has_an_interval_about_its_value_and_goes_through_json():
    found = json.loads(json.dumps(block(), allow_nan=False))
    for measure in similarity.measures(found):
        assert measure.interval[0] <= measure.student <= measure.interval[1], measure.name
        assert measure.interval[0] < measure.interval[1], measure.name
        assert measure.what
        assert Measure.from_json(json.loads(json.dumps(measure.to_json()))) == measure
    assert {measure.name for measure in similarity.measures(found) if measure.better == "lower"} == {
        "cosine_difference",
        "cosine_difference_mapped",
    }


def test_the_worst_pictures_are_those_that_were_spoilt():
    student = MAPPED.copy()
    student[[30, 70]] = -MAPPED[[30, 70]]
    student[5] += 3 * np.abs(MAPPED[5]).max() * draw(4, 8)
    found = block(student=student, worst=3)
    assert {one["index"] for one in found["worst"]} == {30, 70, 5}
    assert found["worst"][0]["cosine"] == pytest.approx(-1, abs=1e-6)
    assert found["cosine"]["min"] == pytest.approx(-1, abs=1e-6)
    for one in found["worst"]:
        assert one["name"] == f"folder/{one['index']}.jpg"
        cosines = fidelity.unit(TEACHER) @ fidelity.unit(TEACHER[one["index"]])
        assert one["teacher_neighbours"] == np.argsort(-cosines)[1:6].tolist()
        cosines = fidelity.unit(student) @ fidelity.unit(student[one["index"]])
        assert one["student_neighbours"] == np.argsort(-cosines)[1:6].tolist()
    used = {i for one in found["worst"] for key in ("teacher_neighbours", "student_neighbours") for i in one[key]}
    assert found["names"] == {str(i): NAMES[i] for i in used | {30, 70, 5}}


def test_without_a_mapping_the_worst_are_those_with_other_neighbours():
    student = turned(TEACHER)
    student[42] = -student[42]
    found = block(mapped=None, student=student, worst=2)
    assert found["worst"][0]["index"] == 42
    assert found["worst"][0]["overlap"] == 0
    assert found["worst"][0]["cosine"] is None
    assert found["cosine"] is None
    assert found["cosine_difference"]["mapped"] is None


def test_of_many_pictures_a_sample_is_asked_and_that_is_said(monkeypatch):
    whole = block()
    monkeypatch.setattr(pairs, "SAMPLED", 80)
    monkeypatch.setattr(similarity, "QUERIES", 90)
    found = block()
    assert (whole["conditions"]["pair_pictures"], whole["conditions"]["queries"]) == (200, 200)
    assert found["conditions"]["pair_pictures"] == 80
    assert found["conditions"]["pairs"] == 80 * 79 // 2
    assert found["conditions"]["queries"] == 90
    for name in ("cka", "cka_debiased"):  # of all pictures all the same
        assert found[name]["value"] == whole[name]["value"]
        width, before = np.diff(found[name]["interval"])[0], np.diff(whole[name]["interval"])[0]
        assert 0.4 * before < width < 2.5 * before
    assert found["cosine_difference"]["teacher"]["value"] != whole["cosine_difference"]["teacher"]["value"]
    low, high = found["cosine_difference"]["teacher"]["interval"]
    assert low < whole["cosine_difference"]["teacher"]["value"] < high
    picked = pairs.sample(200, 90, 0)
    near = [np.argsort(-fidelity.unit(rows) @ fidelity.unit(rows).T, axis=1)[:, 1:11] for rows in (TEACHER, STUDENT)]
    share = np.mean([len(set(near[0][i]) & set(near[1][i])) / 10 for i in picked])
    assert found["overlap"][1]["value"] == pytest.approx(share)
    assert block(seed=1)["overlap"][1]["value"] != found["overlap"][1]["value"]
    assert block() == found


def test_chance_is_what_unrelated_rows_have():
    found = block(student=draw(8, 200, 8))
    assert [one["chance"] for one in found["overlap"]] == [k / 199 for k in (1, 10, 50)]
    for one in found["overlap"]:
        assert one["interval"][0] <= one["chance"] + 0.02
        assert one["value"] == pytest.approx(one["chance"], abs=0.03)
    assert abs(found["spearman"]["value"]) < 0.06
    assert abs(found["cka_debiased"]["value"]) < 0.1


@pytest.mark.parametrize(("count", "ks"), [(8, [1]), (20, [1]), (21, [1, 10]), (101, [1, 10, 50])])
def test_few_pictures_have_fewer_overlaps(count, ks):
    found = block(TEACHER[:count], MAPPED[:count], STUDENT[:count])
    assert [one["k"] for one in found["overlap"]] == ks
    assert all(np.isfinite(measure.student) for measure in similarity.measures(found))
    assert len(found["worst"][0]["teacher_neighbours"]) == 5


def test_too_few_pictures_and_rows_that_do_not_belong_together_are_refused():
    with pytest.raises(TinkitError, match="too few"):
        block(TEACHER[:7], MAPPED[:7], STUDENT[:7])
    with pytest.raises(ValueError, match="199 rows of the teacher"):
        block(TEACHER[:199])
    with pytest.raises(ValueError, match="mapped teacher"):
        block(mapped=MAPPED[:, :7])


def test_answers_that_are_not_finite_are_the_worst_and_are_counted():
    student = STUDENT.copy()
    student[7, 2], student[9] = np.nan, np.inf
    found = json.loads(json.dumps(block(student=student), allow_nan=False))
    assert found["not_finite"] == {"teacher": 0, "mapped": 0, "student": 2}
    assert [one["index"] for one in found["worst"][:2]] == [7, 9]
    assert found["worst"][0]["cosine"] == -1
    assert all(np.isfinite(measure.student) for measure in similarity.measures(found))


def test_a_student_that_says_the_same_of_all_pictures_has_nothing_in_common():
    found = values(block(mapped=None, student=np.full((200, 8), 0.1, np.float32)))
    assert found["cka"] == 0
    assert found["cka_debiased"] == 0
    assert found["spearman"] == 0
    assert found["overlap@10"] < 0.1


def test_memory_maps_give_the_same(tmp_path):
    mapped = {}
    for name, rows in (("teacher", TEACHER), ("mapped", MAPPED), ("student", STUDENT)):
        np.save(tmp_path / f"{name}.npy", rows)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    assert block(**mapped) == block()


def test_shared_by_hand():
    np.testing.assert_array_equal(similarity.shared(np.array([[1, 2], [3, 4]]), np.array([[2, 5], [4, 3]])), [0.5, 1])


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_the_difference_by_hand():
    a = np.array([[1, 0.5, 0], [0.5, 1, -0.5], [0, -0.5, 1]], np.float32)
    b = np.array([[1, 0.2, 0], [0.2, 1, 0.1], [0, 0.1, 1]], np.float32)
    drawn = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], np.float32)
    a, b = (np.pad(cosines, (0, 1)) for cosines in (a, b))  # a fourth picture, that is like no other for both
    assert pairs.difference(a, b, drawn)["value"] == pytest.approx((0.3 + 0 + 0.6 + 3 * 0) / 6)


def test_the_spread_of_halves_is_that_of_the_statistic_on_each_half():
    a, b = (pairs.pair_cosines(rows[:60]) for rows in (TEACHER, STUDENT))
    drawn = halves(60, 40)
    by_hand = [fidelity.cosine_difference(TEACHER[:60][half > 0], STUDENT[:60][half > 0]) for half in drawn]
    value = fidelity.cosine_difference(TEACHER[:60], STUDENT[:60])
    ends = value + np.quantile(by_hand - np.mean(by_hand), [0.025, 0.975])
    np.testing.assert_allclose(pairs.difference(a, b, drawn)["interval"], ends, atol=1e-5)
    by_hand = [fidelity.cosine_spearman(TEACHER[:60][half > 0], STUDENT[:60][half > 0]) for half in drawn]
    value = fidelity.cosine_spearman(TEACHER[:60], STUDENT[:60])
    ends = value + np.quantile(by_hand - np.mean(by_hand), [0.025, 0.975])
    np.testing.assert_allclose(pairs.spearman(a, b, 40)["interval"], ends, atol=1e-3)  # in grades


def test_spearman_is_scipys_with_ties_too():
    rows = np.round(draw(5, 90, 3))
    a, b = pairs.pair_cosines(rows), pairs.pair_cosines(rows + draw(6, 90, 3))
    upper = np.triu_indices(90, 1)
    expected = stats.spearmanr(np.round(a[upper], 6), np.round(b[upper], 6)).statistic
    assert pairs.spearman(a, b, 5)["value"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_the_intervals_of_pairs_hold_the_truth_nineteen_times_of_twenty():
    everything = [draw(11, 3000, 4), None]
    everything[1] = everything[0] + 0.7 * draw(12, 3000, 4)
    truth = fidelity.cosine_difference(*everything), fidelity.cosine_spearman(*everything)
    held = np.zeros(2)
    for seed in range(100):
        picked = pairs.sample(3000, 60, seed)
        a, b = (pairs.pair_cosines(rows[picked]) for rows in everything)
        drawn = halves(60, 150, seed)
        for place, found in enumerate((pairs.difference(a, b, drawn), pairs.spearman(a, b, 150, seed))):
            held[place] += found["interval"][0] <= truth[place] <= found["interval"][1]
    assert (held >= 89).all(), held  # 95 is aimed at; 89 or more of 100 has probability 0.996 at 95 %


def test_the_spread_of_spearman_is_scaled_from_fewer_pictures(monkeypatch):
    a, b = (pairs.pair_cosines(rows) for rows in (TEACHER, STUDENT))
    whole = pairs.spearman(a, b)
    monkeypatch.setattr(pairs, "HALVED", 100)
    part = pairs.spearman(a, b)
    assert part["value"] == whole["value"]
    assert np.diff(part["interval"])[0] == pytest.approx(np.diff(whole["interval"])[0], rel=0.35)


# --- CKA -----------------------------------------------------------------------------------------------------------


def hsic_of_tuples(a, b):
    """The U-statistic as it is defined: the mean over all ordered quadruples of different pictures."""
    k, m = a @ a.T, b @ b.T
    found = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(len(a)), 4)]
    return np.mean(found)


def test_both_forms_by_their_definitions():
    a, b = draw(20, 9, 4).astype(np.float64) + 2, draw(21, 9, 3).astype(np.float64)
    b[:, 0] += a[:, 1]
    linear, debiased = cka.cka(a, b)
    centre = np.eye(9) - 1 / 9
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    assert linear == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()), abs=1e-12)
    expected = hsic_of_tuples(a, b) / np.sqrt(hsic_of_tuples(a, a) * hsic_of_tuples(b, b))
    assert debiased == pytest.approx(expected, abs=1e-10)


def test_chunks_and_large_means_change_nothing(monkeypatch):
    whole = cka.cka(TEACHER, STUDENT)
    monkeypatch.setattr(cka, "CHUNK", 7)
    assert cka.cka(TEACHER.astype(np.float64) + 1000, STUDENT) == pytest.approx(whole, abs=1e-9)


def test_unrelated_rows_of_few_pictures_look_alike_only_to_the_biased_form():
    linear, debiased = np.mean([cka.cka(draw(i, 40, 100), draw(i + 500, 40, 100)) for i in range(20)], axis=0)
    assert linear > 0.6
    assert abs(debiased) < 0.03


def test_the_intervals_are_the_spread_of_the_statistic_on_each_half():
    drawn = halves(200, 30)
    by_hand = np.array([cka.cka(TEACHER[half > 0], STUDENT[half > 0]) for half in drawn])
    values = cka.cka(TEACHER, STUDENT)
    ends = values + np.quantile(by_hand - by_hand.mean(axis=0), [0.025, 0.975], axis=0)
    np.testing.assert_allclose(cka.intervals(TEACHER, STUDENT, drawn, values, 200), ends.T, atol=1e-5)


@pytest.mark.parametrize("rows", [(3, 3), (8, 9)])
def test_too_few_rows_are_refused(rows):
    with pytest.raises(ValueError, match="CKA of"):
        cka.cka(draw(0, rows[0], 2), draw(0, rows[1], 2))
