"""Similarity maps against scipy and scikit-learn, the laws that they keep, planted faults, and the block for the page."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics.pairwise import cosine_similarity

from tinkit.errors import TinkitError
from tinkit.host.evaluate.dense import CENTRE, dense, measures
from tinkit.host.evaluate.masks import Masks
from tinkit.host.evaluate.similarity_maps import CHUNK, common_grid, correlation_of_maps, similarity_maps
from tinkit.host.features import resample_grid

GRID = (4, 5)


def local(count=3, grid=GRID, width=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, grid[0] * grid[1], width)).astype(np.float32)


def rotation(width, seed=9):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0].astype(np.float32)


def test_maps_and_correlations_are_those_of_scikit_learn_and_scipy():
    teacher, student = local(), local(width=9, seed=1)
    found = similarity_maps(teacher, GRID, student, GRID, points=[0, 13])
    assert found.points_NP.tolist() == [[0, 13]] * 3
    for n in range(3):
        cosines = [cosine_similarity(rows[n]) for rows in (teacher, student)]
        for place, point in enumerate((0, 13)):
            np.testing.assert_allclose(found.teacher_NPHW[n, place].ravel(), cosines[0][point], atol=1e-6)
            np.testing.assert_allclose(found.student_NPHW[n, place].ravel(), cosines[1][point], atol=1e-6)
        following = cosine_similarity(student[(n + 1) % 3])
        for point in range(20):
            others = np.arange(20) != point
            expected = pearsonr(cosines[0][point, others], cosines[1][point, others])[0]
            assert found.correlation_NL[n, point] == pytest.approx(expected, abs=1e-5)
            expected = pearsonr(cosines[0][point, others], following[point, others])[0]
            assert found.shifted_NL[n, point] == pytest.approx(expected, abs=1e-5)


def test_a_turned_and_scaled_student_is_equal_and_a_shuffled_one_is_not():
    teacher = local(width=32)
    turned = 3 * teacher @ rotation(32)
    assert similarity_maps(teacher, GRID, turned, GRID).correlation_NL.min() > 0.9999
    shuffled = turned[:, np.random.default_rng(1).permutation(20)]
    assert similarity_maps(teacher, GRID, shuffled, GRID).correlation_NL.mean() < 0.3
    opposite = correlation_of_maps(*(np.stack([sign * cosine_similarity(teacher[0])]) for sign in (1, -1)))
    np.testing.assert_allclose(opposite, -1, atol=1e-6)


def test_the_position_itself_does_not_count():
    """Two unrelated maps share the 1 of the position itself; with it the correlation would be far from 0."""
    teacher, student = local(40, (6, 6), 64), local(40, (6, 6), 64, seed=1)
    assert abs(similarity_maps(teacher, (6, 6), student, (6, 6)).correlation_NL.mean()) < 0.02
    cosines = [cosine_similarity(rows[0]) for rows in (teacher, student)]
    assert pearsonr(cosines[0][0], cosines[1][0])[0] > 0.4


def test_a_flat_student_has_learned_nothing_and_a_flat_teacher_asks_nothing():
    teacher, flat = local(2), np.ones((2, 20, 6), np.float32)
    assert (similarity_maps(teacher, GRID, flat, GRID).correlation_NL == 0).all()
    assert np.isnan(similarity_maps(flat, GRID, teacher, GRID).correlation_NL).all()
    assert np.isnan(similarity_maps(flat, GRID, flat, GRID).correlation_NL).all()
    block = dense(flat, GRID, teacher, GRID, ["a", "b"])
    assert (block["map_correlation"], block["maps"], measures(block)) == (None, [], [])
    assert "2 pictures left out" in block["notes"][0]
    one = np.concatenate([flat[:1], teacher[1:]])
    assert dense(one, GRID, teacher, GRID, ["a", "b"])["map_correlation"]["pictures"] == 1


def test_the_common_grid_is_the_coarser_one_by_area_averages():
    assert common_grid((16, 14), (7, 21)) == (7, 14)
    teacher, student = local(2, (8, 6)), local(2, (4, 3), seed=1)
    small = teacher.reshape(2, 4, 2, 3, 2, 6).mean((2, 4)).reshape(2, 12, 6)  # by hand: 2 x 2 positions each
    found, expected = (
        similarity_maps(rows, grid, student, (4, 3)) for rows, grid in ((teacher, (8, 6)), (small, (4, 3)))
    )
    assert found.grid == (4, 3)
    np.testing.assert_allclose(found.correlation_NL, expected.correlation_NL, atol=1e-5)
    # each way on its own: 8 x 3 against 4 x 6 meets at 4 x 3
    assert similarity_maps(local(2, (8, 3)), (8, 3), local(2, (4, 6)), (4, 6)).grid == (4, 3)


def test_chunks_and_memory_maps_change_nothing(tmp_path):
    count = CHUNK + 3
    teacher, student = local(count), local(count, seed=1)
    maps = []
    for name, rows in (("t", teacher), ("s", student)):
        rows.tofile(tmp_path / name)
        maps.append(np.memmap(tmp_path / name, np.float32, "r", shape=rows.shape))
    found = similarity_maps(maps[0], GRID, maps[1], GRID)
    assert found.correlation_NL.shape == (count, 20)
    for n in (0, CHUNK - 1, CHUNK, count - 1):
        alone = similarity_maps(teacher[[n]], GRID, student[[n]], GRID)
        np.testing.assert_allclose(found.correlation_NL[n], alone.correlation_NL[0], atol=1e-6)
        np.testing.assert_array_equal(found.points_NP[n], alone.points_NP[0])
        assert alone.shifted_NL.shape == (0, 20)
        other = similarity_maps(teacher[[n]], GRID, student[[(n + 1) % count]], GRID)
        np.testing.assert_allclose(found.shifted_NL[n], other.correlation_NL[0], atol=1e-6)


def test_the_points_are_the_centre_and_the_most_central_of_the_worst():
    grid = (5, 5)
    teacher = local(1, grid, 32)
    student = teacher.copy()
    student[0, [0, 7]] = local(1, grid, 32, seed=3)[0, :2]  # two positions of 24 others are wrong: a tenth
    found = similarity_maps(teacher, grid, student, grid)
    assert set(np.argsort(found.correlation_NL[0])[:2]) == {0, 7}
    assert found.points_NP.tolist() == [[12, 7]]
    assert similarity_maps(local(1), GRID, local(1), GRID).points_NP[0, 0] == 2 * 5 + 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student_local": local(2)}, "3 pictures of the teacher, 2 of the student"),
        ({"grid_t": (4, 4)}, "not \\(N, L, D\\)"),
        ({"student_local": local()[:, 0]}, "not \\(N, L, D\\)"),
        ({"grid_s": (20, 1)}, "4 x 1|cannot be compared"),
        ({"teacher_local": local(0), "student_local": local(0)}, "0 pictures"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, words):
    given = {"teacher_local": local(), "grid_t": GRID, "student_local": local(), "grid_s": GRID, **change}
    if change.get("grid_s"):
        given.update(teacher_local=local(grid=(1, 3)), grid_t=(1, 3))
    with pytest.raises(ValueError, match=words):
        similarity_maps(**given)


@pytest.mark.parametrize("whose", ["teacher", "student"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(whose, value):
    rows = {"teacher": local(), "student": local()}
    rows[whose][2, 5, 0] = value
    with pytest.raises(TinkitError, match=f"{whose}'s local features are not finite"):
        similarity_maps(rows["teacher"], GRID, rows["student"], GRID)


# --- the block ---


def pair(count=12, noise=1.0):
    """Students that are the worse the higher the number of the picture; smooth features, as pictures have."""
    coarse = torch.from_numpy(local(count, (2, 2), 16))
    teacher = resample_grid(coarse, (2, 2), (6, 6)).numpy()
    amount = noise * np.arange(count, dtype=np.float32)[:, None, None] / count
    return teacher, teacher @ rotation(16) + amount * local(count, (6, 6), 16, seed=2)


def test_the_block_says_how_alike_with_an_interval_and_is_plain_data():
    teacher, student = pair()
    names = [f"{n}.jpg" for n in range(12)]
    block = dense(teacher, (6, 6), student, (6, 6), names, maps=5)
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert len(json.dumps(block)) < 20_000
    each = similarity_maps(teacher, (6, 6), student, (6, 6)).correlation_NL.mean(1)
    summary = block["map_correlation"]
    assert summary["mean"] == pytest.approx(each.mean())
    assert summary["min"] == pytest.approx(each.min())
    assert summary["p1"] == pytest.approx(np.percentile(each, 1))
    low, high = summary["interval"]
    assert low < summary["mean"] < high
    error = each.std(ddof=1) / 12**0.5
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.25)  # the normal approximation
    other = similarity_maps(teacher, (6, 6), np.roll(student, -1, 0), (6, 6)).correlation_NL.mean()
    assert summary["other_picture"] == pytest.approx(other)
    assert other < low
    (measure,) = measures(block)
    assert (measure.name, measure.group, measure.student) == ("map_correlation", "dense", summary["mean"])
    assert measure.interval == (low, high)


def test_the_pictures_shown_are_the_lowest_and_a_spread_over_the_rest():
    teacher, student = pair(noise=3.0)
    each = similarity_maps(teacher, (6, 6), student, (6, 6)).correlation_NL.mean(1)
    order = np.argsort(each).tolist()
    names = [f"{n}.jpg" for n in range(12)]
    shown = dense(teacher, (6, 6), student, (6, 6), names, maps=5)["maps"]
    assert [one["why"] for one in shown] == ["lowest"] * 3 + ["sample"] * 2
    assert [one["index"] for one in shown[:3]] == order[:3]
    assert shown[-1]["index"] == order[-1]
    assert len({one["index"] for one in shown}) == 5
    assert all(one["name"] == names[one["index"]] for one in shown)
    assert [one["correlation"] for one in shown] == pytest.approx([each[one["index"]] for one in shown])
    assert len(dense(teacher, (6, 6), student, (6, 6), names, maps=50)["maps"]) == 12
    assert len(dense(teacher[:1], (6, 6), student[:1], (6, 6), names[:1])["maps"]) == 1
    assert dense(teacher, (6, 6), student, (6, 6), names, maps=0)["maps"] == []


def test_a_map_shown_gives_the_cosines_back():
    teacher, student = pair(3)
    block = dense(teacher, (6, 6), student, (6, 6), ["a", "b", "c"])
    for one in block["maps"]:
        assert one["points"][0]["why"] == CENTRE
        for point in one["points"]:
            here = point["row"] * 6 + point["column"]
            others = np.arange(36) != here
            for whose, rows in (("teacher", teacher), ("student", student)):
                shown = np.array(point[whose])
                assert shown.shape == (6, 6)
                assert shown.ravel()[here] == 255
                seen = point["low"] + shown.ravel()[others] / 255 * (point["high"] - point["low"])
                cosines = cosine_similarity(rows[one["index"]])[here][others]
                np.testing.assert_allclose(seen, cosines, atol=(point["high"] - point["low"]) / 500)
            both = [np.delete(np.ravel(point[whose]), here) for whose in ("teacher", "student")]
            assert (np.min(both), np.max(both)) == (0, 255)


def test_a_grid_too_small_for_maps_is_said():
    block = dense(local(4, (4, 4)), (4, 4), local(4, (1, 3)), (1, 3), list("abcd"))
    assert block["map_correlation"] is None
    assert block["notes"] == ["no similarity maps: the common grid has 1 x 3 positions"]
    with pytest.raises(ValueError, match="3 names for 4"):
        dense(local(4), GRID, local(4), GRID, list("abc"))


def test_masks_of_some_pictures_are_asked_with_their_own_features():
    """Features that hold the answer only where a mask is: a shifted index would lose it."""
    random = np.random.default_rng(4)
    truth = random.integers(0, 3, (10, 6, 6))
    masks = truth.repeat(4, 1).repeat(4, 2).astype(np.uint8)
    teacher, student = local(14, (6, 6), 8), local(14, (6, 6), 8, seed=1)
    index = np.array([0, 1, 3, 5, 6, 7, 9, 10, 12, 13])
    for rows in (teacher, student):
        rows[index] = 0.1 * rows[index] + np.eye(3, 8, dtype=np.float32)[truth].reshape(10, 36, 8)
    given = Masks(index, masks, ("0", "1", "2"), tuple(f"hash {n}" for n in range(10)), missing=4)
    block = dense(teacher, (6, 6), student, (6, 6), [f"{n}.png" for n in range(14)], given)
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    found = {measure.name: measure for measure in measures(block)}
    assert set(found) == {"map_correlation", "miou", "kmeans_miou"}
    for name in ("miou", "kmeans_miou"):
        assert min(found[name].student, found[name].teacher) > 0.75
        assert found[name].interval[0] <= found[name].student <= found[name].interval[1]
        assert len(found[name].change) == 2
