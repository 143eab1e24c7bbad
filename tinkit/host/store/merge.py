"""Joins stores of the same teacher, views and arrays: parts of one store made apart, or stores of different pictures.

Parts of one store (the same identity, other shards finished) become one by copying shards. Stores of different pictures
become a store of all of them, in the order in which the stores are named; a picture that several hold is taken once, one
that was put aside is left out. A run that lists the same pictures in another order opens it through a table (`reuse`).
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

from tinkit import files
from tinkit.errors import TinkitError, from_os_error
from tinkit.host.store.identity import HASH_BYTES, sha256_of_contents, without_list
from tinkit.host.store.mapped import InUse, Shards, is_finished, open_shards
from tinkit.host.store.precision import Loss
from tinkit.host.store.reader import FeatureStore
from tinkit.host.store.reuse import NOWHERE, Lender, Lenders, places_of
from tinkit.host.store.shards import (
    CONTENTS,
    IDENTITY,
    Layout,
    file_of,
    journal_of,
    pictures_per_shard,
    read_identity,
    read_journal,
    write_identity,
)
from tinkit.host.store.writer import ShardWriter

STEP = 256  # pictures copied at a time


@dataclass(frozen=True)
class Merged:
    """The joined store. `finished`: whether all of its shards are there."""

    path: str
    pictures: int
    bytes: int
    finished: bool


@dataclass(frozen=True)
class _Source:
    path: str
    identity: dict
    layout: Layout
    held: InUse  # against removal


def merge(sources: Sequence[str], into, say: Callable[[str], None] | None = None) -> Merged:
    """Join the stores at the paths `sources` into a store of its own below `into`, and leave them as they are.

    Raises TinkitError for stores of other teachers, views or arrays, for damage, and for a full disk.
    """
    say = say or (lambda line: None)
    opened = [_opened(path) for path in sources]
    first = opened[0]
    for other in opened[1:]:
        _refuse_another(first, other)
    try:
        if all(one.identity == first.identity for one in opened[1:]):
            return _parts(opened, into, say)
        return _pictures(opened, into, say)
    except OSError as error:
        raise from_os_error(error, "joining the stores") from error


def _opened(path) -> _Source:
    if not os.path.exists(os.path.join(path, IDENTITY)):
        raise TinkitError(
            "There is no store here.",
            where=path,
            next_step="give the stores' paths; tinkit store ls names what is there",
        )
    held = InUse(path, stamp=False)
    return _Source(path, *read_identity(path), held)


def _refuse_another(first: _Source, other: _Source) -> None:
    """TinkitError where the rows of two stores do not mean the same."""
    mine, theirs = without_list(first.identity), without_list(other.identity)
    differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if first.identity["views"]["numbers"] != other.identity["views"]["numbers"]:
        differing.append("numbers of the views")
    if differing or first.layout.arrays != other.layout.arrays:
        raise TinkitError(
            "These stores cannot be joined: their rows do not mean the same.",
            where=f"{first.path}, {other.path}",
            seen="different " + ", ".join(differing or ["arrays"]),
            next_step="join stores of one teacher, one decoder, and the same views and arrays",
        )


def _parts(sources: list[_Source], into, say) -> Merged:
    """Copy every finished shard once; a joined store that still lacks some can be finished by a run."""
    layout, identity = sources[0].layout, sources[0].identity
    for other in sources[1:]:
        if other.layout != layout:
            raise _cut_otherwise(sources[0].path, other.path)
    path = os.path.join(into, files.sha256_of_json(identity)[:16])
    with files.folder_lock(path, "the feature store"):
        contents = np.fromfile(os.path.join(sources[0].path, CONTENTS), np.uint8)
        if _begun(path, contents, identity, layout) != layout:
            raise _cut_otherwise(sources[0].path, path)
        missing = []
        for shard in range(layout.shards):
            if _shard_finished(path, layout, shard):
                continue
            owner = next((one for one in sources if _shard_finished(one.path, layout, shard)), None)
            if owner is None:
                missing.append(shard)
            else:
                _copy_shard(owner.path, path, layout, shard)
    if missing:
        say(f"{len(missing)} of {layout.shards} shards are in none of the parts: a run with this store computes them")
    else:
        open_shards(path, layout).check()
    return _merged(path, layout, not missing)


def _cut_otherwise(one, other) -> TinkitError:
    return TinkitError(
        "The parts are cut into other shards.",
        where=f"{one}, {other}",
        next_step="make the parts by the same number of processes, or remove one and run again",
    )


def _begun(path, contents, identity, layout: Layout) -> Layout:
    """Describe the joined store in its folder; one that is there already keeps its layout, and so its rows."""
    if os.path.exists(os.path.join(path, IDENTITY)):
        return read_identity(path)[1]
    with files.atomic(os.path.join(path, CONTENTS)) as partial:
        contents.tofile(partial)
    write_identity(path, identity, layout)
    return layout


def _shard_finished(path, layout: Layout, shard) -> bool:
    journal = journal_of(path, shard)
    if not os.path.exists(journal):
        return False
    with open(journal, "rb") as handle:
        return read_journal(handle.read(), layout.pictures_of(shard)).finished


def _copy_shard(source, path, layout: Layout, shard) -> None:
    """The journal last: a shard counts from then on."""
    names = [file_of(path, shard, name) for name in layout.arrays] + [journal_of(path, shard)]
    for name in names:
        with files.atomic(name) as partial:
            shutil.copyfile(os.path.join(source, os.path.basename(name)), partial)


def _pictures(sources: list[_Source], into, say) -> Merged:
    """Copy the rows of all pictures into a new store."""
    for one in sources:
        if not is_finished(one.path, one.layout):
            raise TinkitError("A store is not finished.", where=one.path, next_step="finish the run that makes it")
    shards = [open_shards(one.path, one.layout) for one in sources]
    contents_N32 = _union([_contents(one, opened.bad) for one, opened in zip(sources, shards)])
    lenders = []
    for one, opened in zip(sources, shards):
        where_N = places_of(
            np.fromfile(os.path.join(one.path, CONTENTS), np.uint8).reshape(-1, HASH_BYTES), contents_N32
        )
        where_N[np.isin(where_N, list(opened.bad))] = NOWHERE
        lenders.append(Lender(FeatureStore(one.path, one.layout.views, opened), where_N))
    layout = _layout(sources[0].layout, len(contents_N32))
    pictures = {"count": len(contents_N32), "sha256": sha256_of_contents(contents_N32)}
    identity = {**sources[0].identity, "pictures": pictures}
    path = os.path.join(into, files.sha256_of_json(identity)[:16])
    say(
        f"{layout.pictures} pictures of {sum(one.layout.pictures for one in sources)} rows, {layout.total_bytes:.0f} MB"
    )
    with files.folder_lock(path, "the feature store"):
        layout = _begun(path, contents_N32, identity, layout)
        _copy_rows(path, layout, Lenders(lenders, len(contents_N32)), _losses(shards))
    return _merged(path, layout, True)


def _contents(source: _Source, bad) -> np.ndarray:
    """The addresses of the pictures that were not put aside, (N, 32)."""
    contents = np.fromfile(os.path.join(source.path, CONTENTS), np.uint8)
    if contents.size != source.layout.pictures * HASH_BYTES:
        raise TinkitError("The list of a store's pictures is damaged.", where=os.path.join(source.path, CONTENTS))
    return np.delete(contents.reshape(-1, HASH_BYTES), sorted(bad), axis=0)


def _union(parts: list[np.ndarray]) -> np.ndarray:
    """All addresses once, each where it comes first."""
    joined = np.concatenate(parts)
    _, first = np.unique(joined, axis=0, return_index=True)
    return joined[np.sort(first)]


def _layout(like: Layout, pictures: int) -> Layout:
    return Layout(
        like.arrays, like.grid, pictures, like.views, pictures_per_shard(like.row_bytes, pictures, like.views, STEP, 1)
    )


def _losses(shards: list[Shards]) -> dict[str, list[float]]:
    """What int8 cost in all of them, as a journal tells it: (name, fields of `Loss`)."""
    found: dict[str, Loss] = {}
    for one in shards:
        for name, loss in one.loss.items():
            found[name] = found[name] + loss if name in found else loss
    return {name: [float(value) for value in astuple(loss)] for name, loss in found.items()}


def _copy_rows(path, layout: Layout, lenders: Lenders, losses) -> None:
    """The loss belongs to all rows together and is told with the first of them."""
    for shard in range(layout.shards):
        writer = ShardWriter(path, layout, shard)
        try:
            for start in range(writer.next, writer.pictures.stop, STEP):
                stop = min(start + STEP, writer.pictures.stop)
                rows = {
                    name: np.ascontiguousarray(array) for name, array in lenders.rows(np.arange(start, stop)).items()
                }
                writer.append(stop, rows, {}, {} if start else losses)
        finally:
            writer.close()


def _merged(path, layout: Layout, finished: bool) -> Merged:
    return Merged(path, layout.pictures, layout.total_bytes, finished)
