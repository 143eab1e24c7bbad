"""The catalogue: a sequence of pictures that takes little memory, and a split that is what it always was."""

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkit.errors import TinkitError
from tinkit.host.images import Catalogue, Picture, catalogue_of, split
from tinkit.host.images.catalogue import BLOCK, Holder
from tinkit.host.images.split import groups_of

NAMES = ["a.jpg", "b/é.png", "b/new\nline.jpg", "caf\udce9.jpg", "x"]


def hashed(values) -> np.ndarray:
    digests = b"".join(hashlib.sha256(str(value).encode()).digest() for value in values)
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def small():
    return catalogue_of("/r", NAMES, hashed(range(len(NAMES))))


def in_tars():
    holders = [Holder("tar", "one.tar"), Holder("tar", "deep/two.tar"), Holder("parquet", "t.parquet")]
    return catalogue_of(
        "/r",
        ["a.jpg", "b:c.jpg", "", "a.jpg"],
        hashed(range(4)),
        holders,
        holder_N=np.array([0, 0, 2, 1], np.int32),
        at_N=np.array([512, 2048, 7, 512]),
        size_N=np.array([10, 20, 0, 30]),
    )


def test_it_is_a_sequence_of_pictures_with_any_name():
    made = small()
    assert len(made) == 5
    assert made[-1].name == "x"
    assert [picture.name for picture in made] == NAMES == list(made.all_names())
    assert made[1] == Picture("/r/b/é.png", "b/é.png", hashlib.sha256(b"1").hexdigest())
    with pytest.raises(IndexError):
        made[5]
    assert list(made[1:4:2].all_names()) == [NAMES[1], NAMES[3]]
    assert list(made[::-1].all_names()) == NAMES[::-1]
    assert [p.content for p in made.take([3, 3, 0])] == [made[3].content, made[3].content, made[0].content]
    assert list(made.take(np.array([True, False, False, False, True])).all_names()) == ["a.jpg", "x"]
    assert len(made.take([])) == 0
    assert made.take([]).contents_sha256() == hashlib.sha256(b"").hexdigest()
    with pytest.raises(IndexError):
        made.take([5])


def test_pictures_inside_of_files_say_where():
    made = in_tars()
    assert made[1] == Picture("/r/one.tar/b:c.jpg", "one.tar/b:c.jpg", made[1].content, "tar:2048:20:/r/one.tar")
    assert made[2] == Picture("/r/t.parquet#7", "t.parquet#7", made[2].content, "parquet:7:/r/t.parquet")
    assert made[1].container == "/r/one.tar"
    assert made[2].container == "/r/t.parquet"
    assert [p.place for p in made.take([3, 2])] == ["tar:512:30:/r/deep/two.tar", "parquet:7:/r/t.parquet"]


@pytest.mark.parametrize("make", [small, in_tars, lambda: small().take([])])
def test_saved_pickled_and_loaded_it_is_the_same(tmp_path, make):
    made = make()
    made.save(tmp_path / "c.npz")
    for other in (pickle.loads(pickle.dumps(made)), Catalogue.load(tmp_path / "c.npz")):  # noqa: S301 - made here
        assert list(other) == list(made)
        assert other.root == made.root


def test_a_file_that_is_no_catalogue_is_refused(tmp_path):
    in_tars().save(tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as read:
        arrays = dict(read)
    for name, wrong in [
        ("told", np.frombuffer(b"other\0/r", np.uint8)),
        ("ends", arrays["ends"][::-1]),
        ("ends", arrays["ends"][:-1]),
        ("holder", arrays["holder"] + 9),
        ("at", arrays["at"][:-1]),
        ("contents", arrays["contents"][:, :31]),
    ]:
        np.savez(tmp_path / "wrong.npz", **{**arrays, name: wrong})
        with pytest.raises(TinkitError, match="no catalogue"):
            Catalogue.load(tmp_path / "wrong.npz")
    np.savez(tmp_path / "wrong.npz", names=arrays["names"])
    with pytest.raises(TinkitError, match="no catalogue"):
        Catalogue.load(tmp_path / "wrong.npz")


def test_the_identity_of_a_listing_is_that_of_its_lines(monkeypatch):
    monkeypatch.setattr("tinkit.host.images.catalogue.BLOCK", 2)
    for count in range(6):
        made = catalogue_of("/r", map(str, range(count)), hashed(range(count)))
        told = "\n".join(picture.content for picture in made)
        assert made.contents_sha256() == hashlib.sha256(told.encode()).hexdigest()


def test_a_million_pictures_take_about_a_hundred_bytes_each():
    count = 200_000
    names = (f"class-{number % 100:03}/photograph-{number:08}.jpg" for number in range(count))
    made = catalogue_of("/r", names)
    assert made.nbytes / count < 80
    assert len(pickle.dumps(made)) < 81 * count
    taken = made.take(np.arange(count)[::-1])
    assert count > 3 * BLOCK  # several blocks
    for number in (0, BLOCK - 1, BLOCK, count - 1):
        assert taken.name(number) == made.name(count - 1 - number)


def as_it_was(pictures, seed):
    """The split as tinkit's first runs made it, with dictionaries of strings."""
    wanted = min(max(round(0.05 * len(pictures)), 8), 512, len(pictures) // 2)
    rank = {p.content: hashlib.sha256(f"{seed}/{p.content}".encode()).hexdigest() for p in pictures}
    held_out, count = set(), 0
    for content in sorted(rank, key=lambda content: rank[content]):
        if count >= wanted:
            break
        held_out.add(content)
        count += sum(p.content == content for p in pictures)
    train = [p for p in pictures if p.content not in held_out]
    return train, sorted((p for p in pictures if p.content in held_out), key=lambda p: rank[p.content])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=120), st.integers(0, 3))
def test_the_split_is_what_it_was(values, seed):
    made = catalogue_of("/r", [f"{number:03}.jpg" for number in range(len(values))], hashed(values))
    expected = as_it_was(list(made), seed)
    assert tuple(map(list, split(made, seed))) == expected
    assert split(list(made), seed) == expected


def test_copies_are_grouped_by_the_first():
    first, group = groups_of(hashed([5, 3, 5, 9, 3]))
    assert sorted(first) == [0, 1, 3]
    assert [first[number] for number in group] == [0, 1, 0, 3, 1]
