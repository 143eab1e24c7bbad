"""The feature store: written once, continued where it was, read by picture and view, refused when it is another's."""

import os

import numpy as np
import pytest
import torch
from small_pair import TEACHER, teacher_weights
from small_store import Arithmetic, Listing, MadeViews, bytes_of

from tinkit.errors import TinkitError
from tinkit.host.features import resample_grid
from tinkit.host.images import scan
from tinkit.host.store import mapped, open_or_build, shards
from tinkit.host.teacher import load_teacher
from tinkit.host.views import AllViews, ViewPolicy

ALL = ("local", "logits", "taps")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)  # eight pictures of two views


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "stores")


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_the_teacher_s_own_features_of_those_views(photos, tmp_path, root, workers):
    teacher = load_teacher(TEACHER, teacher_weights(tmp_path), size=32)
    views = AllViews(scan(photos).usable[:20], ViewPolicy(), [teacher.preprocessing], 0.9, numbers=[0, 1])
    store = open_or_build(root, teacher, views, dtype="float32", workers=workers)
    found = store.features([3, 5], [1, 0])
    live = teacher.features(torch.stack([views[3][1], views[5][0]]))
    torch.testing.assert_close(found.global_BD, live.global_BD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.local_BLD, live.local_BLD, rtol=1e-5, atol=1e-6)
    assert found.grid == live.grid
    half = open_or_build(root, teacher, views, dtype="float16", workers=workers)
    assert half.path != store.path
    torch.testing.assert_close(half.features([3], [1]).global_BD, found.global_BD[:1], rtol=1e-3, atol=1e-4)


def test_every_part_of_every_row_of_many_shards_in_any_order(root, small_shards):
    teacher, views = Arithmetic(), MadeViews(Listing(37))
    store = open_or_build(root, teacher, views, parts=ALL, dtype="float32", batch=6)
    assert store.shards.layout.shards == 7
    assert len(os.listdir(store.path)) == 7 * 5 + 4
    random = np.random.default_rng(0)
    pictures, numbers = random.integers(0, 37, 200), random.integers(0, 2, 200)
    found = store.features(pictures, numbers)
    live = teacher.features(torch.stack([views[p][k] for p, k in zip(pictures, numbers)]), ALL)
    assert torch.equal(found.global_BD, live.global_BD)
    assert torch.equal(found.local_BLD, live.local_BLD)
    assert torch.equal(found.logits_BC, live.logits_BC)
    assert torch.equal(found.taps["one.0"], live.taps["one.0"])
    only = store.features(pictures, numbers, ("taps",))
    assert only.local_BLD is None
    assert only.logits_BC is None
    assert set(only.taps) == {"one.0"}
    with pytest.raises(IndexError):
        store.features([37], [0])


def test_an_array_of_the_store_is_indexed_like_one_in_memory(root, small_shards):
    store = open_or_build(root, Arithmetic(), MadeViews(Listing(21)), batch=6)
    column = store.arrays["local"]
    whole = np.asarray(column)
    assert column.shape == whole.shape == (42, 16, 6)
    assert column.dtype == whole.dtype == np.float16
    for which in (5, -1, slice(3, 9), slice(1, None, 2), slice(None, None, -3), [4, 40, 4], whole[:, 0, 0] > 0):
        assert np.array_equal(column[which], whole[which])
    assert np.array_equal(column[7:30, 2], whole[7:30, 2])
    assert np.array_equal(store.global_rows(1), np.asarray(store.arrays["global"])[1::2])
    half = store.features([3], [0], dtype=None)
    assert half.global_BD.dtype == torch.float16
    assert torch.equal(half.to(torch.float32).global_BD, store.features([3], [0]).global_BD)


def test_a_finished_store_is_read_and_not_computed_again(root):
    views, first, second, ticks = MadeViews(Listing(20)), Arithmetic(), Arithmetic(), []
    open_or_build(root, first, views)
    open_or_build(root, second, views, tick=ticks.append)
    assert (first.seen, second.seen, sum(ticks)) == (40, 0, 20)


def test_a_store_on_a_read_only_disk_is_read(root):
    views = MadeViews(Listing(20))
    path = open_or_build(root, Arithmetic(), views).path
    os.unlink(os.path.join(path, "used"))
    os.unlink(os.path.join(path, ".lock"))
    os.chmod(path, 0o500)
    before = sorted(os.listdir(path))
    try:
        assert len(open_or_build(root, Arithmetic(), views)) == 20
    finally:
        os.chmod(path, 0o700)
    assert set(before) <= set(os.listdir(path)) <= {*before, "used"}  # for root no disk is read-only


def test_the_teacher_s_failure_costs_the_batch_it_failed_at(root, small_shards):
    views = MadeViews(Listing(20))
    whole = open_or_build(root + "-whole", Arithmetic(), views, batch=4)
    with pytest.raises(RuntimeError, match="power"):
        open_or_build(root, Arithmetic(fail_after=24), views, batch=4)
    rest, ticks = Arithmetic(), []
    resumed = open_or_build(root, rest, views, batch=4, tick=ticks.append)
    assert (rest.seen, sum(ticks)) == (40 - 24, 20)
    assert bytes_of(resumed) == bytes_of(whole)


def test_a_stop_keeps_every_row_so_far(root, small_shards):
    views, first = MadeViews(Listing(20)), Arithmetic()
    with pytest.raises(InterruptedError):
        open_or_build(root, first, views, batch=4, stop=lambda: first.seen >= 12)
    rest = Arithmetic()
    open_or_build(root, rest, views, batch=4)
    assert (first.seen, rest.seen) == (12, 28)


@pytest.mark.parametrize("grid", [1, 3, 9])
def test_local_features_are_kept_on_a_coarser_grid(root, grid):
    teacher, views = Arithmetic(), MadeViews(Listing(5))
    store = open_or_build(root, teacher, views, dtype="float32", grid=grid)
    side = min(grid, 4)
    assert store.grid == (side, side)
    live = teacher.features(views[3])
    assert torch.equal(store.features([3, 3], [0, 1]).local_BLD, resample_grid(live.local_BLD, (4, 4), (side, side)))
    assert store.path != open_or_build(root, teacher, views, dtype="float32").path


def test_features_that_overflow_half_precision_are_refused(root):
    with pytest.raises(TinkitError, match="store-dtype float32"):
        open_or_build(root, Arithmetic(scale=1e6), MadeViews(Listing(5)))
    open_or_build(root, Arithmetic(scale=1e6), MadeViews(Listing(5)), dtype="float32")
    with pytest.raises(TinkitError, match="do not fit int8"):
        open_or_build(root, Arithmetic(scale=float("nan")), MadeViews(Listing(5)), dtype="int8")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_put_aside_by_name_or_ends_the_work(root, workers):
    views, said = MadeViews(Listing(20), broken=("3", "17")), []
    with pytest.raises(TinkitError, match="planted damage"):
        open_or_build(root, Arithmetic(), views, batch=8, workers=workers)
    store = open_or_build(root, Arithmetic(), views, batch=8, put_aside=True, workers=workers, say=said.append)
    assert store.bad.tolist() == [3, 17]
    assert store.bad_reasons == {3: "planted damage", 17: "planted damage"}
    assert not store.features([3, 17], [0, 1]).local_BLD.any()
    sound = open_or_build(root + "-sound", Arithmetic(), MadeViews(Listing(20)))
    others = np.setdiff1d(np.arange(20), store.bad)
    assert torch.equal(store.features(others, 0 * others).local_BLD, sound.features(others, 0 * others).local_BLD)
    assert any("2 pictures put aside" in line and "3: planted damage" in line for line in said)
    with pytest.raises(TinkitError, match="could not be read"):
        open_or_build(root, Arithmetic(), views)


class Deadly(MadeViews):
    """One picture ends the process that decodes it."""

    def __getitem__(self, index):
        if self.pictures[index].name == "11":
            os._exit(11)
        return super().__getitem__(index)


def test_a_picture_that_kills_its_process_is_put_aside_alone(root):
    store = open_or_build(root, Arithmetic(), Deadly(Listing(20)), batch=8, put_aside=True, workers=2)
    assert store.bad.tolist() == [11]
    assert store.bad_reasons[11]
    sound = open_or_build(root + "-sound", Arithmetic(), MadeViews(Listing(20)))
    others = np.setdiff1d(np.arange(20), [11])
    assert torch.equal(store.features(others, 0 * others).global_BD, sound.features(others, 0 * others).global_BD)


def test_a_large_store_is_checked_when_it_is_read(root, small_shards, monkeypatch):
    from small_store import flip

    views, said = MadeViews(Listing(40)), []
    store = open_or_build(root, Arithmetic(), views, batch=4)
    flip(os.path.join(store.path, "00003.local.bin"))
    with pytest.raises(TinkitError, match="damaged"):
        open_or_build(root, Arithmetic(), views)
    monkeypatch.setattr(mapped, "CHECKED_AT_ONCE", 0)
    store = open_or_build(root, Arithmetic(), views, say=said.append)
    assert any("when first read" in line for line in said)
    store.features([0, 30], [0, 0], ())  # the damage is in the local rows of the shard's pictures 24..31
    good = [n for n in range(40) if not 26 <= n < 30]
    store.features(good, [0] * len(good))
    with pytest.raises(TinkitError, match=r"00003\.local\.bin"):
        [store.features([n], [1]) for n in range(26, 30)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pictures(root):
    """A million pictures take the memory of their addresses (32 bytes) and a few arrays, not objects."""
    from tinkit.device.board import peak_memory_mb

    open_or_build(root, Arithmetic(), MadeViews(Listing(1_000)), parts=(), batch=4096)
    before = peak_memory_mb()

    class Quick(MadeViews):
        def __getitem__(self, index):
            return torch.full((1, 3, SIDE, SIDE), index % 251, dtype=torch.uint8)

    from small_store import SIDE

    store = open_or_build(root, Arithmetic(), Quick(Listing(1_000_000), numbers=[0]), parts=(), batch=4096)
    assert len(store) == 1_000_000
    assert peak_memory_mb() - before < 250


def test_a_limit_makes_room_by_what_was_used_longest_ago(root):
    first, second = (open_or_build(root, Arithmetic(name), MadeViews(Listing(20))).path for name in "ab")
    os.utime(os.path.join(first, "used"), (1, 1))
    size, said = shards.read_identity(second)[1].total_bytes, []
    with pytest.raises(TinkitError, match="larger than the limit"):
        open_or_build(root, Arithmetic("c"), MadeViews(Listing(20)), limit_bytes=size - 1)
    assert os.path.exists(first)
    third = open_or_build(root, Arithmetic("c"), MadeViews(Listing(20)), limit_bytes=int(2.9 * size), say=said.append)
    assert [os.path.exists(path) for path in (first, second, third.path)] == [False, True, True]
    assert any(first in line or os.path.basename(first) in line for line in said)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(dtype, value):
    from tinkit.host.store.build import _refuse_infinite

    rows = torch.randn(3, 37, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    _refuse_infinite("local", rows)
    for place in range(0, rows.numel(), 7):
        odd = rows.clone()
        odd.view(-1)[place] = value
        with pytest.raises(TinkitError, match="do not fit"):
            _refuse_infinite("local", odd)
