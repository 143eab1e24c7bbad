"""Rows of other stores: the same teacher, views and arrays over another list of pictures.

A row belongs to a picture's content, so a finished store that differs in its list of pictures alone lends its rows: all of
them, and nothing is computed and nothing copied; or some, and those are copied into the new store. A store with the
views 0..7 serves one with 0..3. What was put aside is never lent: it may be readable by now.
"""

import os
from dataclasses import dataclass

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.store.identity import HASH_BYTES, sha256_of_contents, without_list
from tinkit.host.store.mapped import InUse, Shards, is_finished, open_shards
from tinkit.host.store.reader import FeatureStore
from tinkit.host.store.shards import CONTENTS, paths_of, read_identity

NOWHERE = -1


@dataclass(frozen=True)
class Lender:
    """A finished store and where the wanted pictures are in it: (N,) its picture numbers, NOWHERE for one it lacks."""

    store: FeatureStore
    where_N: np.ndarray


class Lenders:
    """Other stores' rows for the pictures of a store that is being built."""

    def __init__(self, lenders: list[Lender], pictures: int):
        self.lenders, self.of_N = lenders, np.full(pictures, NOWHERE, np.int16)
        for number, lender in reversed(list(enumerate(lenders))):
            self.of_N[lender.where_N != NOWHERE] = number

    @property
    def count(self) -> int:
        return int((self.of_N != NOWHERE).sum())

    def has(self, picture: int) -> bool:
        return bool(self.of_N[picture] != NOWHERE)

    def rows(self, pictures_B: np.ndarray) -> dict[str, np.ndarray]:
        """The stored rows of pictures that somebody has, all views of each, as they lie on disk."""
        out: dict[str, np.ndarray] = {}
        for number in np.unique(self.of_N[pictures_B]):
            lender = self.lenders[number]
            chosen = np.flatnonzero(self.of_N[pictures_B] == number)
            views = lender.store.views
            numbers = lender.where_N[pictures_B[chosen]]
            stored = lender.store._stored_rows(np.repeat(numbers, views), np.tile(np.arange(views), len(chosen)))
            places = (chosen[:, None] * views + np.arange(views)).ravel()
            for name in lender.store.shards.layout.arrays:
                rows = lender.store.shards.rows(name, stored)
                out.setdefault(name, np.empty((len(pictures_B) * views, *rows.shape[1:]), rows.dtype))[places] = rows
        return out


def lenders_of(root, identity: dict, contents_N32: np.ndarray, own: str) -> Lenders:
    """All finished stores below `root`, except `own`, that hold rows of these pictures; those with most come first."""
    found = []
    for path in paths_of(root):
        if os.path.abspath(path) != os.path.abspath(own):
            lender = _lender(path, identity, contents_N32)
            if lender is not None:
                found.append(lender)
    found.sort(key=lambda lender: int((lender.where_N == NOWHERE).sum()))
    return Lenders(found, len(contents_N32))


def _lender(path, identity, contents_N32) -> Lender | None:
    """This store as a lender; None for another teacher's, an unfinished or a damaged one, or one without such pictures."""
    try:
        theirs, layout = read_identity(path)
        numbers, wanted = theirs["views"]["numbers"], identity["views"]["numbers"]
        if without_list(theirs) != without_list(identity) or not set(wanted) <= set(numbers):
            return None
        handle = InUse(path)
        their_contents = _contents(path, theirs)
        where_N = places_of(their_contents, contents_N32)
        if their_contents is None or (where_N == NOWHERE).all() or not is_finished(path, layout):
            return None
        shards = open_shards(path, layout)
    except (TinkitError, OSError, KeyError, TypeError):
        return None
    where_N[np.isin(where_N, list(shards.bad))] = NOWHERE
    return Lender(_opened(path, shards, handle, numbers, wanted), where_N)


def _opened(path, shards: Shards, handle, numbers, wanted) -> FeatureStore:
    offsets = None if list(numbers) == list(wanted) else np.array([list(numbers).index(n) for n in wanted], np.int64)
    return FeatureStore(path, len(wanted), shards, None, offsets, handle)


def whole(lenders: Lenders) -> FeatureStore | None:
    """A store that holds all the wanted pictures, opened in their order; None when nobody has them all."""
    for lender in lenders.lenders[:1]:
        if (lender.where_N != NOWHERE).all():
            store = lender.store
            return FeatureStore(store.path, store.views, store.shards, lender.where_N, store.offsets_K, store.in_use)
    return None


def _contents(path, identity) -> np.ndarray | None:
    contents = np.fromfile(os.path.join(path, CONTENTS), np.uint8)
    if (
        contents.size % HASH_BYTES
        or sha256_of_contents(contents.reshape(-1, HASH_BYTES)) != identity["pictures"]["sha256"]
    ):
        return None
    return contents.reshape(-1, HASH_BYTES)


def places_of(theirs_M32, wanted_N32) -> np.ndarray:
    """The place of each wanted address among theirs, NOWHERE for one that is not there. (N,) int64."""
    if theirs_M32 is None or not len(theirs_M32):
        return np.full(len(wanted_N32), NOWHERE, np.int64)
    theirs, wanted = _keys(theirs_M32), _keys(wanted_N32)
    order = np.argsort(theirs, kind="stable")
    found = order[np.minimum(np.searchsorted(theirs, wanted, sorter=order), len(order) - 1)]
    return np.where((theirs_M32[found] == wanted_N32).all(1), found, NOWHERE)


def _keys(contents_N32):
    """The first 8 bytes as numbers: enough to sort by; equality is judged on all 32."""
    return np.ascontiguousarray(contents_N32[:, :8]).view(">u8").astype(np.uint64).ravel()
