"""Ways of choosing: each against a plain implementation with all distances, and by its law; every law sees a planted fault."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from tinkit.host.select import points as points_module
from tinkit.host.select.choose import METHODS, choose, quality
from tinkit.host.select.cover import _without_idle, k_centre, maxi_min, mini_max, smallest_gap
from tinkit.host.select.medoids import k_medoids, refill, start
from tinkit.host.select.points import members, points_of


def blobs(groups=5, each=30, width=2, spread=0.3, seed=0):
    """(rows, group of each); the groups lie far apart."""
    angle = 2 * np.pi * np.arange(groups) / groups
    centres = np.stack([np.cos(angle), np.sin(angle)], 1) if width == 2 else np.eye(width)[:groups]
    owner = np.repeat(np.arange(groups), each)
    return 10 * centres[owner] + np.random.default_rng(seed).normal(0, spread, (len(owner), width)), owner


def scattered(count=60, width=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


SPACES = [("euclidean", 2), ("euclidean", 40), ("cosine", 8)]


@pytest.mark.parametrize(("metric", "width"), SPACES)
def test_distances_are_scipy_s(metric, width, monkeypatch):
    monkeypatch.setattr(points_module, "BLOCK", 64)  # many blocks
    rows = scattered(50, width)
    points, wanted = points_of(rows, metric), cdist(rows, rows, metric)
    np.testing.assert_allclose(np.concatenate(list(points.blocks(np.arange(50), np.arange(50)))), wanted, atol=2e-6)
    np.testing.assert_allclose(points.to_one(7), wanted[:, 7], atol=2e-6)
    owner, distance = points.nearest(np.array([3, 11, 40]))
    assert (owner == wanted[:, [3, 11, 40]].argmin(1)).all()
    np.testing.assert_allclose(distance, wanted[:, [3, 11, 40]].min(1), atol=2e-6)


def test_of_equally_near_centres_the_first_counts():
    owner, _ = points_of([[0.0, 0], [2, 0], [1, 0]], "euclidean").nearest(np.array([1, 0]))
    assert owner.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("rows", "metric"), [([[1.0, np.nan]], "cosine"), ([[1.0, 2]], "manhattan"), ([], "cosine")])
def test_what_are_no_points_is_refused(rows, metric):
    with pytest.raises(ValueError, match=r"points are rows|is none of"):
        points_of(rows, metric)


def plain_k_medoids(distances, medoids, rounds=300):
    """Alternate updates with all distances in memory: the textbook."""
    for _ in range(rounds):
        owner = distances[:, medoids].argmin(1)
        moved = []
        for number, medoid in enumerate(medoids):
            cluster = np.flatnonzero(owner == number)
            sums = distances[np.ix_(cluster, cluster)].sum(1)
            moved.append(medoid if sums[cluster == medoid] <= sums.min() + 1e-9 else cluster[sums.argmin()])
        if np.array_equal(moved, medoids):
            return np.array(medoids)
        medoids = np.array(moved)
    return medoids


@pytest.mark.parametrize(("metric", "width"), SPACES)
@pytest.mark.parametrize("seed", range(4))
def test_k_medoids_are_those_of_the_textbook_from_the_same_start(metric, width, seed, monkeypatch):
    monkeypatch.setattr(points_module, "BLOCK", 100)
    rows = scattered(90, width, seed)
    points = points_of(rows, metric)
    first = start(points, 6, np.random.default_rng(seed))
    found = k_medoids(points, 6, seed)
    assert sorted(found) == sorted(plain_k_medoids(cdist(rows, rows, metric), first))


def settled(distances, owner, medoids):
    """The law of k-medoids: no member of a cluster has a smaller sum of distances to it than the medoid."""
    clusters = [np.flatnonzero(owner == number) for number in range(len(medoids))]
    sums = [distances[np.ix_(cluster, cluster)].sum(1) for cluster in clusters]
    return all(
        of.min() >= distances[medoid, cluster].sum() - 1e-6 for of, medoid, cluster in zip(sums, medoids, clusters)
    )


@pytest.mark.parametrize(("metric", "width"), SPACES)
def test_each_medoid_is_the_middle_of_its_cluster(metric, width):
    rows = scattered(120, width, 3)
    distances = cdist(rows, rows, metric)
    medoids = k_medoids(points_of(rows, metric), 7, 0)
    owner = distances[:, medoids].argmin(1)
    assert settled(distances, owner, medoids)
    for other in np.flatnonzero(owner == 0):  # planted: the first one moved to a fellow
        assert settled(distances, owner, np.append(other, medoids[1:])) == (other == medoids[0])


def test_k_medoids_never_cost_more_than_their_start():
    for seed in range(10):
        points = points_of(scattered(80, 2, seed), "euclidean")
        first = quality(points, start(points, 8, np.random.default_rng(seed)))["sum"]
        assert quality(points, k_medoids(points, 8, seed))["sum"] <= first


@pytest.mark.parametrize("name", ["k-medoids", "k-centre", "mini-max", "maxi-min"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_every_far_group_gets_one(name, metric):
    rows, owner = blobs(6, 25, width=8 if metric == "cosine" else 2)
    for seed in range(5):
        assert len(set(owner[choose(points_of(rows, metric), 6, name, seed)])) == 6


def test_random_misses_some_group_sometimes():
    rows, owner = blobs(6, 25)
    points = points_of(rows, "euclidean")
    assert min(len(set(owner[choose(points, 6, "random", seed)])) for seed in range(20)) < 6


def test_a_medoid_without_pictures_goes_to_the_farthest():
    rows = np.array([[0.0, 0], [0, 0], [1, 0], [9, 0]])
    points, medoids = points_of(rows, "euclidean"), np.array([0, 1])  # the second lies on the first
    owner, distance = points.nearest(medoids)
    refill(points, medoids, owner, distance)
    assert medoids.tolist() == [0, 3]
    assert owner.tolist() == [0, 0, 0, 1]
    assert distance.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("name", METHODS)
def test_copies_are_not_chosen_twice_by_number(name, metric):
    rows = np.repeat([[1.0, 0], [0, 1], [-1, 0]], [30, 3, 2], axis=0)
    points = points_of(rows, metric)
    for count in (1, 3, 10, 35):
        assert len(set(choose(points, count, name, 1))) == count
    if name != "random":
        assert len(np.unique(rows[choose(points, 3, name, 1)], axis=0)) == 3


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("name", METHODS)
def test_pictures_that_are_almost_copies_are_not_chosen_twice_by_number(name, metric):
    for seed in range(40):
        random = np.random.default_rng(seed)
        close = 3e-5 * random.normal(
            size=(28, 24)
        )  # their cosines are 1 but for rounding, their sums of distances differ
        points = points_of((random.normal(size=(3, 24))[np.arange(28) % 3] + close).astype(np.float32), metric)
        for count in (5, 26):
            assert len(set(choose(points, count, name, seed).tolist())) == count


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_gives_the_same_choice_and_blocks_do_not_matter(name, monkeypatch):
    for metric, width in SPACES:
        points = points_of(scattered(70, width, 5), metric)
        first = [choose(points, 9, name, seed).tolist() for seed in range(6)]
        assert len({tuple(sorted(found)) for found in first}) > 1
        monkeypatch.setattr(points_module, "BLOCK", 50)
        assert [choose(points, 9, name, seed).tolist() for seed in range(6)] == first
        monkeypatch.undo()


@pytest.mark.parametrize("name", METHODS)
def test_one_and_all_can_be_chosen(name):
    points = points_of(scattered(12), "euclidean")
    assert len(choose(points, 1, name)) == 1
    assert sorted(choose(points, 12, name)) == list(range(12))
    assert choose(points, 3, name).dtype == np.int64


def test_counts_and_methods_that_are_none_are_refused():
    points = points_of(scattered(5), "euclidean")
    for count in (0, 6):
        with pytest.raises(ValueError, match="of 5 points"):
            choose(points, count)
    with pytest.raises(ValueError, match="k-medoids"):
        choose(points, 2, "kmediods")


def radius_of(distances, chosen):
    return distances[:, list(chosen)].min(1).max()


def gap_of(distances, chosen):
    return min(distances[a, b] for a, b in itertools.combinations(chosen, 2))


def test_k_centre_is_the_farthest_point_every_time():
    rows = scattered(50, 2, 1)
    distances = cdist(rows, rows)
    found = k_centre(points_of(rows, "euclidean"), 8, 4)
    for known in range(1, 8):
        assert found[known] == distances[:, found[:known]].min(1).argmax()


def test_coverage_is_between_the_best_possible_and_the_greedy_one():
    better = 0
    for seed in range(12):
        rows = scattered(13, 2, seed)
        distances, points = cdist(rows, rows), points_of(rows, "euclidean")
        every = list(itertools.combinations(range(13), 4))
        best_radius = min(radius_of(distances, chosen) for chosen in every)
        best_gap = max(gap_of(distances, chosen) for chosen in every)
        greedy = k_centre(points, 4, seed)
        balls, apart = mini_max(points, 4, seed), maxi_min(points, 4, seed)
        assert radius_of(distances, greedy) <= 2 * best_radius + 1e-12  # Gonzalez
        assert best_radius - 1e-12 <= radius_of(distances, balls) <= radius_of(distances, greedy)
        assert gap_of(distances, greedy) <= gap_of(distances, apart) <= best_gap + 1e-12
        better += radius_of(distances, balls) < radius_of(distances, greedy)
        better += gap_of(distances, apart) > gap_of(distances, greedy)
    assert better > 6  # and they do improve on it


def test_mini_max_of_one_is_the_middle_of_the_smallest_ball():
    rows = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0], [4, 0], [4.1, 0]])
    assert mini_max(points_of(rows, "euclidean"), 1, 0).tolist() == [2]


def test_centres_that_no_picture_needs_are_taken_out():
    points = points_of([[0.0, 0], [1, 0], [2, 0], [10, 0]], "euclidean")
    assert _without_idle(points, np.array([0, 1, 3]), radius=1.0).tolist() == [1, 3]
    assert _without_idle(points, np.array([0, 1, 3]), radius=0.5).tolist() == [0, 1, 3]
    assert len(_without_idle(points, np.array([0, 1, 3]), radius=100.0)) == 1


def test_the_smallest_gap_and_the_quality_worked_out_by_hand(monkeypatch):
    monkeypatch.setattr(points_module, "BLOCK", 2)
    points = points_of([[0.0, 0], [3, 0], [3, 4], [0, 5]], "euclidean")
    assert smallest_gap(points, np.array([0, 1, 2])) == 3
    assert smallest_gap(points, np.array([0])) == np.inf
    assert quality(points, np.array([0, 2])) == {
        "max_radius": pytest.approx(np.sqrt(10)),  # of (0, 5) to (3, 4)
        "min_gap": 5.0,
        "sum": pytest.approx(3 + np.sqrt(10)),
        "mean": pytest.approx((3 + np.sqrt(10)) / 4),
    }
    assert quality(points, np.array([0]))["min_gap"] == 0


def test_a_start_is_drawn_by_squared_distance_and_the_better_of_two_draws_is_kept():
    """Hand-worked for points at 0, 1, 2, 3 begun at 0: they weigh 1, 4, 9 of 14. With the point at 1 squares of 5 are left, with
    that at 2 or 3 squares of 2; so 1 needs both draws (1/196), and of 2 and 3 the one drawn first is kept (60 and 135)."""
    points = points_of([[0.0], [1], [2], [3]], "euclidean")
    pairs = [start(points, 2, np.random.default_rng(seed)) for seed in range(4000)]
    second = np.bincount([int(pair[1]) for pair in pairs if pair[0] == 0], minlength=4)[1:]
    assert stats.chisquare(second, np.array([1, 60, 135]) / 196 * second.sum()).pvalue > 1e-3
    assert stats.chisquare(second, np.array([1, 4, 9]) / 14 * second.sum()).pvalue < 1e-3  # a single draw


def test_random_draws_every_picture_as_often():
    points = points_of(scattered(20), "euclidean")
    drawn = np.bincount(np.concatenate([choose(points, 5, "random", seed) for seed in range(400)]), minlength=20)
    assert stats.chisquare(drawn).pvalue > 1e-3


def test_members_are_the_clusters():
    assert [found.tolist() for found in members(np.array([2, 0, 2, 0]), 4)] == [[1, 3], [], [0, 2], []]


BIG = """
import numpy as np
from tinkit.device.board import peak_memory_mb
from tinkit.host.select.choose import METHODS, choose
from tinkit.host.select.points import points_of
random = np.random.default_rng(0)
for rows, metric in ((random.normal(size=(50000, 2)), "euclidean"), (random.normal(size=(50000, 64)).astype("f"), "cosine")):
    for name in METHODS:
        assert len(set(choose(points_of(rows, metric), 40, name))) == 40
print(int(peak_memory_mb()))
"""


@pytest.mark.slow
def test_50_000_pictures_take_less_than_a_gigabyte():
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000  # MB; all distances at once would be 20,000
