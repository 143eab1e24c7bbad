"""A view is a pure function of (picture, seed): crop, flip and colour drawn from the seed, and so replayed at will.

That is what makes cached teacher features honest: they belong to exactly the pixels that the student sees. Teacher and
student get the same box of the same picture, each resampled to its own size. K views a picture are numbered 0..K-1;
the evaluation view (`EVALUATION`) is the centred square that the deployed student will get. A cache of decoded pictures
(`tinkit.host.decoded`) saves decoding and changes no pixel; another decoder (`tinkit.host.decoders`) changes them.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from tinkit.device.pictures import Unreadable, crop, decode
from tinkit.errors import TinkitError
from tinkit.host.images import Picture
from tinkit.pixels import Preprocessing, centre_box

if TYPE_CHECKING:
    from tinkit.host.decoded import DecodedCache

EVALUATION = -1
DECODERS = ("pillow", "torchvision")
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
    pixels = _planes(crop(image, box, size, interpolation))
    return recolour(pixels.flip(2) if view.flip else pixels, view)


def render_evaluation(image, crop_pct: float, size: int, interpolation: str) -> torch.Tensor:
    box = centre_box(image.width, image.height, crop_pct)
    return _planes(crop(image, box, size, interpolation))


def recolour(pixels: torch.Tensor, view: View) -> torch.Tensor:
    """Brightness, contrast and saturation of (3, H, W) uint8, to the bit what torchvision's v2 functions give.

    They round down to whole levels after each of the three and convert to uint8 and back each time; here the levels stay
    whole in one float32 array that is worked on in place. A factor of exactly 1 changes nothing and is left out.
    """
    if min(view.brightness, view.contrast, view.saturation) < 0:
        raise ValueError(f"a colour factor below 0: {view}")
    if view.brightness == view.contrast == view.saturation == 1:
        return pixels
    levels = pixels.float()
    if view.brightness != 1:
        levels.mul_(view.brightness).clamp_(0, 255).trunc_()
    if view.contrast != 1:
        mean = _grey(levels).mean(dim=(-3, -2, -1), keepdim=True)
        levels.mul_(view.contrast).add_(mean, alpha=1 - view.contrast).clamp_(0, 255).trunc_()
    if view.saturation != 1:
        grey = _grey(levels)
        levels.mul_(view.saturation).add_(grey, alpha=1 - view.saturation).clamp_(0, 255)
    return levels.to(torch.uint8)


def _grey(levels: torch.Tensor) -> torch.Tensor:
    red, green, blue = levels
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[None]


def _planes(pixels_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))


@dataclass(frozen=True)
class Broken:
    """A picture that could be read at the start and cannot be read now. Travels from a worker as data."""

    path: str
    reason: str


class Views(Dataset):
    """(picture index, view number) -> (uint8 tensors (3,S,S), one for each `Preprocessing` asked for; index; number).

    pictures: a `Catalogue` is shared by worker processes, a list is copied by each in time. crop_pct is the evaluation
    view's: the student's own, for the teacher too, so that both see the same pixels. decoder: one of
    DECODERS; only Pillow's pictures are cached. device: where torchvision decodes; on a GPU the loaders only read
    (`reads_only`), and whoever takes their batches decodes them (tinkit.host.decoders.EncodedViews, encoded_views).
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        policy: ViewPolicy,
        sizes: list[Preprocessing],
        crop_pct: float,
        cache: "DecodedCache | None" = None,
        decoder: str = "pillow",
        device: torch.device | str = "cpu",
    ):
        if decoder not in DECODERS or (cache is not None and decoder != "pillow"):
            raise ValueError(f"decoder {decoder!r} {'with' if cache is not None else 'without'} a cache")
        self.pictures, self.policy, self.sizes, self.crop_pct = pictures, policy, sizes, crop_pct
        self.cache, self.decoder, self.device = cache, decoder, torch.device(device)

    @property
    def reads_only(self) -> bool:
        """Whether pictures are decoded where the networks are, and not in the loaders."""
        return self.decoder != "pillow" and self.device.type != "cpu"

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, item):
        index, number = item
        picture = self.pictures[index]
        try:
            return self._views(picture, [number], self.sizes)[0], index, number
        except (Unreadable, OSError) as error:
            return Broken(picture.path, str(error))

    def _views(self, picture, numbers, sizes) -> list[list[torch.Tensor]]:
        """For each number the pixels at each size; the picture is decoded once."""
        if self.decoder == "pillow":
            image = self._decoded(picture)
            return [[self._one(image, picture.content, k, p.size, p.interpolation) for p in sizes] for k in numbers]
        from tinkit.host.decoders import Encoded, views_at_sizes

        encoded = Encoded.of(picture, self.policy, self.crop_pct, numbers)
        found = views_at_sizes([encoded.data], [encoded.views], [(p.size, p.interpolation) for p in sizes])
        return [[rows[k] for rows in found] for k in range(len(numbers))]

    def _decoded(self, picture):
        image = self.cache.get(picture.content) if self.cache is not None else None
        if image is None:
            image = decode(picture.read())
            if self.cache is not None:
                self.cache.put(picture.content, image)
        return image

    def _one(self, image, content, number, size, interpolation):
        if number == EVALUATION:
            return render_evaluation(image, self.crop_pct, size, interpolation)
        return render(image, draw(self.policy, content, number, image.width / image.height), size, interpolation)


class AllViews(Views):
    """picture index -> uint8 (K,3,S,S) of the first size: all views of one picture, decoded once."""

    def __init__(self, *arguments, numbers: list[int], **options):
        super().__init__(*arguments, **options)
        self.numbers = numbers

    def __getitem__(self, index):
        picture = self.pictures[index]
        try:
            return torch.stack([pixels for (pixels,) in self._views(picture, self.numbers, self.sizes[:1])])
        except (Unreadable, OSError) as error:
            return Broken(picture.path, str(error))


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
    images_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last).float()
    return images_BCHW.sub_(mean).div_(std)
