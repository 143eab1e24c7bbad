"""A view is a pure function of (picture, seed), and teacher and student see the same part of the picture."""

import hashlib
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from tinkit.device.pictures import crop, decode
from tinkit.errors import TinkitError
from tinkit.host import views as views_module
from tinkit.host.decoded import DecodedCache
from tinkit.host.images import Picture, catalogue_of
from tinkit.host.views import (
    EVALUATION,
    AllViews,
    Broken,
    View,
    ViewPolicy,
    Views,
    collate,
    draw,
    normalise_on_device,
    refuse_broken,
    render,
    render_evaluation,
)
from tinkit.pixels import Preprocessing, centre_box, normalise

CONTENT = "ab" * 32
SMALL = Preprocessing(16, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
LARGE = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def picture(tmp_path):
    rows = np.linspace(0, 255, 60)[:, None, None]
    columns = np.linspace(0, 255, 90)[None, :, None]
    pixels = np.concatenate([rows + 0 * columns, 0 * rows + columns, (rows + columns) / 2], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    return Picture(str(tmp_path / "a.png"), "a.png", CONTENT)


def test_drawn_twice_is_equal_and_other_addresses_differ():
    policy = ViewPolicy(seed=3)
    one = draw(policy, CONTENT, 0, 1.5)
    assert one == draw(policy, CONTENT, 0, 1.5)
    others = [draw(policy, CONTENT, 1, 1.5), draw(policy, "cd" * 32, 0, 1.5), draw(ViewPolicy(seed=4), CONTENT, 0, 1.5)]
    assert all(other != one for other in others)


def test_boxes_stay_inside_and_keep_their_area():
    policy = ViewPolicy()
    for number in range(200):
        view = draw(policy, CONTENT, number, 1.5)
        assert 0 <= view.left <= view.left + view.width <= 1 + 1e-9
        assert 0 <= view.top <= view.top + view.height <= 1 + 1e-9
        assert view.width * view.height <= policy.scale_max + 1e-9
        assert 0.9 <= view.brightness <= 1.1


def test_pixels_replay_to_the_bit(picture):
    views = Views([picture], ViewPolicy(), [SMALL, LARGE], 0.9)
    first, again = views[(0, 1)], views[(0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
    assert first[1:] == (0, 1)
    stacked = AllViews([picture], ViewPolicy(), [LARGE], 0.9, numbers=[0, 1])[0]
    assert torch.equal(stacked[1], first[0][1])


def test_both_sizes_show_the_same_part(picture):
    (small, large), _, _ = Views([picture], ViewPolicy(), [SMALL, LARGE], 0.9)[(0, 0)]
    shrunk = torch.nn.functional.avg_pool2d(large.float()[None], 2)[0]
    assert (shrunk - small.float()).abs().mean() < 3


def test_a_flip_is_a_mirror(picture):
    image = Image.open(picture.path)
    view = draw(ViewPolicy(), CONTENT, 0, 1.5)
    plain = render(image, replace(view, flip=False), 16, "bicubic")
    assert torch.equal(render(image, replace(view, flip=True), 16, "bicubic"), plain.flip(2))


def test_evaluation_view_is_the_deployed_preprocessing(picture):
    from tinkit.device.pictures import network_pixels

    (pixels,), _, _ = Views([picture], ViewPolicy(), [SMALL], SMALL.crop_pct)[(0, EVALUATION)]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), network_pixels(picture.path, SMALL))
    assert centre_box(90, 60, 1.0) == (15, 0, 75, 60)


def test_normalisation_on_the_device_is_the_board_s():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    ours = normalise_on_device(pixels, SMALL)
    theirs = normalise(pixels.permute(0, 2, 3, 1).numpy(), SMALL)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=2e-6)


def test_a_picture_that_vanishes_is_named(picture):
    views = Views([picture], ViewPolicy(), [SMALL], 0.9)
    Image.open(picture.path).save(
        f"{picture.path}.of-others.png"
    )  # an empty folder is a share that is away, and waited for
    os.unlink(picture.path)
    with pytest.raises(TinkitError, match=r"a\.png"):
        refuse_broken(collate([views[(0, 0)]]))


def step_by_step(image, view, size, interpolation):
    """The definition: crop, mirror, then torchvision's three functions, one after the other."""
    right, bottom = view.left + view.width, view.top + view.height
    box = (view.left * image.width, view.top * image.height, right * image.width, bottom * image.height)
    pixels = torch.from_numpy(crop(image, box, size, interpolation).copy()).permute(2, 0, 1)
    if view.flip:
        pixels = pixels.flip(2)
    pixels = functional.adjust_brightness(pixels, view.brightness)
    pixels = functional.adjust_contrast(pixels, view.contrast)
    return functional.adjust_saturation(pixels, view.saturation)


@pytest.mark.parametrize("size", [7, 64, 96, 224, 300])
def test_rendering_gives_the_pixels_of_its_definition_to_the_bit(size):
    random = np.random.default_rng(size)
    for number in range(12):
        image = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        spread = 0.1 if number % 2 else 0.9
        policy = ViewPolicy(brightness=spread, contrast=spread, saturation=spread, seed=number)
        view = draw(policy, CONTENT, number, 80 / 60)
        for changed in (view, replace(view, contrast=1.0), replace(view, brightness=1.0, saturation=1.0)):
            found = render(image, changed, size, "bicubic")
            assert torch.equal(found, step_by_step(image, changed, size, "bicubic"))
            assert found.is_contiguous()


def test_every_colour_is_changed_as_torchvision_changes_it():
    colours = torch.cartesian_prod(*[torch.arange(0, 256, 3, dtype=torch.uint8)] * 3).view(86 * 86, 86, 3)
    view = View(0, 0, 1, 1, False, 1.0537, 0.9341, 1.0813)
    wanted = functional.adjust_brightness(colours.permute(2, 0, 1), view.brightness)
    wanted = functional.adjust_saturation(functional.adjust_contrast(wanted, view.contrast), view.saturation)
    assert torch.equal(views_module.recolour(colours.permute(2, 0, 1).contiguous(), view), wanted)


def test_a_factor_below_0_is_refused():
    with pytest.raises(ValueError, match="below 0"):
        render(Image.new("RGB", (20, 20)), View(0, 0, 1, 1, False, 1, -0.1, 1), 16, "bicubic")


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="a processor without fused multiply-add rounds a few colours to the next level",
)
@pytest.mark.parametrize(
    ("size", "interpolation", "wanted"),
    [(64, "bicubic", "c7633fd459148570"), (96, "bilinear", "c3133102411c0134"), (224, "bicubic", "0209b270ad10235e")],
)
def test_pixels_of_policy_version_1(size, interpolation, wanted):
    """Hashes taken when version 1 was new: other pixels for the same seed need another POLICY_VERSION."""
    coarse = np.random.default_rng(5).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((150, 100), Image.Resampling.BICUBIC)
    digest = hashlib.sha256()
    for number in range(6):
        view = draw(ViewPolicy(seed=2), CONTENT, number, 1.5)
        digest.update(render(image, view, size, interpolation).numpy().tobytes())
    digest.update(render_evaluation(image, 0.9, size, interpolation).numpy().tobytes())
    assert views_module.POLICY_VERSION == 1
    assert digest.hexdigest()[:16] == wanted


def test_a_drawn_view_keeps_its_numbers():
    view = draw(ViewPolicy(seed=2), CONTENT, 3, 1.5)
    wanted = (0.010645199592881219, 0.0, 0.6598033889019203, 1.0, True)
    assert (view.left, view.top, view.width, view.height, view.flip) == pytest.approx(wanted, abs=1e-15)
    colours = (0.9672541003742825, 1.0708652579106528, 0.9806703803755261)
    assert (view.brightness, view.contrast, view.saturation) == pytest.approx(colours, abs=1e-15)


def counting(monkeypatch):
    calls = []

    def counted(source):
        calls.append(source)
        return decode(source)

    monkeypatch.setattr(views_module, "decode", counted)
    return calls


def test_the_cache_changes_no_pixel(picture, tmp_path, monkeypatch):
    pictures = [picture, Picture(picture.path, "b.png", "cd" * 32)]
    items = [(0, 0), (0, 1), (1, 0), (0, EVALUATION), (1, 0), (0, 1)]
    plain = [Views(pictures, ViewPolicy(), [SMALL, LARGE], 0.9)[item][0] for item in items]
    calls = counting(monkeypatch)
    with DecodedCache.make(tmp_path, 1 << 20, 2) as cache:
        views = Views(pictures, ViewPolicy(), [SMALL, LARGE], 0.9, cache=cache)
        for item, wanted in zip(items, plain, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(views[item][0], wanted, strict=True))
        assert len(calls) == cache.pictures == 2


def test_a_picture_in_the_cache_is_read_no_more(picture, tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    with DecodedCache.make(tmp_path, 1 << 20, 2) as cache:
        views = Views([picture], ViewPolicy(), [SMALL, LARGE], 0.9, cache=cache)
        stacked = AllViews([picture], ViewPolicy(), [LARGE], 0.9, numbers=[0, 1, EVALUATION], cache=cache)
        first = views[(0, 1)]
        os.unlink(picture.path)
        assert torch.equal(views[(0, 1)][0][0], first[0][0])
        assert torch.equal(stacked[0][1], first[0][1])
        assert len(calls) == 1


def test_a_full_cache_decodes_again(picture, tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    with DecodedCache.make(tmp_path, 100, 2) as cache:
        views = Views([picture], ViewPolicy(), [SMALL], 0.9, cache=cache)
        assert torch.equal(views[(0, 1)][0][0], views[(0, 1)][0][0])
        assert len(calls) == 2


def test_a_broken_picture_is_not_cached(picture, tmp_path):
    with open(picture.path, "r+b") as handle:
        handle.truncate(100)
    with DecodedCache.make(tmp_path, 1 << 20, 2) as cache:
        assert isinstance(Views([picture], ViewPolicy(), [SMALL], 0.9, cache=cache)[(0, 0)], Broken)
        assert isinstance(AllViews([picture], ViewPolicy(), [SMALL], 0.9, numbers=[0], cache=cache)[0], Broken)
        assert cache.pictures == 0


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_loader_processes_share_the_cache(picture, tmp_path, method):
    with DecodedCache.make(tmp_path, 1 << 20, 2) as cache:
        views = Views([picture], ViewPolicy(), [SMALL], 0.9, cache=cache)
        loader = torch.utils.data.DataLoader(
            views, sampler=[(0, k % 3) for k in range(6)], num_workers=2, multiprocessing_context=method
        )
        found = [pixels[0] for (pixels,), _, _ in loader]
        assert cache.pictures == 1
        assert all(torch.equal(found[k], views[(0, k % 3)][0][0]) for k in range(6))


def test_only_pillow_s_pictures_are_cached(picture, tmp_path):
    with DecodedCache.make(tmp_path, 1 << 20, 2) as cache, pytest.raises(ValueError, match="with a cache"):
        Views([picture], ViewPolicy(), [SMALL], 0.9, cache=cache, decoder="torchvision")
    with pytest.raises(ValueError, match="nvjpeg"):
        Views([picture], ViewPolicy(), [SMALL], 0.9, decoder="nvjpeg")


def own_memory_mb(views, answer):
    """Look at every picture, and say how much memory of its own that took."""

    def private():
        with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
            return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024

    before = private()
    for index in range(len(views)):
        assert len(views.pictures[index].content) == 64
    answer.put(private() - before)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs the kernel's word on shared memory")
def test_a_worker_s_look_at_200_000_pictures_copies_none_of_them():
    count = 200_000
    contents = np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)
    names = (f"folder/with/a/name/{number:08d}.jpg" for number in range(count))
    compact = catalogue_of("/nowhere", names, contents)
    grown = {}
    for kind, pictures in (("catalogue", compact), ("list", list(compact))):
        context = multiprocessing.get_context("fork")
        answer = context.SimpleQueue()
        views = Views(pictures, ViewPolicy(), [SMALL], 0.9)
        worker = context.Process(target=own_memory_mb, args=(views, answer))
        worker.start()
        grown[kind] = answer.get()
        worker.join()
    assert grown["catalogue"] < 4, grown
    assert grown["list"] > 20, grown  # what reference counting does to 200,000 objects: the measurement can fail
