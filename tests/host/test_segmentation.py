"""Segmentation: IoU against scikit-learn and by hand, the matching against every permutation, planted good and bad networks."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from tinkit.errors import TinkitError
from tinkit.host.evaluate import segmentation as module
from tinkit.host.evaluate.iou import accuracy, counts, judged, mean_iou
from tinkit.host.evaluate.masks import IGNORE
from tinkit.host.evaluate.segmentation import patch_labels, segmentation

CLASSES = ("sky", "ground", "dog")


def test_iou_and_accuracy_are_scikit_learns():
    random = np.random.default_rng(0)
    truth, answer = random.integers(0, 5, (2, 4, 20, 20))
    truth[truth == 3] = 1  # class 3 is in the answers only
    truth[random.random(truth.shape) < 0.2] = IGNORE
    total = sum(counts(one, other, 5) for one, other in zip(answer, truth))
    known = truth != IGNORE
    expected = jaccard_score(truth[known], answer[known], labels=[0, 1, 2, 4], average="macro")
    assert mean_iou(total) == pytest.approx(expected)
    assert accuracy(total) == pytest.approx(accuracy_score(truth[known], answer[known]))
    block = judged(answer, truth, truth, list("abcde"))
    assert block["teacher"]["miou"] == pytest.approx(expected)
    assert (block["student"]["miou"], block["student"]["accuracy"]) == (1.0, 1.0)
    assert block["agreement"] == pytest.approx(accuracy_score(truth[known], answer[known]))
    by_class = jaccard_score(truth[known], answer[known], labels=range(5), average=None)
    for c, line in enumerate(block["classes"]):
        assert line["pixels"] == (truth == c).sum()
        assert line["teacher"] == (None if c == 3 else pytest.approx(by_class[c]))


def test_iou_by_hand():
    truth = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORE]])
    answer = np.array([[0, 1, 1, 1], [0, 0, 2, 2]])
    found = counts(answer, truth, 3)
    assert found.tolist() == [[3, 2, 0], [4, 3, 0], [3, 3, 1]]
    assert mean_iou(found) == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert accuracy(found) == pytest.approx(5 / 7)


def test_intervals_are_over_pictures_and_a_change_is_of_the_same_pictures():
    random = np.random.default_rng(1)
    truth = random.integers(0, 3, (30, 8, 8))
    wrong = random.random(truth.shape) < np.linspace(0, 0.8, 30)[:, None, None]
    teacher = np.where(wrong, (truth + 1) % 3, truth)
    block = judged(teacher, teacher, truth, CLASSES)
    assert block["change"] == {"miou": [0.0, 0.0], "accuracy": [0.0, 0.0]}
    low, high = block["student"]["accuracy_interval"]
    each = (teacher == truth).mean((1, 2))
    assert high - low == pytest.approx(2 * 1.96 * each.std(ddof=1) / 30**0.5, rel=0.2)
    low, high = block["student"]["miou_interval"]
    assert low < block["student"]["miou"] < high
    worse = judged(truth, teacher, truth, CLASSES)["change"]
    assert worse["miou"][1] < 0
    assert worse["accuracy"][1] < 0


def test_pictures_without_a_pixel_to_judge_are_left_out():
    truth = np.stack([np.full((4, 4), IGNORE), np.eye(4, dtype=int)])
    block = judged(truth * 0, truth * 0, truth, CLASSES)
    assert block["student"]["accuracy_interval"] == [0.75, 0.75]
    with pytest.raises(ValueError, match="no pixel"):
        judged(truth[:1], truth[:1], truth[:1], CLASSES)


def test_a_patch_has_the_label_of_most_of_its_pixels():
    mask = np.array(
        [
            [0, 0, 1, 1],
            [0, 2, 2, 2],
            [255, 255, 1, 255],
            [255, 0, 1, 255],
        ]
    )
    assert patch_labels(mask, (2, 2), 3).tolist() == [0, 1, IGNORE, 1]  # a tie goes to the lower class
    assert patch_labels(mask, (4, 4), 3).tolist() == mask.ravel().tolist()
    # 5 pixels over 2 cells: the middle one is at 2.5 of 5, the border, and belongs to the second
    assert patch_labels(np.array([[0, 0, 1, 1, 1]]), (1, 2), 2).tolist() == [0, 1]
    assert patch_labels(np.array([[0, 0, 0, 1, 1]]), (1, 2), 2).tolist() == [0, 1]
    # more cells than pixels: cells without a pixel are not judged
    assert patch_labels(np.array([[1]]), (1, 3), 2).tolist() == [IGNORE, 1, IGNORE]


# --- two networks ---


def scene(count=16, grid=6, scale=4, seed=0):
    """(true class of each patch (N, L), masks of `scale` pixels a patch)."""
    truth = np.random.default_rng(seed).integers(0, 3, (count, grid, grid))
    return truth.reshape(count, -1), truth.repeat(scale, 1).repeat(scale, 2).astype(np.uint8)


def network(truth_NL, noise=0.05, width=8, seed=1):
    """Local features that say the class of each patch, and something else."""
    rows = noise * np.random.default_rng(seed).normal(size=(*truth_NL.shape, width))
    return (rows + np.eye(3, width)[truth_NL]).astype(np.float32)


def test_a_good_network_is_good_and_a_blind_one_is_at_chance():
    truth, masks = scene()
    blind = np.random.default_rng(5).normal(size=(*truth.shape, 8)).astype(np.float32)
    block = segmentation(network(truth), blind, masks, CLASSES)
    assert block["pictures"] == {"train": 8, "validation": 3, "test": 5}
    for kind in ("linear", "kmeans"):
        found = block[kind]
        assert found["teacher"]["miou"] > 0.75  # corners of patches are lost to the blowing up
        assert found["student"]["miou"] < 0.3
        assert found["change"]["miou"][1] < -0.3
    # at one pixel a patch nothing is blown up, and nothing lost
    one = segmentation(network(truth), network(truth), masks[:, ::4, ::4], CLASSES)
    assert one["linear"]["teacher"]["miou"] == one["kmeans"]["student"]["miou"] == 1.0
    assert one["linear"]["agreement"] == 1.0


def test_grids_may_differ_and_be_no_squares():
    truth, masks = scene(grid=6)
    coarse = network(truth).reshape(16, 6, 2, 3, 8).mean(3).reshape(16, 12, 8)  # 6 x 2
    block = segmentation(network(truth), coarse, masks, CLASSES, grid_s=(6, 2))
    assert 0.15 < block["linear"]["student"]["miou"] < block["linear"]["teacher"]["miou"] - 0.2
    with pytest.raises(ValueError, match="no grid"):
        segmentation(network(truth), coarse, masks, CLASSES)
    turned = segmentation(network(truth), network(truth), masks[:, :, :12], CLASSES)  # squeezed masks
    assert turned["linear"]["change"]["miou"] == [0.0, 0.0]


def test_what_is_not_judged_is_neither_fitted_on_nor_counted():
    truth, masks = scene()
    spoilt = network(truth)
    hidden = truth == 2
    spoilt[hidden] = network((truth + 1) % 3)[hidden]  # where it is wrong nobody looks
    block = segmentation(spoilt, spoilt, np.where(masks == 2, IGNORE, masks)[:, ::4, ::4], CLASSES)
    assert block["linear"]["teacher"]["accuracy"] == block["kmeans"]["teacher"]["accuracy"] == 1.0
    assert [line["pixels"] > 0 for line in block["linear"]["classes"]] == [True, True, False]
    assert "dog" in " ".join(block["notes"])


def test_it_is_judged_on_pictures_that_were_not_fitted_on():
    """Features that are different in every picture: learnt by heart they are of no use for another one."""
    truth, masks = scene(count=20)
    features = np.zeros((20, 36, 60), np.float32)
    for n in range(20):
        features[n, :, 3 * n : 3 * n + 3] = np.eye(3)[truth[n]]
    block = segmentation(features, features, masks[:, ::4, ::4], CLASSES)
    assert block["linear"]["teacher"]["miou"] < 0.35


def test_equal_pictures_are_on_one_side():
    contents = np.array(["a", "b", "c", "d", "e", "f"]).repeat(3)
    for seed in range(5):
        parts = module._drawn_parts(contents, seed)
        sides = [set(contents[index]) for index in parts.values()]
        assert [len(side) for side in sides] == [3, 1, 2]
        assert set.union(*sides) == set("abcdef")
    same, other = (module._drawn_parts(contents, seed)["train"].tolist() for seed in (3, 4))
    assert same == module._drawn_parts(contents, 3)["train"].tolist() != other


def test_clusters_go_to_classes_as_the_best_permutation_does():
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, 200)
    rows = np.eye(4, 6)[labels] + 0.45 * random.normal(size=(200, 6))
    scores, notes = module._cluster(rows.astype(np.float32), labels, 4, 0)
    answers = scores(rows.astype(np.float32)).argmax(1)
    share = (answers == labels).mean()
    assert 0.6 < share < 1
    assert share == max((np.array(order)[answers] == labels).mean() for order in permutations(range(4)))
    assert notes == []


def test_the_score_of_a_cluster_is_highest_for_the_nearest_centre(monkeypatch):
    made = []

    class Watched(module.KMeans):
        def fit(self, rows):
            made.append(super().fit(rows))
            return self

    monkeypatch.setattr(module, "KMeans", Watched)
    rows = np.random.default_rng(6).normal(size=(100, 5)).astype(np.float32)
    labels = np.arange(100) % 3
    scores, _ = module._cluster(rows, labels, 5, 0)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = scores(7 * rows).argmax(1)  # length does not matter
    clusters = made[0].predict(unit)
    assert len({(a, b) for a, b in zip(found, clusters)}) == 3  # one class a cluster
    assert set(found) <= {0, 1, 2}  # classes 3 and 4 were not seen


def test_a_collapsed_student_is_told_and_does_not_crash():
    truth, masks = scene()
    flat = np.ones((16, 36, 8), np.float32)
    block = segmentation(network(truth), flat, masks, CLASSES)
    assert "student: k-means found 1 clusters, 3 were asked for" in block["notes"]
    assert block["linear"]["student"]["miou"] < 0.2
    assert block["kmeans"]["student"]["miou"] < 0.2


def test_too_few_masks_are_said():
    truth, masks = scene()
    teacher = network(truth)
    with pytest.raises(TinkitError, match="Too few pictures"):
        segmentation(teacher[:4], teacher[:4], masks[:4], CLASSES)
    with pytest.raises(TinkitError, match="Too few pictures"):
        segmentation(teacher, teacher, masks, CLASSES, contents=["same"] * 16)
    with pytest.raises(TinkitError, match="too few to learn"):
        segmentation(teacher, teacher, masks * 0, CLASSES)
    test = module._drawn_parts(np.arange(16), 0)["test"]
    unjudged = masks.copy()
    unjudged[test] = IGNORE
    with pytest.raises(TinkitError, match="too few to learn") as error:
        segmentation(teacher, teacher, unjudged, CLASSES)
    assert error.value.seen == "0 pixels to judge on"
    specks = np.full_like(masks, IGNORE)  # one pixel of each patch: every patch is mostly not judged
    specks[:, ::4, ::4] = masks[:, ::4, ::4]
    with pytest.raises(TinkitError, match="too few to learn") as error:
        segmentation(teacher, teacher, specks, CLASSES)
    assert error.value.seen == "0 classes that fill most of a patch"
    with pytest.raises(ValueError, match="16, 15 pictures"):
        segmentation(teacher, teacher[:15], masks, CLASSES)


@pytest.mark.parametrize("part", ["train", "test"])
def test_features_that_are_not_finite_are_refused(part):
    truth, masks = scene()
    teacher, student = network(truth), network(truth)
    student[module._drawn_parts(np.arange(16), 0)[part][0], 3, 0] = np.inf
    with pytest.raises(TinkitError, match="not finite"):
        segmentation(teacher, student, masks, CLASSES)


def test_patches_are_sampled_by_seed_and_stay_with_their_labels(monkeypatch):
    truth, masks = scene()
    rows = np.broadcast_to(truth[:, :, None], (16, 36, 2)).astype(np.float32)
    found = [module._patches(rows, masks, (6, 6), range(16), 3, 50, seed) for seed in (0, 0, 1)]
    for features, labels in found:
        assert features.shape == (50, 2)
        np.testing.assert_array_equal(features[:, 0], labels)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert (found[0][1] != found[2][1]).any()
