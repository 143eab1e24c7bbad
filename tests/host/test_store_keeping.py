"""Stores are listed, verified against their bytes and their teacher, collected without harm, and joined."""

import os
import shutil

import numpy as np
import pytest
from small_store import Arithmetic, Listing, MadeViews, flip

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.features import Features
from tinkit.host.store import open_or_build
from tinkit.host.store.collect import collect
from tinkit.host.store.listing import DAMAGED, FINISHED, OLDER, UNFINISHED, list_stores, look_at
from tinkit.host.store.merge import merge
from tinkit.host.store.shards import IDENTITY, USED, file_of, journal_of, read_identity
from tinkit.host.store.size import bytes_per_row
from tinkit.host.store.verify import FAILED, NOT_JUDGED, PASSED, verify_stores


def build(root, count=20, first=0, **options):
    views = MadeViews(Listing(count, first), **{k: options.pop(k) for k in ("broken", "seed") if k in options})
    teacher = options.pop("teacher", None) or Arithmetic()
    return open_or_build(str(root), teacher, views, **{"batch": 8, **options})


def unused_since(path, seconds):
    os.utime(os.path.join(path, USED), (seconds, seconds))


def test_the_list_says_whose_and_how_large(tmp_path):
    store = build(tmp_path)
    (one,) = list_stores(tmp_path)
    assert (one.state, one.teacher, one.pictures, one.views, one.dtype) == (FINISHED, "arithmetic", 20, 2, "float16")
    on_disk = sum(os.path.getsize(os.path.join(store.path, name)) for name in os.listdir(store.path))
    assert one.bytes == on_disk > store.shards.layout.total_bytes
    assert len(one.row()) == 8


def test_the_list_tells_unfinished_damaged_and_older_stores_apart(tmp_path):
    shutil.copytree(build(tmp_path).path, tmp_path / "cut")
    shutil.copytree(tmp_path / "cut", tmp_path / "odd")
    shutil.copytree(tmp_path / "cut", tmp_path / "old")
    os.unlink(journal_of(tmp_path / "cut", 0))
    flip(tmp_path / "odd" / IDENTITY, 30)
    files.write_json(tmp_path / "old" / IDENTITY, {"identity": {"schema": "tinkit-store-1"}, "layout": None})
    (tmp_path / "no store").mkdir()
    states = {one.name: one.state for one in list_stores(tmp_path)}
    assert {name: states[name] for name in ("cut", "odd", "old")} == {"cut": UNFINISHED, "odd": DAMAGED, "old": OLDER}
    assert "no store" not in states


def test_no_folder_no_stores(tmp_path):
    assert list_stores(tmp_path / "nowhere") == []


def test_bytes_of_a_row_are_those_of_the_layout(tmp_path):
    for number, (dtype, grid) in enumerate((("float16", None), ("float32", 1), ("int8", 2))):
        store = build(tmp_path / str(number), dtype=dtype, grid=grid)
        layout = store.shards.layout
        assert bytes_per_row(a_row_of_features(), dtype, grid) == layout.row_bytes


def a_row_of_features() -> Features:
    import torch

    return Arithmetic().features(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ("local",))


# collect


def test_the_store_used_longest_ago_goes_first_and_only_until_the_limit(tmp_path):
    paths = [build(tmp_path, seed=seed).path for seed in range(3)]
    for age, path in zip((300, 100, 200), paths):
        unused_since(path, 1_000_000 - age)
    sizes = [look_at(path).bytes for path in paths]
    gone = collect(tmp_path, limit_bytes=sum(sizes) - 1)
    assert [one.name for one in gone] == [os.path.basename(paths[0])]
    assert [os.path.exists(path) for path in paths] == [False, True, True]


def test_a_store_in_use_or_kept_is_never_removed(tmp_path):
    used, other = build(tmp_path, seed=0), build(tmp_path, seed=1).path
    kept = build(tmp_path, seed=2).path
    assert {one.name for one in collect(tmp_path, limit_bytes=0, keep=kept)} == {os.path.basename(other)}
    assert os.path.exists(used.path)
    assert os.path.exists(kept)
    used.features(np.array([0]), np.array([1]))


def test_what_is_being_built_is_never_removed(tmp_path):
    path = build(tmp_path).path
    with files.folder_lock(path, "the feature store"):
        assert collect(tmp_path, limit_bytes=0) == []
    assert [one.name for one in collect(tmp_path, limit_bytes=0)] == [os.path.basename(path)]


def test_without_remove_it_only_tells(tmp_path):
    path = build(tmp_path).path
    (one,) = collect(tmp_path, limit_bytes=0, remove=False)
    assert one.bytes > 0
    assert look_at(path).state == FINISHED


def test_unused_days(tmp_path):
    path = build(tmp_path).path
    unused_since(path, 1_000_000)
    assert collect(tmp_path, unused_days=2.0, now=lambda: 1_000_000 + 1.9 * 86_400) == []
    assert len(collect(tmp_path, unused_days=2.0, now=lambda: 1_000_000 + 2.1 * 86_400)) == 1


def test_without_a_rule_only_what_no_run_can_use_goes(tmp_path):
    good = build(tmp_path).path
    shutil.copytree(good, tmp_path / "old")
    shutil.copytree(good, tmp_path / "unfinished")
    files.write_json(tmp_path / "old" / IDENTITY, {"identity": {"schema": "tinkit-store-1"}, "layout": None})
    os.unlink(journal_of(tmp_path / "unfinished", 0))
    assert collect(tmp_path, useless=False) == []
    assert [one.name for one in collect(tmp_path)] == ["old"]


def test_a_limit_makes_room_before_a_store_is_built(tmp_path):
    first = build(tmp_path, seed=0).path
    size = look_at(first).bytes
    said = []
    second = build(tmp_path, seed=1, limit_bytes=int(1.5 * size), say=said.append).path
    assert not os.path.exists(first)
    assert os.path.exists(second)
    assert any("removed" in line and first in line for line in said)


# verify


def test_a_good_store_passes_and_a_flipped_bit_in_any_array_fails(tmp_path):
    path = build(tmp_path).path
    assert [one.verdict for one in verify_stores(tmp_path)] == [PASSED]
    _, layout = read_identity(path)
    for array in layout.arrays:
        flip(file_of(path, 0, array), 3)
        (found,) = verify_stores(tmp_path)
        assert found.verdict == FAILED
        assert array in found.reason
        flip(file_of(path, 0, array), 3)
    assert verify_stores(tmp_path)[0].verdict == PASSED


def test_an_unfinished_store_is_not_judged(tmp_path):
    path = build(tmp_path).path
    os.unlink(journal_of(path, 0))
    assert [one.verdict for one in verify_stores(tmp_path)] == [NOT_JUDGED]


def test_an_unknown_name_is_said(tmp_path):
    build(tmp_path)
    with pytest.raises(TinkitError, match="no store of this name"):
        verify_stores(tmp_path, ["nobody"])


@pytest.fixture(scope="module")
def real_store(tmp_path_factory, photos):
    """A store of a real network over real pictures, as a run makes it."""
    from small_pair import TEACHER, teacher_weights

    from tinkit.host.images import scan
    from tinkit.host.teacher import load_teacher
    from tinkit.host.views import AllViews, ViewPolicy

    folder = tmp_path_factory.mktemp("real")
    weights = teacher_weights(folder)
    teacher = load_teacher(TEACHER, weights, 64)
    views = AllViews(scan(photos).usable, ViewPolicy(seed=3), [teacher.preprocessing], 0.9, numbers=[0, 1])
    open_or_build(str(folder / "float16"), teacher, views)
    open_or_build(str(folder / "int8"), teacher, views, dtype="int8", grid=1)
    return folder, weights


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_are_computed_again_and_compared(real_store, photos, dtype):
    folder, weights = real_store
    (found,) = verify_stores(str(folder / dtype), images=photos, teacher_weights=weights, sample=6)
    assert found.verdict == PASSED
    assert "worst cosine of 6 pictures" in found.reason


def test_rows_that_the_teacher_never_said_fail(real_store, photos, tmp_path):
    """Bytes and hashes agree, but the rows are those of other pictures."""
    folder, weights = real_store
    shutil.copytree(folder / "float16", tmp_path / "stores")
    (one,) = list_stores(tmp_path / "stores")
    contents = os.path.join(one.path, "contents.bin")
    rows = np.fromfile(contents, np.uint8).reshape(-1, 32)
    np.roll(rows, 1, axis=0).tofile(contents)
    (found,) = verify_stores(str(tmp_path / "stores"), images=photos, teacher_weights=weights, sample=6)
    assert found.verdict == FAILED


def test_another_teacher_is_not_judged(real_store, photos, tmp_path):
    import timm

    from tinkit.host.weights import write_weights

    folder, _ = real_store
    other = str(tmp_path / "other.safetensors")
    write_weights(other, timm.create_model("test_efficientnet", num_classes=0).state_dict())
    (found,) = verify_stores(str(folder / "float16"), images=photos, teacher_weights=other)
    assert found.verdict == NOT_JUDGED
    assert "another teacher" in found.reason


def test_other_pictures_are_not_judged(real_store, tmp_path):
    from PIL import Image

    folder, weights = real_store
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (found,) = verify_stores(str(folder / "float16"), images=str(tmp_path), teacher_weights=weights)
    assert found.verdict == NOT_JUDGED


# merge


def rows_of(store):
    return {name: column[:] for name, column in store.arrays.items()}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_stores_of_different_pictures_become_one_that_serves_all(tmp_path, dtype):
    first, second = build(tmp_path / "a", 20, dtype=dtype), build(tmp_path / "b", 20, first=10, dtype=dtype)
    merged = merge([first.path, second.path], tmp_path / "joined")
    assert (merged.pictures, merged.finished) == (30, True)
    teacher = Arithmetic()
    found = build(tmp_path / "joined", 30, teacher=teacher, dtype=dtype)
    assert teacher.seen == 0
    assert found.path == merged.path
    for name, rows in rows_of(build(tmp_path / "c", 30, dtype=dtype)).items():
        np.testing.assert_array_equal(found.arrays[name][:], rows)


def test_a_picture_that_was_put_aside_is_left_out(tmp_path):
    first = build(tmp_path / "a", 10, broken=["3"], put_aside=True)
    second = build(tmp_path / "b", 10, first=10)
    assert merge([first.path, second.path], tmp_path / "joined").pictures == 19


def test_parts_of_one_store_become_whole(tmp_path, monkeypatch):
    from tinkit.host.store import shards

    monkeypatch.setattr(shards, "SHARD_ROWS", 16)
    whole = build(tmp_path / "whole", 40)
    assert whole.shards.layout.shards > 2
    parts = []
    for rank in range(2):
        shutil.copytree(tmp_path / "whole", tmp_path / f"part{rank}")
        path = str(tmp_path / f"part{rank}" / os.path.basename(whole.path))
        for shard in range(1 - rank, whole.shards.layout.shards, 2):
            os.unlink(journal_of(path, shard))
            for name in whole.shards.layout.arrays:
                os.unlink(file_of(path, shard, name))
        parts.append(path)
    half = merge([parts[0], parts[0]], tmp_path / "half")
    assert not half.finished
    merged = merge(parts, tmp_path / "joined")
    assert merged.finished
    for name, rows in rows_of(whole).items():
        np.testing.assert_array_equal(build(tmp_path / "joined", 40, teacher=Arithmetic()).arrays[name][:], rows)


def test_stores_of_other_teachers_views_or_dtypes_are_refused(tmp_path):
    first = build(tmp_path / "a")
    for number, other in enumerate(({"teacher": Arithmetic("other")}, {"seed": 5}, {"dtype": "float32"}, {"grid": 1})):
        second = build(tmp_path / f"b{number}", first=20, **other)
        with pytest.raises(TinkitError, match="cannot be joined"):
            merge([first.path, second.path], tmp_path / "joined")


def test_an_unfinished_store_of_other_pictures_is_refused(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b", first=20)
    os.unlink(journal_of(second.path, 0))
    with pytest.raises(TinkitError, match="not finished"):
        merge([first.path, second.path], tmp_path / "joined")


def test_a_run_s_store_of_all_pictures_keeps_its_rows(tmp_path, monkeypatch):
    """The run cut it into other shards than merge would."""
    from tinkit.host.store import shards

    first, second = build(tmp_path / "a", 20), build(tmp_path / "b", 20, first=20)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "SHARD_ROWS", 16)
        own = build(tmp_path / "joined", 40)
    rows = rows_of(own)
    assert merge([first.path, second.path], tmp_path / "joined").path == own.path
    teacher = Arithmetic()
    for name, again in rows_of(build(tmp_path / "joined", 40, teacher=teacher)).items():
        np.testing.assert_array_equal(again, rows[name])
    assert teacher.seen == 0


def test_parts_are_joined_in_the_folder_of_one_of_them(tmp_path):
    store = build(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.unlink(journal_of(store.path, 0))
    merged = merge([store.path, str(tmp_path / "b" / os.path.basename(store.path))], tmp_path / "a")
    assert (merged.path, merged.finished) == (store.path, True)


def test_a_joined_store_tells_what_int8_cost(tmp_path):
    parts = [build(tmp_path / str(first), first=first, dtype="int8") for first in (0, 20)]
    merged = merge([part.path for part in parts], tmp_path / "joined")
    found = build(tmp_path / "joined", 40, dtype="int8")
    assert found.path == merged.path
    assert found.loss["local"] == parts[0].loss["local"] + parts[1].loss["local"]


def test_verifying_is_no_use(tmp_path):
    path = build(tmp_path).path
    unused_since(path, 1_000_000)
    verify_stores(tmp_path)
    assert look_at(path).used == 1_000_000
