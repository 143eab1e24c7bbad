"""Tries every picture of a source once and hashes its bytes, before anything is trained.

So an unreadable picture is known and counted at the start; the content hash is the picture's address for views, for the
store and for the split (duplicates always fall on the same side). Nothing is kept in memory but names and hashes.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tinkit.device.pictures import Unreadable, decode
from tinkit.errors import TinkitError
from tinkit.host.images.catalogue import ADDRESS_BYTES, Catalogue, Pictures
from tinkit.host.images.picture import Picture
from tinkit.host.images.sources import list_pictures

MIN_SIDE = 8  # pixels; below it there is nothing to see


def scan(images, strict=False, tick=None, stop=None) -> Pictures:
    """All usable pictures of `images`, in the source's order. `tick(total)` is called once a picture;
    InterruptedError once `stop()` is true.

    Raises TinkitError when the source is missing, or without a usable picture; with `strict` also for the first
    unreadable one.
    """
    listing = list_pictures(images, stop)
    candidates = listing.pictures
    contents_N32 = np.zeros((len(candidates), ADDRESS_BYTES), np.uint8)
    usable_N = np.zeros(len(candidates), bool)
    skipped = list(listing.lost)
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for number, (digest, reason) in enumerate(_in_order(pool, candidates)):
            if reason is None:
                contents_N32[number], usable_N[number] = np.frombuffer(digest, np.uint8), True
            elif strict:
                raise _unreadable(candidates[number].path, reason)
            else:
                skipped.append((candidates.name(number), reason))
            if tick:
                tick(len(candidates))
            if stop and stop():
                raise InterruptedError
    if strict and listing.lost:
        raise _unreadable(*listing.lost[0])
    if not usable_N.any():
        raise TinkitError(
            "There is no usable picture in the folder.",
            where=listing.source,
            seen=f"{len(skipped)} unreadable, {listing.others} files that are no pictures",
            next_step="give a folder with JPEG, PNG or other pictures, in any depth",
        )
    usable = candidates.with_contents(contents_N32).take(usable_N)
    return Pictures(listing.source, usable, tuple(skipped), listing.others)


def _unreadable(where, reason):
    return TinkitError(
        "A picture cannot be read (--strict).",
        where=where,
        seen=reason,
        next_step="remove or repair it, or leave --strict out to skip such files",
    )


def _in_order(pool, candidates: Catalogue, ahead=256) -> Iterator[tuple[bytes, str | None]]:
    """`_try` over many pictures, a bounded number in flight: a million names do not become a million futures."""
    for start in range(0, len(candidates), ahead):
        yield from pool.map(_try, candidates[start : start + ahead])


def _try(picture: Picture) -> tuple[bytes, str | None]:
    """(sha256 of the bytes, None) for a usable picture, (b"", reason) for another."""
    try:
        data = picture.read()
        image = decode(data)
    except Unreadable as error:
        return b"", str(error)
    except OSError as error:
        return b"", (error.strerror or str(error)).lower()
    if min(image.size) < MIN_SIDE:
        return b"", f"too small: {image.width} x {image.height} pixels"
    return hashlib.sha256(data).digest(), None
