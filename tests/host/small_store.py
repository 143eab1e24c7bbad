"""A store in milliseconds for the tests: pictures made of their address, and a teacher that is arithmetic."""

import hashlib
import os

import numpy as np
import torch

from tinkit.host.features import Features
from tinkit.host.images import Picture
from tinkit.host.views import AllViews, Broken, ViewPolicy
from tinkit.pixels import Preprocessing

SIDE = 8
OWN = Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Listing:
    """`count` pictures that exist nowhere, each made on asking. `first`: number of the first, so that lists may overlap."""

    def __init__(self, count, first=0):
        self.count, self.first = count, first

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        name = str(self.first + number)
        return Picture(name, name, hashlib.sha256(name.encode()).hexdigest())


class MadeViews(AllViews):
    """Pixels drawn from a picture's address and the view's number; the pictures with these names are broken."""

    def __init__(self, pictures, numbers=(0, 1), broken=(), seed=0):
        super().__init__(pictures, ViewPolicy(seed=seed), [OWN], 1.0, numbers=list(numbers))
        self.broken = frozenset(broken)

    def __getitem__(self, index):
        picture = self.pictures[index]
        if picture.name in self.broken:
            return Broken(picture.path, "planted damage")
        draws = [np.random.default_rng([int(picture.content[:8], 16), k, self.policy.seed]) for k in self.numbers]
        return torch.from_numpy(np.stack([d.integers(0, 256, (3, SIDE, SIDE), np.uint8) for d in draws]))


class Arithmetic:
    """A teacher whose rows do not depend on what else is in the batch. It counts, and may fail after so many views."""

    def __init__(self, name="arithmetic", fail_after=None, scale=1.0, classes=5):
        self.identity, self.preprocessing = {"name": name, "scale": str(scale)}, OWN
        self.seen, self.fail_after, self.scale, self.classes = 0, fail_after, scale, classes

    def features(self, pixels_BCHW, parts=("local",)):
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise RuntimeError("the power failed")
        if len(pixels_BCHW) > 1 or pixels_BCHW.any():  # not the empty picture that tells the shapes
            self.seen += len(pixels_BCHW)
        map_BCHW = torch.nn.functional.avg_pool2d(pixels_BCHW.float() * self.scale, 2)
        map_BCHW = torch.cat([map_BCHW - 100 * self.scale, map_BCHW.flip(1) ** 2 / 255], 1)
        local = map_BCHW.flatten(2).transpose(1, 2) if "local" in parts else None
        logits = map_BCHW[:, :5, 0, 0] if "logits" in parts else None
        taps = {"one.0": map_BCHW[:, :4]} if "taps" in parts else {}
        return Features(map_BCHW[:, :, 1, 2], local, (4, 4), logits, taps)


def bytes_of(store):
    """{file: bytes} of all arrays of a store."""
    found = {}
    for name in sorted(os.listdir(store.path)):
        if name.endswith(".bin"):
            with open(os.path.join(store.path, name), "rb") as handle:
                found[name] = handle.read()
    return found


def flip(path, place=None, bit=1):
    """Flip a bit of the byte at `place`; in the middle when not given."""
    place = os.path.getsize(path) // 2 if place is None else place
    with open(path, "r+b") as handle:
        handle.seek(place)
        byte = handle.read(1)
        handle.seek(place)
        handle.write(bytes([byte[0] ^ bit]))
