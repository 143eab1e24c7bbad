"""Which pictures are held out: drawn by content, so that copies of one picture are always on the same side."""

import hashlib
from collections.abc import Iterable

import numpy as np

from tinkit.host.images.catalogue import ADDRESS_BYTES, Catalogue
from tinkit.host.images.picture import Picture

HELD_OUT_SHARE, HELD_OUT_MIN, HELD_OUT_MAX = 0.05, 8, 512


def split(pictures: Catalogue | Iterable[Picture], seed: int):
    """(training, held-out), catalogues of a catalogue and lists of a list.

    5 % are held out, at least 8, at most 512, and never more than half; in order of the sha256 of "SEED/ADDRESS".
    """
    if isinstance(pictures, Catalogue):
        train_N, held_N = _split(pictures.contents_N32, seed)
        return pictures.take(train_N), pictures.take(held_N)
    pictures = list(pictures)
    digests = b"".join(bytes.fromhex(picture.content) for picture in pictures)
    train_N, held_N = _split(np.frombuffer(digests, np.uint8).reshape(-1, ADDRESS_BYTES), seed)
    return [pictures[index] for index in train_N], [pictures[index] for index in held_N]


def _split(contents_N32, seed):
    """Picture numbers to train on, in order, and held out, in order of rank."""
    count = len(contents_N32)
    wanted = min(max(round(HELD_OUT_SHARE * count), HELD_OUT_MIN), HELD_OUT_MAX, count // 2)
    first_G, group_N = groups_of(contents_N32)
    order_G = _lexical(_ranks(contents_N32[first_G], seed))
    copies_G = np.bincount(group_N, minlength=len(first_G))[order_G]
    taken = int(((np.cumsum(copies_G) - copies_G) < wanted).sum())  # groups until there are enough
    place_G = np.full(len(first_G), -1, np.int64)
    place_G[order_G[:taken]] = np.arange(taken)
    place_N = place_G[group_N]
    held_N = np.flatnonzero(place_N >= 0)
    return np.flatnonzero(place_N < 0), held_N[np.argsort(place_N[held_N], kind="stable")]


def groups_of(contents_N32) -> tuple[np.ndarray, np.ndarray]:
    """(the number of the first picture of each content (G,), which of these each picture is a copy of (N,))."""
    if not len(contents_N32):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order_N = _lexical(contents_N32)
    words_N4 = _words(contents_N32)[order_N]
    is_new_N = np.concatenate([[True], (words_N4[1:] != words_N4[:-1]).any(1)])
    group_N = np.empty(len(order_N), np.int64)
    group_N[order_N] = np.cumsum(is_new_N) - 1
    return order_N[is_new_N], group_N


def _ranks(contents_G32, seed) -> np.ndarray:
    digests = bytearray(len(contents_G32) * ADDRESS_BYTES)
    for number, content in enumerate(contents_G32):
        rank = hashlib.sha256(f"{seed}/{content.tobytes().hex()}".encode()).digest()
        digests[number * ADDRESS_BYTES : (number + 1) * ADDRESS_BYTES] = rank
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, ADDRESS_BYTES)


def _lexical(digests_N32) -> np.ndarray:
    """The order of the rows as strings of bytes; equal ones stay as they are."""
    return np.lexsort(_words(digests_N32).T[::-1])


def _words(digests_N32) -> np.ndarray:
    return np.ascontiguousarray(digests_N32).view(">u8").astype(np.uint64)
