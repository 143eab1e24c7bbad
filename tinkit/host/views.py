"""A view is a pure function of (picture, seed): crop, flip and colour drawn from the seed, and so replayed at will.

That is what makes cached teacher features honest: they belong to exactly the pixels that the student sees. Teacher and
student get the same box of the same picture, each resampled to its own size. K views a picture are numbered 0..K-1;
the evaluation view (`EVALUATION`) is the centred square that the deployed student will get.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as colour

from tinkit.device.pictures import Unreadable, crop, decode
from tinkit.errors import TinkitError
from tinkit.host.images import Picture
from tinkit.pixels import Preprocessing, centre_box

EVALUATION = -1
POLICY_VERSION = 1  # raised whenever the same seed would give other pixels


@dataclass(frozen=True)
class ViewPolicy:
    """What may be drawn. scale: share of the picture's area; ratio: width to height; colour factors in 1 +- value."""

    scale_min: float = 0.6
    scale_max: float = 1.0
    ratio: float = 4 / 3
    flip: float = 0.5
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    seed: int = 0

    def to_json(self):
        return dict(asdict(self), version=POLICY_VERSION)


@dataclass(frozen=True)
class View:
    """One draw. Box as shares of width and height; colour factors, 1 = unchanged."""

    left: float
    top: float
    width: float
    height: float
    flip: bool
    brightness: float
    contrast: float
    saturation: float


def draw(policy: ViewPolicy, content: str, number: int, aspect: float) -> View:
    """View `number` of the picture with this content hash. aspect = width / height of the picture."""
    random = np.random.default_rng([policy.seed, number, int(content[:16], 16)])
    area = random.uniform(policy.scale_min, policy.scale_max)
    ratio = math.exp(random.uniform(-math.log(policy.ratio), math.log(policy.ratio)))
    width = min(math.sqrt(area * ratio / aspect), 1.0)
    height = min(math.sqrt(area / ratio * aspect), 1.0)
    left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
    flip = bool(random.random() < policy.flip)
    factors = [
        random.uniform(1 - spread, 1 + spread) for spread in (policy.brightness, policy.contrast, policy.saturation)
    ]
    return View(left, top, width, height, flip, *factors)


def render(image, view: View, size: int, interpolation: str) -> torch.Tensor:
    """The view's pixels, (3, size, size) uint8."""
    box = (
        view.left * image.width,
        view.top * image.height,
        (view.left + view.width) * image.width,
        (view.top + view.height) * image.height,
    )
    pixels = torch.from_numpy(crop(image, box, size, interpolation).copy()).permute(2, 0, 1)
    if view.flip:
        pixels = pixels.flip(2)
    pixels = colour.adjust_brightness(pixels, view.brightness)
    pixels = colour.adjust_contrast(pixels, view.contrast)
    return colour.adjust_saturation(pixels, view.saturation).contiguous()


def render_evaluation(image, crop_pct: float, size: int, interpolation: str) -> torch.Tensor:
    box = centre_box(image.width, image.height, crop_pct)
    return torch.from_numpy(crop(image, box, size, interpolation).copy()).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Broken:
    """A picture that could be read at the start and cannot be read now. Travels from a worker as data."""

    path: str
    reason: str


class Views(Dataset):
    """(picture index, view number) -> (uint8 tensors (3,S,S), one for each `Preprocessing` asked for; index; number).

    `crop_pct` is the evaluation view's: the student's own, for the teacher too, so that both see the same pixels.
    """

    def __init__(self, pictures: list[Picture], policy: ViewPolicy, sizes: list[Preprocessing], crop_pct: float):
        self.pictures, self.policy, self.sizes, self.crop_pct = pictures, policy, sizes, crop_pct

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, item):
        index, number = item
        try:
            image = decode(self.pictures[index].path)
        except (Unreadable, OSError) as error:
            return Broken(self.pictures[index].path, str(error))
        return [self._one(image, index, number, p.size, p.interpolation) for p in self.sizes], index, number

    def _one(self, image, index, number, size, interpolation):
        if number == EVALUATION:
            return render_evaluation(image, self.crop_pct, size, interpolation)
        view = draw(self.policy, self.pictures[index].content, number, image.width / image.height)
        return render(image, view, size, interpolation)


class AllViews(Views):
    """picture index -> uint8 (K,3,S,S) of the first size: all views of one picture, decoded once."""

    def __init__(self, *arguments, numbers: list[int]):
        super().__init__(*arguments)
        self.numbers = numbers

    def __getitem__(self, index):
        try:
            image = decode(self.pictures[index].path)
        except (Unreadable, OSError) as error:
            return Broken(self.pictures[index].path, str(error))
        size = self.sizes[0]
        return torch.stack([self._one(image, index, k, size.size, size.interpolation) for k in self.numbers])


def collate(items):
    """Default collation, unless a picture broke: then the `Broken` alone."""
    for item in items:
        if isinstance(item, Broken):
            return item
    return torch.utils.data.default_collate(items)


def refuse_broken(batch):
    """Raise TinkitError for a batch that holds a picture which has become unreadable."""
    if isinstance(batch, Broken):
        raise TinkitError(
            "A picture that was readable at the start cannot be read any more.",
            where=batch.path,
            seen=batch.reason,
            next_step="restore it and continue with --resume, or start again without it",
        )
    return batch


def normalise_on_device(pixels_BCHW: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """uint8 BCHW -> float32 BCHW, the same arithmetic as `tinkit.pixels.normalise`, channels last in memory."""
    mean = torch.tensor(preprocessing.mean, device=pixels_BCHW.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=pixels_BCHW.device).view(1, 3, 1, 1) * 255
    return ((pixels_BCHW.float() - mean) / std).contiguous(memory_format=torch.channels_last)
