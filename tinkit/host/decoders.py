"""Another way from bytes to the pixels of views: torchvision's JPEG decoder, on the CPU or (nvJPEG) on a GPU.

On a CPU the loader processes decode (`Views` with decoder "torchvision"). On a GPU they only read the bytes (`EncodedViews`,
`encoded_views`), and a whole batch is decoded, cropped and coloured where the networks are
(`views_on_device`). The views are drawn as ever, the pixels are not Pillow's: a box is rounded to whole pixels, the
resampling is torch's antialiased one, a large JPEG is not decoded at a reduced scale. So the decoder belongs to a store's
identity (`identity`) and stores of two decoders are never mixed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from tinkit.device.pictures import Unreadable
from tinkit.host.images import Picture
from tinkit.host.jpeg import UnreadableAt, decoded_on_device, read_header
from tinkit.host.views import EVALUATION, AllViews, Broken, View, ViewPolicy, Views, draw
from tinkit.pixels import centre_box


def identity(decoder: str, device="cpu") -> str:
    """What a store's identity says of the decoder: "Pillow 11.3.0", "torchvision 0.23.0 cpu" or "... nvjpeg"."""
    if decoder == "pillow":
        import PIL

        return f"Pillow {PIL.__version__}"
    import torchvision

    where = "nvjpeg" if torch.device(device).type == "cuda" else "cpu"
    return f"torchvision {torchvision.__version__.split('+')[0]} {where}"


class Encoded(NamedTuple):
    """One picture's bytes and the views to be made of it."""

    data: bytes
    views: list[View]

    @classmethod
    def of(cls, picture: Picture, policy: ViewPolicy, crop_pct: float, numbers: Sequence[int]) -> "Encoded":
        """Reads the bytes and draws the views. OSError or `Unreadable` when that cannot be done."""
        data = picture.read()
        width, height = read_header(data).upright
        return cls(data, [_drawn(picture.content, policy, crop_pct, k, width, height) for k in numbers])


def _drawn(content, policy, crop_pct, number, width, height) -> View:
    if number != EVALUATION:
        return draw(policy, content, number, width / height)
    left, top, right, bottom = centre_box(width, height, crop_pct)
    return View(left / width, top / height, (right - left) / width, (bottom - top) / height, False, 1, 1, 1)


class EncodedViews(Dataset):
    """(picture index, view number) -> (`Encoded`, index, number): workers read, nobody decodes. Or `Broken`."""

    def __init__(self, pictures: Sequence[Picture], policy: ViewPolicy, crop_pct: float):
        self.pictures, self.policy, self.crop_pct = pictures, policy, crop_pct

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, item):
        index, number = item
        picture = self.pictures[index]
        try:
            return Encoded.of(picture, self.policy, self.crop_pct, [number]), index, number
        except (Unreadable, OSError) as error:
            return Broken(picture.path, str(error))


def collate_encoded(items):
    """A batch of `EncodedViews`: (list of `Encoded`, indices_B, numbers_B); a `Broken` alone when a picture broke."""
    for item in items:
        if isinstance(item, Broken):
            return item
    encoded, indices, numbers = zip(*items, strict=True)
    return list(encoded), torch.tensor(indices), torch.tensor(numbers)


def decode_batch(batch, views: Views):
    """A batch of `EncodedViews` as `Views` would give it, decoded on the views' device; `Broken` for a damaged picture."""
    if isinstance(batch, Broken):
        return batch
    encoded, index_B, number_B = batch
    sizes = [(p.size, p.interpolation) for p in views.sizes]
    try:
        pixels = views_at_sizes([one.data for one in encoded], [one.views for one in encoded], sizes, views.device)
    except UnreadableAt as error:
        return Broken(views.pictures[int(index_B[error.place])].path, str(error))
    return pixels, index_B, number_B


def decoded(loader, views: Views):
    """The loader's batches, decoded here where its processes only read."""
    return (decode_batch(batch, views) for batch in loader) if views.reads_only else loader


def encoded_views(views: AllViews, numbers: Sequence[int]) -> list[Encoded | str]:
    """The bytes and all views of the pictures with these numbers, for `decode_all`; a text says why one cannot be read."""
    found: list[Encoded | str] = []
    for number in numbers:
        try:
            found.append(Encoded.of(views.pictures[number], views.policy, views.crop_pct, views.numbers))
        except (Unreadable, OSError) as error:
            found.append(str(error))
    return found


def decode_all(found: Sequence[Encoded | str], views: AllViews) -> tuple[torch.Tensor, dict[int, str]]:
    """(uint8 (B, K, 3, S, S) on the views' device, zeros for a picture without pixels; {its place in the batch: why})."""
    bad = {place: one for place, one in enumerate(found) if isinstance(one, str)}
    own = views.sizes[0]
    shape = (len(found), len(views.numbers), 3, own.size, own.size)
    pixels = torch.zeros(shape, dtype=torch.uint8, device=views.device)
    while good := [(place, one) for place, one in enumerate(found) if isinstance(one, Encoded) and place not in bad]:
        data, drawn = [one.data for _, one in good], [one.views for _, one in good]
        try:
            rows = views_on_device(data, drawn, own.size, own.interpolation, views.device)
        except UnreadableAt as error:
            bad[good[error.place][0]] = str(error)
            continue
        pixels[[place for place, _ in good]] = rows.unflatten(0, (len(good), -1))
        break
    return pixels, bad


def views_on_device(
    encoded: Sequence[bytes], views: Sequence[Sequence[View]], size: int, interpolation: str, device="cpu"
) -> torch.Tensor:
    """The pixels of K views of each of B pictures, (B*K, 3, size, size) uint8 on `device`, a picture's views together.

    Measured against the Pillow road on the CPU (torchvision 0.29.2, Pillow 13.0.0; 1,670 photographs of PACS of 160 x 160 at
    96 pixels; features of efficientnet-lite0): 5,010 drawn views differ by 2.4 levels on average and 100 at most, cosine
    0.9958 on average and 0.938 at least; 1,670 evaluation views, whose box is whole pixels there, by 0.03 and 14, cosine
    0.99997 and 0.9985. So nearly all of it is the box, rounded to whole pixels. Two views of one picture have 0.87.
    The GPU (nvJPEG) is not measured. Raises `UnreadableAt`.
    """
    return views_at_sizes(encoded, views, [(size, interpolation)], device)[0]


def views_at_sizes(
    encoded: Sequence[bytes], views: Sequence[Sequence[View]], sizes: Sequence[tuple[int, str]], device="cpu"
) -> list[torch.Tensor]:
    """The same at several (size, interpolation), for a student and its teacher: every picture is decoded once."""
    modes = [(size, InterpolationMode(interpolation)) for size, interpolation in sizes]
    rows: list[list[torch.Tensor]] = [[] for _ in encoded]  # a picture's sizes, each (K, 3, S, S)
    for place, pixels in decoded_on_device(encoded, device):
        rows[place] = [torch.stack([_cropped(pixels, view, *mode) for view in views[place]]) for mode in modes]
    drawn = [view for some in views for view in some]
    return [_coloured(torch.cat(of_size), drawn) for of_size in zip(*rows, strict=True)]


def _cropped(pixels, view: View, size, interpolation):
    """The view's box, rounded to whole pixels, and mirrored where the view says so."""
    _, height, width = pixels.shape
    left, right = _whole(view.left, view.width, width)
    top, bottom = _whole(view.top, view.height, height)
    out = functional.resized_crop(pixels, top, left, bottom - top, right - left, [size, size], interpolation, True)
    return out.flip(2) if view.flip else out


def _whole(start, length, of) -> tuple[int, int]:
    first = min(max(round(start * of), 0), of - 1)
    return first, min(max(round((start + length) * of), first + 1), of)


def _coloured(pixels_N3SS, views):
    """Brightness, contrast and saturation as torchvision's v2 functions do them, each row with its own factors."""
    factors = torch.tensor([(view.brightness, view.contrast, view.saturation) for view in views], dtype=torch.float64)
    if bool((factors == 1).all()):
        return pixels_N3SS
    brightness, contrast, saturation = factors.to(pixels_N3SS.device, torch.float32)[:, :, None, None, None].unbind(1)
    levels = (pixels_N3SS.float() * brightness).clamp_(0, 255).trunc_()
    mean = functional.rgb_to_grayscale(levels).floor_().mean((1, 2, 3), keepdim=True)
    levels = levels.mul_(contrast).add_(mean * (1 - contrast)).clamp_(0, 255).trunc_()
    grey = functional.rgb_to_grayscale(levels).floor_()
    return levels.mul_(saturation).add_(grey * (1 - saturation)).clamp_(0, 255).to(torch.uint8)
