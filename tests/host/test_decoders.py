"""torchvision's decoder: the same views, read by Pillow where it must be, upright, and never taken for Pillow's pixels."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional

from tinkit.device.pictures import Unreadable, decode
from tinkit.errors import TinkitError
from tinkit.host import jpeg
from tinkit.host.decoders import EncodedViews, collate_encoded, identity, views_at_sizes, views_on_device
from tinkit.host.images import Picture
from tinkit.host.jpeg import UnreadableAt, decoded_on_device, read_header
from tinkit.host.views import EVALUATION, AllViews, Broken, View, ViewPolicy, Views, collate, draw
from tinkit.pixels import Preprocessing

WHOLE = View(0, 0, 1, 1, False, 1, 1, 1)
SMALL = Preprocessing(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 0.9)
LARGE = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.9)


def scene(width=60, height=40):
    coarse = np.random.default_rng(5).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG", **options):
    handle = io.BytesIO()
    image.save(handle, kind, **options)
    return handle.getvalue()


def tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def one(data):
    ((place, pixels),) = decoded_on_device([data])
    assert place == 0
    return pixels


def apart(a, b):
    assert a.shape == b.shape
    return (a.int() - b.int()).abs().max().item()


@pytest.fixture
def pictures(tmp_path):
    found = []
    for number, size in enumerate([(90, 60), (48, 64)]):
        path = tmp_path / f"{number}.jpg"
        scene(*size).save(path, quality=95)
        found.append(Picture(str(path), path.name, f"{number + 10:02x}" * 32))
    return found


def test_the_whole_picture_at_its_own_size_is_the_picture():
    data = encoded(scene(32, 32), quality=95)
    assert apart(views_on_device([data], [[WHOLE]], 32, "bicubic")[0], tensor(decode(data))) <= 1


def test_a_box_is_that_part_of_the_picture():
    data = encoded(scene(64, 64), quality=95)
    view = View(16 / 64, 8 / 64, 32 / 64, 32 / 64, False, 1, 1, 1)
    part = tensor(decode(data).crop((16, 8, 48, 40)))
    assert apart(views_on_device([data], [[view]], 32, "bilinear")[0], part) <= 1
    mirrored = replace(view, flip=True)
    assert apart(views_on_device([data], [[mirrored]], 32, "bilinear")[0], part.flip(2)) <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_shrinking_is_antialiased_as_pillow_does_it(interpolation):
    data = encoded(scene(160, 160), quality=95)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    wanted = tensor(decode(data).resize((40, 40), filters[interpolation]))
    assert apart(views_on_device([data], [[WHOLE]], 40, interpolation)[0], wanted) <= 1


def test_each_row_has_the_colours_of_its_own_view():
    data = [encoded(scene(32, 32), quality=95), encoded(scene(32, 32).rotate(90), quality=95)]
    factors = [(1.2, 0.8, 1.3), (1, 1, 1), (0.7, 1.4, 0.5), (1, 1.3, 1)]
    views = [View(0, 0, 1, 1, False, *row) for row in factors]
    found = views_on_device(data, [views[:2], views[2:]], 32, "bicubic")
    assert found.shape == (4, 3, 32, 32)
    for row, (brightness, contrast, saturation) in enumerate(factors):
        wanted = functional.adjust_brightness(tensor(decode(data[row // 2])), brightness)
        wanted = functional.adjust_saturation(functional.adjust_contrast(wanted, contrast), saturation)
        assert apart(found[row], wanted) <= 1


def test_several_sizes_are_what_each_gives_alone():
    data = [encoded(scene(50, 40)), encoded(scene(30, 70), "PNG"), encoded(scene(64, 64))]
    views = [[draw(ViewPolicy(), "ab" * 32, k, 1.0) for k in range(2)] for _ in data]
    sizes = [(16, "bilinear"), (24, "bicubic")]
    for found, size in zip(views_at_sizes(data, views, sizes), sizes, strict=True):
        assert torch.equal(found, views_on_device(data, views, *size))
        assert torch.equal(found[2:4], views_on_device(data[1:2], views[1:2], *size))


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_honoured(orientation):
    exif = Image.Exif()
    exif[jpeg.ORIENTATION] = orientation
    data = encoded(scene(60, 40), quality=95, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert read_header(data).upright == upright.size
    assert torch.equal(one(data), tensor(upright))


def faded(mode):
    image = scene().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@pytest.mark.parametrize(
    "data",
    [
        encoded(faded("RGB"), "PNG"),
        encoded(scene().convert("P"), "GIF"),
        encoded(scene(), "WEBP"),
        encoded(scene().convert("CMYK")),
        encoded(scene().convert("L")),
        encoded(scene(), progressive=True),
        encoded(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27), "PNG"),
    ],
    ids=["alpha", "palette", "webp", "cmyk", "grey", "progressive", "16-bit"],
)
def test_what_is_no_plain_jpeg_gives_what_pillow_gives(data):
    assert torch.equal(one(data), tensor(decode(data)))


def test_a_very_large_jpeg_goes_through_pillow(monkeypatch):
    monkeypatch.setattr(jpeg, "MAX_PIXELS", 1000)
    monkeypatch.setattr(jpeg, "_decode_jpeg", lambda *_: pytest.fail("given to torchvision"))
    data = encoded(scene())
    assert torch.equal(one(data), tensor(decode(data)))


def test_no_more_pixels_at_once_than_the_limit(monkeypatch):
    monkeypatch.setattr(jpeg, "PIXELS_AT_ONCE", 5000)
    seen, real = [], jpeg._decode_jpeg

    def watched(data, device):
        seen.append(len(data))
        return real(data, device)

    monkeypatch.setattr(jpeg, "_decode_jpeg", watched)
    data = [encoded(scene(60, 40))] * 5 + [encoded(scene(100, 100))]
    found = dict(decoded_on_device(data))
    assert seen == [2, 2, 1, 1]
    assert [found[place].shape[2] for place in range(6)] == [60] * 5 + [100]


def test_one_picture_that_the_decoder_refuses_costs_the_others_nothing(monkeypatch):
    """As nvJPEG does it: a batch with such a picture fails as a whole."""
    real, odd = jpeg._decode_jpeg, encoded(scene(41, 40))

    def refuse(data, device):
        if odd in data:
            raise RuntimeError("unsupported")
        return real(data, device)

    monkeypatch.setattr(jpeg, "_decode_jpeg", refuse)
    data = [encoded(scene(60, 40)), odd, encoded(scene(30, 50))]
    for place, pixels in decoded_on_device(data):
        assert torch.equal(pixels, tensor(decode(data[place])))


def test_no_memory_is_no_reason_to_decode_elsewhere(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(jpeg, "_decode_jpeg", full)
    with pytest.raises(torch.OutOfMemoryError):
        one(encoded(scene()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_unreadable_picture_is_named_by_its_place(kind):
    whole = encoded(scene(), kind)
    with pytest.raises(UnreadableAt) as caught:
        list(decoded_on_device([encoded(scene()), whole[: len(whole) // 2]]))
    assert caught.value.place == 1
    with pytest.raises(Unreadable, match="not a picture"):
        read_header(b"no picture")


def test_views_by_torchvision_are_the_views_of_pillow(pictures):
    """The same box, flip and colours: near Pillow's pixels, farther from those of another view."""
    numbers = [0, 1, 2, EVALUATION]
    theirs = AllViews(pictures, ViewPolicy(), [LARGE], 0.9, numbers=numbers)
    ours = AllViews(pictures, ViewPolicy(), [LARGE], 0.9, numbers=numbers, decoder="torchvision")
    for index in range(2):
        mine, other = ours[index].float(), theirs[index].float()
        for k in range(4):
            distances = [(mine[k] - other[n]).abs().mean().item() for n in range(4)]
            assert distances[k] == min(distances)
            assert distances[k] < 4
    again = Views(pictures, ViewPolicy(), [SMALL, LARGE], 0.9, decoder="torchvision")
    (small, large), index, number = again[(1, 2)]
    assert (small.shape, index, number) == ((3, 16, 16), 1, 2)
    assert torch.equal(large, ours[1][2])


def test_workers_that_only_read_give_the_same_views(pictures):
    loader = torch.utils.data.DataLoader(
        EncodedViews(pictures, ViewPolicy(), 0.9),
        sampler=[(0, 1), (1, EVALUATION), (1, 0)],
        batch_size=3,
        num_workers=1,
        collate_fn=collate_encoded,
    )
    ((batch, indices, numbers),) = loader
    found = views_on_device([e.data for e in batch], [e.views for e in batch], 32, "bicubic")
    whole = Views(pictures, ViewPolicy(), [LARGE], 0.9, decoder="torchvision")
    assert indices.tolist() == [0, 1, 1]
    for row, item in enumerate(zip(indices.tolist(), numbers.tolist(), strict=True)):
        assert torch.equal(found[row], whole[item][0][0])


def test_a_picture_that_broke_is_named(pictures, tmp_path):
    (tmp_path / "0.jpg").write_bytes(b"\xff\xd8 not any more")
    (tmp_path / "1.jpg").unlink()
    views = EncodedViews(pictures, ViewPolicy(), 0.9)
    assert isinstance(collate_encoded([views[(0, 0)]]), Broken)
    assert views[(1, 0)].path == pictures[1].path
    assert isinstance(collate([Views(pictures, ViewPolicy(), [SMALL], 0.9, decoder="torchvision")[(0, 0)]]), Broken)


def test_identities_differ():
    import PIL
    import torchvision

    version = torchvision.__version__.split("+")[0]
    assert identity("pillow") == identity("pillow", "cuda") == f"Pillow {PIL.__version__}"
    assert identity("torchvision", "cpu") == f"torchvision {version} cpu"
    assert identity("torchvision", torch.device("cuda", 0)) == f"torchvision {version} nvjpeg"


def test_a_device_that_cannot_decode_is_refused_at_once(monkeypatch):
    jpeg.require("pillow", "cuda")
    jpeg.require("torchvision", "cpu")

    def refuse(*_):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(jpeg, "_decode_jpeg", refuse)
    with pytest.raises(TinkitError, match="cannot decode") as caught:
        jpeg.require("torchvision", "cuda")
    assert "nvJPEG" in caught.value.seen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_s_views_are_near_the_cpu_s():
    exif = Image.Exif()
    exif[jpeg.ORIENTATION] = 6
    data = [encoded(scene(96, 64), quality=95), encoded(scene(64, 96), "PNG"), encoded(scene(80, 80), exif=exif)]
    views = [[draw(ViewPolicy(), "ab" * 32, k, 1.0) for k in range(3)] for _ in data]
    found = views_on_device(data, views, 32, "bicubic", "cuda")
    assert found.is_cuda
    assert (found.cpu().float() - views_on_device(data, views, 32, "bicubic").float()).abs().mean() < 2
