"""Tries every picture of a source once and hashes its bytes, before anything is trained.

So an unreadable picture is known and counted at the start; the content hash is the picture's address for views, for the
store and for the split (duplicates always fall on the same side). Decoding happens in guarded processes: a picture that
kills or hangs its decoder is put aside by name like any other. Of very many pictures only names, sizes and times are
taken (`quick`). Nothing is kept in memory but names and hashes.
"""

import hashlib
import os

import numpy as np

from tinkit.device.pictures import Unreadable, decode
from tinkit.errors import TinkitError
from tinkit.host.guard import Guarded, Lost
from tinkit.host.images.catalogue import ADDRESS_BYTES, Catalogue, Pictures
from tinkit.host.images.picture import Picture
from tinkit.host.images.quick import ADDRESS, quick_addresses, refusal
from tinkit.host.images.reading import LIMIT_S, patiently
from tinkit.host.images.sources import KINDS, Listing, list_pictures

MIN_SIDE = 8  # pixels; below it there is nothing to see
MODES = ("full", "quick", "auto")
AUTO_FULL = 100_000  # pictures; "auto" opens no more than that
BATCH = 16  # pictures a message: small ones are read faster than a process can be told of them
TIMEOUT_S = LIMIT_S + 60  # a network share may be away that long, and a decoder then work


def scan(
    images, strict=False, tick=None, stop=None, mode="full", workers: int | None = None, cache=None, say=None
) -> Pictures:
    """All usable pictures of `images`, in the source's order. `tick(total)` is called once a picture;
    InterruptedError once `stop()` is true.

    mode: "full" decodes and hashes every picture, in `workers` processes (None: one for each core; 0: in this one,
    unguarded), and leaves the pixels in `cache` (a DecodedCache) as long as there is room; "quick" opens none; "auto"
    chooses by the number of pictures and tells `say`. Raises TinkitError when the source is missing, or without a usable
    picture; with `strict` also for the first unreadable one.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}, one of {MODES}")
    listing = list_pictures(images, stop)
    count = len(listing.pictures)
    quick = mode == "quick" or (mode == "auto" and count > AUTO_FULL)
    if mode == "auto" and quick and say:
        say(f"{count:,} pictures, more than {AUTO_FULL:,}: known by name, size and time, not opened beforehand")
    verdicts = _Verdicts(listing, strict, tick, stop)
    if quick:
        contents_N32 = quick_addresses(listing.pictures, verdicts.add)
    else:
        workers = _cores() if workers is None else workers
        contents_N32 = _full_addresses(listing.pictures, verdicts.add, workers, cache, stop)
    return verdicts.pictures(contents_N32, ADDRESS if quick else "content")


class _Verdicts:
    """Which pictures are usable, and why the others are not; in any order, each once."""

    def __init__(self, listing: Listing, strict, tick, stop):
        self.listing, self.strict, self.tick, self.stop = listing, strict, tick, stop
        self.usable_N = np.zeros(len(listing.pictures), bool)
        self.reasons: dict[int, str] = {}

    def add(self, number, reason: str | None):
        if reason is None:
            self.usable_N[number] = True
        elif self.strict:
            raise _unreadable(self.listing.pictures[number].path, reason)
        else:
            self.reasons[number] = reason
        if self.tick:
            self.tick(len(self.usable_N))
        if self.stop and self.stop():
            raise InterruptedError

    def pictures(self, contents_N32, address) -> Pictures:
        listing, candidates = self.listing, self.listing.pictures
        if self.strict and listing.lost:
            raise _unreadable(*listing.lost[0])
        skipped = [*listing.lost, *((candidates.name(n), self.reasons[n]) for n in sorted(self.reasons))]
        if not self.usable_N.any():
            first = f": {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            raise TinkitError(
                "There is no usable picture in the folder."
                if os.path.isdir(listing.source)
                else "There is no usable picture.",
                where=listing.source,
                seen=f"{len(skipped)} unreadable, {listing.others} files that are no pictures{first}",
                next_step="give " + KINDS,
            )
        usable = candidates.with_contents(contents_N32).take(self.usable_N)
        return Pictures(listing.source, usable, tuple(skipped), listing.others, address)


def _unreadable(where, reason):
    return TinkitError(
        "A picture cannot be read (--strict).",
        where=where,
        seen=reason,
        next_step="remove or repair it, or leave --strict out to skip such files",
    )


def _full_addresses(candidates: Catalogue, done, workers, cache, stop) -> np.ndarray:
    """(N, 32) uint8 hashes of the bytes; a batch that was lost is tried again one by one, to find which it was."""
    contents_N32 = np.zeros((len(candidates), ADDRESS_BYTES), np.uint8)

    def take(numbers, result):
        digests, reasons = result
        contents_N32[numbers.start : numbers.stop] = np.frombuffer(digests, np.uint8).reshape(-1, ADDRESS_BYTES)
        for number in numbers:
            done(number, reasons.get(number))

    batches = [range(start, min(start + BATCH, len(candidates))) for start in range(0, len(candidates), BATCH)]
    lost: list[range] = []
    with Guarded(_Trial(candidates, cache), min(workers, len(batches)), TIMEOUT_S) as guarded:
        for result, numbers in zip(guarded.map(batches, stop=stop), batches):
            if isinstance(result, Lost):
                lost.extend(range(number, number + 1) for number in numbers)
            else:
                take(numbers, result)
        for result, one in zip(guarded.map(lost, stop=stop), lost):
            take(one, (bytes(ADDRESS_BYTES), {one.start: result.reason}) if isinstance(result, Lost) else result)
    return contents_N32


class _Trial:
    """What a process does with a range of picture numbers: (their digests in a row, {number: reason})."""

    def __init__(self, candidates: Catalogue, cache):
        self.candidates, self.cache = candidates, cache

    def __call__(self, numbers: range) -> tuple[bytes, dict[int, str]]:
        digests, reasons = [], {}
        for number in numbers:
            digest, reason = try_picture(self.candidates[number], self.cache)
            digests.append(digest)
            if reason is not None:
                reasons[number] = reason
        return b"".join(digests), reasons


def try_picture(picture: Picture, cache=None) -> tuple[bytes, str | None]:
    """(sha256 of the bytes, None) for a usable picture, (zeros, reason) for another. Only regular files are opened."""
    try:
        container = picture.container
        reason = refusal(patiently(lambda: os.stat(container), container, root=picture.root))
        if reason is not None:
            return bytes(ADDRESS_BYTES), reason
        data = picture.read()
        image = decode(data)
    except Unreadable as error:
        return bytes(ADDRESS_BYTES), str(error)
    except OSError as error:
        return bytes(ADDRESS_BYTES), (error.strerror or str(error)).lower()
    if min(image.size) < MIN_SIDE:
        return bytes(ADDRESS_BYTES), f"too small: {image.width} x {image.height} pixels"
    digest = hashlib.sha256(data).digest()
    if cache is not None:
        cache.put(digest.hex(), image)
    return digest, None


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
