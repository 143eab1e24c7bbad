"""Nearest neighbours against scikit-learn, across the borders of chunks, with ties, and with faiss where it is installed."""

import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from tinkit.host.evaluate import neighbours
from tinkit.host.evaluate.neighbours import nearest, nearest_to, unit_rows

ENGINES = ["numpy", "faiss"]


@pytest.fixture(params=ENGINES)
def _engine(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(neighbours, "faiss", None)
    elif neighbours.faiss is None:
        pytest.skip("faiss is not installed")


@pytest.fixture
def _small_chunks(monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    monkeypatch.setattr(neighbours, "BANK", 11)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_sklearn(bank, queries, k):
    found = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(bank.astype(np.float64))
    distance, indices = found.kneighbors(queries.astype(np.float64))
    return indices, 1 - distance


@pytest.mark.usefixtures("_engine", "_small_chunks")
@pytest.mark.parametrize("k", [1, 5, 30])
def test_the_nearest_are_those_of_scikit_learn(k):
    bank, queries = draw(0, 61, 9), draw(1, 23, 9)
    indices, cosines = nearest(bank, queries, k)
    expected, expected_cosines = by_sklearn(bank, queries, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-6)
    assert (indices.dtype, cosines.dtype) == (np.int64, np.float32)


@pytest.mark.usefixtures("_engine", "_small_chunks")
def test_a_picture_leaves_itself_out_and_only_itself():
    bank = draw(2, 40, 6)
    bank[17] = bank[3]  # a copy is a neighbour
    indices, cosines = nearest(bank, bank, 4, among_itself=True)
    expected, _ = by_sklearn(bank, bank, 5)
    for row in range(40):
        assert set(indices[row]) == set(expected[row]) - {row}
    assert (indices[17, 0], indices[3, 0]) == (3, 17)
    np.testing.assert_allclose(cosines[17, 0], 1, atol=1e-6)


@pytest.mark.usefixtures("_engine", "_small_chunks")
def test_some_pictures_have_the_neighbours_that_they_have_among_all():
    bank = draw(3, 50, 6)
    picked = np.array([49, 0, 12, 11])
    some, all_of_them = nearest_to(bank, picked, 9), nearest(bank, bank, 9, among_itself=True)
    np.testing.assert_array_equal(some[0], all_of_them[0][picked])
    np.testing.assert_allclose(some[1], all_of_them[1][picked], atol=1e-6)


@pytest.mark.usefixtures("_engine", "_small_chunks")
def test_equal_cosines_go_to_the_lower_index_wherever_the_borders_are():
    bank = np.zeros((40, 4), np.float32)
    bank[:, 1] = 1
    bank[[5, 13, 29]] = [1, 0, 0, 0]
    indices, _ = nearest(bank, np.array([[1, 0, 0, 0], [0, 2, 0, 0]]), 6)
    assert indices.tolist() == [[5, 13, 29, 0, 1, 2], [0, 1, 2, 3, 4, 6]]
    among, _ = nearest(bank, bank, 3, among_itself=True)
    assert among[0].tolist() == [1, 2, 3]
    assert among[13].tolist() == [5, 29, 0]


@pytest.mark.usefixtures("_engine")
def test_k_is_cut_to_what_there_is():
    bank = draw(4, 5, 3)
    assert nearest(bank, bank[:2], 50)[0].shape == (2, 5)
    indices, cosines = nearest(bank, bank, 50, among_itself=True)
    assert [sorted(row) for row in indices.tolist()] == [[j for j in range(5) if j != i] for i in range(5)]
    assert np.isfinite(cosines).all()


@pytest.mark.parametrize("bank", [np.zeros((0, 3)), np.zeros((1, 3))])
def test_an_empty_bank_is_refused(bank):
    with pytest.raises(ValueError, match="empty bank"):
        nearest(bank, bank, 1, among_itself=len(bank) == 1)


def test_no_queries_have_no_neighbours():
    indices, cosines = nearest(draw(5, 4, 3), np.zeros((0, 3)), 2)
    assert indices.shape == cosines.shape == (0, 2)


@pytest.mark.usefixtures("_engine")
def test_a_row_that_is_not_finite_is_near_to_nothing():
    bank = np.abs(draw(6, 12, 4))
    bank[4, 2], bank[5, 0] = np.nan, np.inf
    indices, cosines = nearest(bank, bank, 3, among_itself=True)
    kept = [i for i in range(12) if i not in (4, 5)]
    assert not np.isin(indices[kept], [4, 5]).any()
    assert (cosines[[4, 5]] == 0).all()


def test_unit_rows_have_length_one_and_zero_rows_stay():
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], atol=1e-7)
    assert rows.dtype == np.float32


@pytest.mark.usefixtures("_engine")
def test_a_memory_map_is_read_as_it_is(tmp_path):
    rows = draw(7, 30, 5)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    np.testing.assert_array_equal(nearest(mapped, mapped, 4, True)[0], nearest(rows, rows, 4, True)[0])


@pytest.mark.usefixtures("_engine")
def test_memory_is_that_of_chunks(monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", 256)
    monkeypatch.setattr(neighbours, "BANK", 1024)
    rows = draw(8, 5000, 4)
    tracemalloc.start()
    try:
        nearest(rows, rows, 3, among_itself=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10e6  # all cosines at once are 100 MB


def test_the_engine_says_its_name(monkeypatch):
    monkeypatch.setattr(neighbours, "faiss", None)
    assert neighbours.engine() == "numpy"
