"""A store filled by several processes: the same rows as from one, begun by n and finished by m, never corrupt."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_store import Arithmetic, Listing, MadeViews, bytes_of

from tinkit.host.store import open_or_build, shards
from tinkit.host.store.shards import pictures_per_shard


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "stores")


def by_ranks(root, ranks, teachers=None, count=45):
    """What each of `ranks` threads gets that fill a store together."""
    barrier = threading.Barrier(ranks, timeout=60)
    teachers = teachers or [Arithmetic() for _ in range(ranks)]

    def one(rank):
        try:
            return open_or_build(
                root, teachers[rank], MadeViews(Listing(count)), batch=8, rank=rank, ranks=ranks, barrier=barrier.wait
            )
        except Exception:
            barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as threads:
        return [future.result() for future in [threads.submit(one, rank) for rank in range(ranks)]]


@pytest.mark.parametrize("rows", [16, 65_536])
@pytest.mark.parametrize("ranks", [2, 3, 20])
def test_n_ranks_write_what_one_writes(tmp_path, monkeypatch, ranks, rows):
    monkeypatch.setattr(shards, "SHARD_ROWS", rows)
    alone = open_or_build(str(tmp_path / "alone"), Arithmetic(), MadeViews(Listing(45)), batch=8)
    teachers = [Arithmetic() for _ in range(ranks)]
    together = by_ranks(str(tmp_path / "together"), ranks, teachers)
    for store in together:
        for name in ("global", "local"):
            assert np.array_equal(np.asarray(store.arrays[name]), np.asarray(alone.arrays[name]))
    assert sum(teacher.seen for teacher in teachers) == 90
    batches = -(-45 // 4)
    assert sum(teacher.seen > 0 for teacher in teachers) >= min(ranks, batches // 2)


@pytest.mark.parametrize(("begun_by", "finished_by"), [(3, 1), (1, 3), (2, 5)])
def test_what_n_ranks_began_m_ranks_finish(tmp_path, root, monkeypatch, begun_by, finished_by):
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)
    whole = by_ranks(str(tmp_path / "whole"), begun_by)[0]
    first = [Arithmetic(fail_after=8) for _ in range(begun_by)]
    with pytest.raises((RuntimeError, threading.BrokenBarrierError)):
        by_ranks(root, begun_by, first)
    rest = [Arithmetic() for _ in range(finished_by)]
    store = by_ranks(root, finished_by, rest)[0]
    assert bytes_of(store) == bytes_of(whole)
    assert sum(t.seen for t in rest) == 90 - sum(t.seen for t in first)


def test_each_rank_has_its_own_files(root, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)
    store = by_ranks(root, 2)[0]
    assert store.shards.layout.shards % 2 == 0
    assert len([name for name in os.listdir(store.path) if name.endswith(".jsonl")]) == store.shards.layout.shards


def test_several_ranks_without_a_barrier_are_a_programmer_s_error(root):
    with pytest.raises(ValueError, match="barrier"):
        open_or_build(root, Arithmetic(), MadeViews(Listing(5)), rank=0, ranks=2)


@pytest.mark.parametrize("row_bytes", [1, 5_000, 125_000, 3_000_000, 1 << 31])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 10_000, 1_000_000])
@pytest.mark.parametrize("views", [1, 4, 100_000])
@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_a_shard_is_whole_batches_within_its_limits(row_bytes, count, views, ranks):
    step = max(1, 64 // views)
    pictures = pictures_per_shard(row_bytes, count, views, step, ranks)
    rows = pictures * views
    assert pictures >= 1
    assert pictures == 1 or (rows <= shards.SHARD_ROWS and rows * row_bytes <= shards.SHARD_BYTES)
    assert pictures % step == 0 or rows + views > shards.SHARD_BYTES // row_bytes or pictures >= count / ranks
    if count >= 2 * step * ranks and pictures % step == 0:
        assert -(-count // pictures) >= ranks
