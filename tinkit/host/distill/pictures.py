"""The pictures of a run: found once, split, and decoded once where memory allows.

The first process looks at the source; the others read what it found from a file beside the run. A node's processes
share one cache of decoded pictures, filled by the scan and read by the views of teacher and student.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tinkit.errors import TinkitError
from tinkit.host.decoded import FOLDER, DecodedCache, default_limit
from tinkit.host.distill.ranks import Ranks
from tinkit.host.distill.settings import Settings
from tinkit.host.images import Catalogue, Pictures, scan, split
from tinkit.host.labels import Labels, read_labels
from tinkit.host.progress import Progress

FOUND = ".pictures.npz"  # in the run's folder, while the processes start
CACHED_BYTES = 30_000  # of a decoded picture at least, for the number of places in the cache


@dataclass(frozen=True)
class Found:
    """All pictures, those to train on and those held out."""

    pictures: Pictures
    train: Catalogue
    held_out: Catalogue

    @property
    def quick(self) -> bool:
        """Whether no picture was opened yet, so that some may turn out unreadable."""
        return self.pictures.address != "content"

    def without(self, bad: dict[str, str]) -> "Found":
        """The same with pictures, by name, that could not be read after all: named as skipped, no longer held out."""
        if not bad:
            return self
        own, held = self.pictures, self.held_out
        usable = [number for number in range(len(own.usable)) if own.usable.name(number) not in bad]
        kept = [number for number in range(len(held)) if held.name(number) not in bad]
        pictures = replace(own, usable=own.usable.take(usable), skipped=(*own.skipped, *bad.items()))
        return Found(pictures, self.train, held.take(kept))


def find_pictures(settings: Settings, out, cache: DecodedCache | None, progress: Progress, stop, ranks: Ranks) -> Found:
    """Scan in the first process, split in all. TinkitError when there are too few."""
    path = os.path.join(out, FOUND)

    def look():
        found = scan(
            settings.images,
            settings.strict,
            progress.counter("reading"),
            stop,
            mode=settings.scan,
            cache=cache,
            say=progress.say,
        )
        if ranks.count > 1:
            found.usable.save(path)
        kept.append(found)
        return {"root": found.root, "others": found.others, "address": found.address}

    kept: list[Pictures] = []
    told = ranks.share(look)
    pictures = kept[0] if kept else Pictures(usable=Catalogue.load(path), skipped=(), **told)
    ranks.barrier()
    if ranks.first and ranks.count > 1:
        os.unlink(path)
    train, held_out = split(pictures.usable, settings.seed)
    progress.say(
        f"{len(pictures.usable)} pictures ({len(held_out)} held out), "
        f"{len(pictures.skipped)} unreadable, {pictures.others} other files"
    )
    refuse_too_few(len(train), len(held_out), pictures.root, settings)
    return Found(pictures, train, held_out)


def usable_numbers(found: Found, bad: np.ndarray, settings: Settings) -> np.ndarray:
    """Numbers of the training pictures that are not put aside. TinkitError when too few are left."""
    numbers_N = np.setdiff1d(np.arange(len(found.train)), bad)
    refuse_too_few(len(numbers_N), len(found.held_out), found.pictures.root, settings)
    return numbers_N


def refuse_too_few(train: int, held_out: int, root, settings: Settings) -> None:
    if held_out < 2 or train < settings.batch_size:
        raise TinkitError(
            "There are too few pictures: fewer to train on than a batch holds, or fewer than two to hold out.",
            where=root,
            seen=f"{train} pictures, --batch-size {settings.batch_size}",
            next_step="more pictures, or a smaller --batch-size",
        )


def find_labels(settings: Settings, found: Found, progress: Progress) -> Labels | None:
    """The labels of the pictures, None without. TinkitError when there is nothing to learn from them."""
    if settings.labels is None:
        return None
    pictures = found.pictures
    labels = read_labels(settings.labels, pictures.usable, pictures.root).within(found.train)
    progress.say(labels.in_words())
    if len(labels.classes) < 2:
        raise TinkitError(
            "Too few labels are left to train on: two classes need a picture each outside of the held-out ones.",
            where=pictures.root,
            seen=labels.in_words(),
            next_step="more labels",
        )
    return labels


@contextlib.contextmanager
def decoded_cache(settings: Settings, out, ranks: Ranks, say) -> Iterator[DecodedCache | None]:
    """The node's cache, made by its first process; None where there shall be none, or another decoder is used."""
    limit = default_limit(out) if settings.decoded_cache_gb is None else int(settings.decoded_cache_gb * 1e9)
    if settings.decoder != "pillow" or limit < CACHED_BYTES:
        limit = 0
    made: list[DecodedCache] = []

    def make():
        if not limit:
            return None
        try:
            made.append(DecodedCache.make(out, limit, limit // CACHED_BYTES))
        except TinkitError as error:
            say(f"decoded pictures are not kept, and are decoded at every use: {error.what} {error.seen or ''}")
            return None
        return made[0].path

    path = ranks.share_on_node(make)
    cache = None if path is None else made[0] if made else DecodedCache(path)
    try:
        yield cache
    finally:
        if cache is not None:
            cache.close()
        if made:
            shutil.rmtree(os.path.join(out, FOLDER), ignore_errors=True)
