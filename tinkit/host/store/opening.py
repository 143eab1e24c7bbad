"""Opens the store that belongs to a teacher and views: as it is, through another's rows, or after filling what is missing.

One process of several (rank 0) writes the identity and holds the folder's lock for all; each fills its own shards. A process
that has nothing to do with them waits at the lock, and finds a finished store.
"""

import contextlib
import os
import time
from collections.abc import Callable

import torch

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.store.build import Job, fill, layout_of
from tinkit.host.store.identity import contents_of, identity_of
from tinkit.host.store.mapped import InUse, check_if_small, is_finished, open_shards
from tinkit.host.store.reader import FeatureStore
from tinkit.host.store.reuse import Lenders, lenders_of, whole
from tinkit.host.store.shards import CONTENTS, IDENTITY, Layout, journal_of, read_identity, write_identity
from tinkit.host.teacher import Teacher
from tinkit.host.views import AllViews

WAIT_S = 0.2  # between two looks whether another process is done


def open_or_build(
    root,
    teacher: Teacher,
    views: AllViews,
    tick: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    *,
    rank: int = 0,
    ranks: int = 1,
    barrier: Callable[[], object] | None = None,
    limit_bytes: int | None = None,
    **options,
) -> FeatureStore:
    """The store for this teacher and these views below `root`: opened when finished, else continued or begun.

    `options` are those of `Job`. `tick(n)` is told of n more pictures done; when `stop()` turns true the work ends at the
    next batch with InterruptedError, all rows so far kept. Of `ranks` processes each fills its own shards; all call this
    alike, with a `barrier()` at which they wait for each other (twice). `limit_bytes`, of all stores below `root`: those
    used longest ago are removed to make room. Raises TinkitError for damage, a full disk, features that do not fit the
    dtype, or a picture gone meanwhile (unless `put_aside`).
    """
    if ranks > 1 and barrier is None:
        raise ValueError("several ranks need a barrier")
    job, meet = Job(teacher, views, **options), barrier or (lambda: None)
    tell, counted = (say if rank == 0 else None) or (lambda line: None), Counted(tick)
    contents_N32 = contents_of(views.pictures)
    identity = identity_of(teacher, views, job.parts, job.dtype, job.grid, contents_N32)
    path = os.path.join(root, files.sha256_of_json(identity)[:16])
    with contextlib.ExitStack() as held:
        in_use = InUse(path)  # what is found below stays
        done = _done(path)
        lenders = Lenders([], len(contents_N32)) if done else lenders_of(root, identity, contents_N32, path)
        if rank == 0 and not done:
            _begin(job, path, identity, contents_N32, lenders, ranks, limit_bytes, tell, held, stop)
        meet()
        in_use = InUse(path)  # what was begun meanwhile stays
        if not done and _exists(path):
            layout = _own_layout(path, identity)
            fill(job, layout, path, range(rank, layout.shards, ranks), lenders, counted, stop)
        meet()
    store = _open(path, identity, in_use, tell) if _exists(path) else _lent(lenders, path, tell)
    counted(len(contents_N32) - counted.total)
    _report(store, job, tell)
    return store


class Counted:
    """tick, and how much it was told."""

    def __init__(self, tick):
        self.tick, self.total = tick or (lambda n: None), 0

    def __call__(self, pictures: int) -> None:
        self.total += pictures
        if pictures:
            self.tick(pictures)


def _exists(path) -> bool:
    return os.path.exists(os.path.join(path, IDENTITY))


def _done(path) -> bool:
    """Whether there is nothing left to compute (damage is for the opening to find)."""
    try:
        return _exists(path) and is_finished(path, read_identity(path)[1])
    except (TinkitError, OSError):
        return False


def _begin(job, path, identity, contents_N32, lenders: Lenders, ranks, limit_bytes, tell, held, stop) -> None:
    """Hold the folder, and describe the store in it if nobody did; nothing where another store has all the rows."""
    if not _exists(path) and whole(lenders) is not None:
        return
    held.enter_context(files.folder_lock(path, "the feature store", wait=_waiting(path, tell, stop)))
    if not _exists(path):
        layout = layout_of(job, ranks)
        _make_room(path, layout, limit_bytes, tell)
        with files.atomic(os.path.join(path, CONTENTS)) as partial:
            contents_N32.tofile(partial)
        write_identity(path, identity, layout)
    layout = _own_layout(path, identity)
    rows = layout.pictures * layout.views
    tell(f"feature store: {rows} rows of {layout.row_bytes} bytes, {layout.total_bytes / 1e6:.0f} MB in {path}")
    if lenders.count:
        tell(f"feature store: {lenders.count} of {layout.pictures} pictures copied from stores that hold them")


def _waiting(path, tell, stop):
    """What to do while another process holds the store: say so once, and hear when the work shall end."""
    told = []

    def wait(holder):
        if not told:
            told.append(holder)
            tell(f"feature store: process {holder} is filling it; waiting for it ({path})")
        if stop and stop():
            raise InterruptedError
        time.sleep(WAIT_S)

    return wait


def _make_room(path, layout: Layout, limit_bytes, tell) -> None:
    """Remove the stores beside this one that were used longest ago until it fits below the limit."""
    if limit_bytes is None:
        return
    from tinkit.host.store.collect import collect

    if layout.total_bytes > limit_bytes:
        raise TinkitError(
            "The feature store is larger than the limit for stores.",
            where=path,
            seen=f"{layout.total_bytes / 1e9:.1f} GB, the limit is {limit_bytes / 1e9:.1f} GB",
            next_step="a higher limit, fewer views, a coarser grid or int8",
        )
    collect(os.path.dirname(path), limit_bytes - layout.total_bytes, keep=path, say=tell, useless=False)


def _own_layout(path, identity) -> Layout:
    theirs, layout = read_identity(path)
    if theirs != identity:
        raise TinkitError(
            "The store in this folder belongs to something else.",
            where=os.path.join(path, IDENTITY),
            next_step="remove it",
        )
    return layout


def _open(path, identity, in_use, tell) -> FeatureStore:
    layout = _own_layout(path, identity)
    shards = open_shards(path, layout)
    check_if_small(shards, tell)
    return FeatureStore(path, layout.views, shards, in_use=in_use)


def _lent(lenders: Lenders, path, tell) -> FeatureStore:
    store = whole(lenders)
    if store is None:
        raise TinkitError("The feature store was removed while it was opened.", where=path, next_step="run again")
    check_if_small(store.shards, tell)
    tell(f"feature store: all rows are in {store.path} already, nothing is computed")
    return store


def _report(store: FeatureStore, job: Job, tell) -> None:
    """What was put aside, and what int8 cost. TinkitError when nothing was to be put aside."""
    for name, loss in store.loss.items():
        tell(f"feature store: int8 {name}: {loss}")
    if not len(store.bad):
        return
    first = int(store.bad[0])
    shown = f"{job.views.pictures[first].name}: {store.bad_reasons[first]}"
    journal = journal_of(store.path, first // store.shards.layout.pictures_per_shard)
    if not job.put_aside:
        raise TinkitError(
            "The feature store lacks pictures that could not be read.",
            where=store.path,
            seen=f"{len(store.bad)} pictures, the first {shown}",
            next_step=f"restore them and remove {journal}: its shard is computed anew",
        )
    tell(f"feature store: {len(store.bad)} pictures put aside, the first {shown} (to try again remove {journal})")


def ignore_interrupt(_worker):
    """Ctrl-C belongs to the main process: it stops at a batch and saves; workers just finish."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
