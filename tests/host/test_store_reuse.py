"""Rows of other stores: exact copies of the same picture's, and never another teacher's, policy's or dtype's."""

import os

import numpy as np
import pytest
from small_store import Arithmetic, Listing, MadeViews, bytes_of, flip

from tinkit.errors import TinkitError
from tinkit.host.store import open_or_build, shards
from tinkit.host.views import AllViews


class Chosen:
    """Some pictures of a listing, in an order."""

    def __init__(self, numbers):
        self.numbers, self.all = numbers, Listing(10_000)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, number):
        return self.all[self.numbers[number]]


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "stores")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_ROWS", 16)


def build(root, pictures, teacher=None, numbers=(0, 1), seed=0, **options):
    return open_or_build(root, teacher or Arithmetic(), MadeViews(pictures, numbers, seed=seed), batch=8, **options)


def same(store, other):
    for name, column in store.arrays.items():
        assert np.array_equal(np.asarray(column), np.asarray(other.arrays[name]))
    return True


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_store_that_holds_them_all_is_opened_in_the_new_order(tmp_path, root, dtype):
    large = build(root, Listing(40), dtype=dtype)
    wanted = [31, 2, 2, 39, 0, 17]
    teacher, said, ticks = Arithmetic(), [], []
    store = build(root, Chosen(wanted), teacher, dtype=dtype, say=said.append, tick=ticks.append)
    assert teacher.seen == 0
    assert sum(ticks) == len(store) == len(wanted)
    assert store.path == large.path
    assert any("nothing is computed" in line for line in said)
    assert same(store, build(str(tmp_path / "fresh"), Chosen(wanted), dtype=dtype))
    assert len(os.listdir(root)) == 1
    assert np.array_equal(
        store.global_rows(1), build(str(tmp_path / "fresh"), Chosen(wanted), dtype=dtype).global_rows(1)
    )


def test_views_0_to_7_serve_0_to_3_and_not_the_other_way_round(tmp_path, root):
    build(root, Listing(10), numbers=range(4))
    teacher = Arithmetic()
    eight = build(root, Listing(10), teacher, numbers=range(8))
    assert teacher.seen == 80
    again = Arithmetic()
    some = build(root, Listing(5, first=3), again, numbers=[1, 3])
    assert again.seen == 0
    assert some.path in (eight.path, build(root, Listing(10), numbers=range(4)).path)
    assert same(some, build(str(tmp_path / "fresh"), Listing(5, first=3), numbers=[1, 3]))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_known_pictures_are_copied_and_only_the_others_computed(tmp_path, root, dtype):
    build(root, Listing(20), dtype=dtype)
    build(root, Listing(5, first=30), dtype=dtype)
    teacher, said = Arithmetic(), []
    store = build(root, Listing(40), teacher, dtype=dtype, say=said.append)
    assert teacher.seen == 2 * 15
    assert any("25 of 40 pictures copied" in line for line in said)
    assert bytes_of(store) == bytes_of(build(str(tmp_path / "fresh"), Listing(40), dtype=dtype))


def test_a_copying_store_that_is_interrupted_goes_on(tmp_path, root):
    build(root, Listing(20))
    with pytest.raises(RuntimeError, match="power"):
        build(root, Listing(40), Arithmetic(fail_after=16))
    rest = Arithmetic()
    store = build(root, Listing(40), rest)
    assert rest.seen == 40 - 16
    assert bytes_of(store) == bytes_of(build(str(tmp_path / "fresh"), Listing(40)))


@pytest.mark.parametrize(
    "change", [{"teacher": "another"}, {"seed": 1}, {"dtype": "float32"}, {"grid": 2}, {"parts": ()}, {"numbers": [5]}]
)
def test_nothing_is_taken_from_another_teacher_policy_dtype_grid_or_view(root, change):
    build(root, Listing(20))
    teacher = Arithmetic(change.pop("teacher", "arithmetic"))
    build(root, Listing(10), teacher, **change)
    assert teacher.seen == 10 * len(change.get("numbers", (0, 1)))


def test_what_was_put_aside_is_not_lent(root):
    teacher = Arithmetic()
    open_or_build(root, teacher, MadeViews(Listing(20), broken=("3",)), put_aside=True)
    again = Arithmetic()
    store = build(root, Listing(10), again)
    assert again.seen == 2
    assert not len(store.bad)
    assert store.features([3], [0]).global_BD.any()


def test_an_unfinished_or_damaged_store_lends_nothing(root):
    with pytest.raises(RuntimeError):
        build(root, Listing(20), Arithmetic(fail_after=24))
    teacher = Arithmetic()
    other = build(root, Listing(10), teacher)
    assert teacher.seen == 20
    flip(os.path.join(other.path, "contents.bin"))
    again = Arithmetic()
    build(root, Listing(5), again)
    assert again.seen == 10


def test_a_flipped_bit_is_refused_in_borrowed_rows_too(root):
    large = build(root, Listing(20))
    flip(os.path.join(large.path, "00001.local.bin"))
    with pytest.raises(TinkitError, match="damaged"):
        build(root, Listing(20, first=5))
    with pytest.raises(TinkitError, match="damaged"):
        build(root, Listing(10, first=5))


def test_the_first_bytes_of_an_address_do_not_make_it_the_same_picture(root):
    class Alike(Listing):
        def __getitem__(self, number):
            picture = super().__getitem__(number)
            return type(picture)(picture.path, picture.name, "ab" * 16 + picture.content[:32])

    build(root, Alike(10))
    teacher = Arithmetic()
    build(root, Alike(10, first=5), teacher)
    assert 2 * 5 <= teacher.seen <= 20  # what cannot be told apart quickly is computed, never mistaken


def test_no_store_is_made_where_nothing_is_computed(root):
    build(root, Listing(20))
    before = os.listdir(root)
    assert isinstance(MadeViews(Listing(3)), AllViews)
    build(root, Listing(3))
    assert os.listdir(root) == before
