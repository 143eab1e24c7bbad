"""`tinkit store verify`: are a store's bytes what was written, and is what was written what the teacher says?

Every byte is held against its hash. With the pictures at hand a sample of them is shown to the teacher again, in the
store's own views, and the rows are compared by cosine: a store of another teacher, decoder or view policy does not pass.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tinkit.errors import TinkitError
from tinkit.host.images import Picture, scan
from tinkit.host.store.build import Job, wanted_arrays
from tinkit.host.store.identity import HASH_BYTES, identity_of
from tinkit.host.store.listing import FINISHED, list_stores, look_at
from tinkit.host.store.mapped import InUse, Shards, open_shards
from tinkit.host.store.reader import FeatureStore
from tinkit.host.store.reuse import NOWHERE, places_of
from tinkit.host.store.shards import CONTENTS, Layout, read_identity
from tinkit.host.store.size import told_size
from tinkit.host.teacher import load_teacher
from tinkit.host.views import AllViews, Broken, ViewPolicy

PASSED, FAILED, NOT_JUDGED = "passed", "failed", "not judged"
COSINE = 0.999  # of a row and the teacher's answer now; int8 may lose a little more, see `_limit`
TRIES = 20  # pictures that are looked at for each one of the sample


@dataclass(frozen=True)
class Verified:
    """What was found of one store."""

    name: str
    verdict: str
    reason: str


def verify_stores(
    root, names: Sequence[str] = (), images=None, teacher=None, teacher_weights=None, sample=32, seed=0, say=None
) -> list[Verified]:
    """Check the named stores below `root`, or all. `images`: where the pictures are, for a sample of them.

    teacher, teacher_weights: as for `tinkit distill`, where the store's own name for it is not enough (an ONNX file).
    """
    paths = [_path(root, name) for name in names] if names else [one.path for one in list_stores(root)]
    if not paths:
        raise TinkitError("There are no stores here.", where=root, next_step="--store names their folder")
    pictures = None if images is None else scan(images, mode="quick").usable
    return [
        _verify(path, pictures, teacher, teacher_weights, sample, seed, say or (lambda line: None)) for path in paths
    ]


def _path(root, name) -> str:
    path = name if os.path.isdir(name) else os.path.join(root, name)
    if not os.path.isdir(path):
        raise TinkitError("There is no store of this name.", where=root, seen=name, next_step="tinkit store ls")
    return path


def _verify(path, pictures, teacher, weights, sample, seed, say: Callable[[str], None]) -> Verified:
    listed = look_at(path)
    if listed.state != FINISHED:
        return Verified(listed.name, NOT_JUDGED, listed.state)
    say(f"{listed.name}: {told_size(listed.bytes)} against their hashes")
    try:
        in_use = InUse(path, stamp=False)
        identity, layout = read_identity(path)
        shards = open_shards(path, layout)
        shards.check()
    except TinkitError as error:
        return Verified(listed.name, FAILED, f"{error.what} {error.where}: {error.seen}")
    whole = f"every byte is as it was written ({layout.pictures} pictures, {len(shards.bad)} of them put aside)"
    if pictures is None:
        return Verified(listed.name, PASSED, whole)
    try:
        verdict, reason = _against_the_teacher(path, identity, layout, shards, pictures, teacher, weights, sample, seed)
    except TinkitError as error:  # the other stores are judged all the same
        verdict, reason = NOT_JUDGED, f"no teacher to compare with: {error.what} {error.seen or ''}".rstrip()
    del in_use
    return Verified(listed.name, verdict, f"{whole}; {reason}")


def _against_the_teacher(path, identity, layout: Layout, shards: Shards, pictures, name, weights, sample, seed):
    """(verdict, reason) of a sample of rows that are computed again."""
    numbers, found = _sample(path, layout, shards, pictures, sample, seed)
    if not found:
        return NOT_JUDGED, "none of the pictures that were looked at is in the store"
    told = identity["teacher"]
    size = told["preprocessing"]["size"]
    norm = (
        (told["preprocessing"]["mean"], told["preprocessing"]["std"])
        if told["architecture"] == "onnx"
        else (None, None)
    )
    teacher = load_teacher(name or told["name"], weights, size, told["global"] == "pooled", *norm)
    teacher = teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    told_views = identity["views"]
    policy = ViewPolicy(**{key: value for key, value in told_views["policy"].items() if key != "version"})
    views = AllViews(found, policy, [teacher.preprocessing], told_views["crop_pct"], numbers=told_views["numbers"])
    parts = tuple(part for part in ("local", "logits", "taps") if identity.get(part))
    here = identity_of(teacher, views, parts, identity["dtype"], identity.get("grid"))
    others = [key for key in here if key != "pictures" and here[key] != identity.get(key)]
    if others:
        return NOT_JUDGED, "here is another " + ", ".join(others) + " than the store was made with"
    job = Job(teacher, views, parts, identity["dtype"], grid=identity.get("grid"))
    worst = _worst_cosine(job, FeatureStore(path, layout.views, shards), numbers)
    limit = _limit(shards)
    told_worst = f"worst cosine of {len(found)} pictures to the teacher now {worst:.6f}, limit {limit:.6f}"
    return (PASSED if worst >= limit else FAILED), told_worst


def _sample(path, layout: Layout, shards: Shards, pictures: Sequence[Picture], sample, seed):
    """(numbers in the store, pictures with the store's address) of at most `sample` pictures that are in it."""
    contents = np.fromfile(os.path.join(path, CONTENTS), np.uint8).reshape(-1, HASH_BYTES)
    numbers: list[int] = []
    found: list[Picture] = []
    for index in np.random.default_rng(seed).permutation(len(pictures))[: TRIES * sample]:
        picture = pictures[int(index)]
        for address in filter(None, (picture.content, _sha256(picture))):  # of a quick listing, or of the bytes
            place = int(places_of(contents, np.frombuffer(bytes.fromhex(address), np.uint8)[None])[0])
            if place != NOWHERE and place not in shards.bad:
                numbers.append(place)
                found.append(Picture(picture.path, picture.name, address, picture.place))
                break
        if len(found) == sample:
            break
    return numbers, found


def _sha256(picture: Picture) -> str | None:
    try:
        return hashlib.sha256(picture.read()).hexdigest()
    except OSError:
        return None


def _worst_cosine(job: Job, store: FeatureStore, numbers: list[int]) -> float:
    """The lowest cosine of any stored row to what the teacher says now; -1 for a picture that cannot be read any more."""
    worst = 1.0
    for place, number in enumerate(numbers):
        pixels = job.views[place]
        if isinstance(pixels, Broken):
            return -1.0
        now, _ = wanted_arrays(job, job.teacher.features(pixels, job.parts))
        rows_K = number * store.views + np.arange(store.views)
        for name, values in now.items():
            rows = torch.from_numpy(store.arrays[name][rows_K]).flatten(1).double()
            answers = values.cpu().flatten(1).double()
            worst = min(worst, float(torch.nn.functional.cosine_similarity(rows, answers).min()))
    return worst


def _limit(shards: Shards) -> float:
    """int8 loses what was measured when it was written; arithmetic differs a little from machine to machine."""
    return COSINE + min([0.0, *(loss.cosine_worst - 1.0 for loss in shards.loss.values())])
