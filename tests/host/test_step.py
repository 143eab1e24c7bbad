"""One step of the loop: what it tells, what it refuses, and the teacher's rows read ahead of it."""

import threading

import pytest
import torch
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.source import Live, WithHead
from tinkit.host.distill.step import ahead, compiled, take_step
from tinkit.host.features import Features
from tinkit.host.views import Broken


class Listed:
    """A source that tells which thread asked it for what."""

    reads = True

    def __init__(self, fail_at=None):
        self.asked, self.fail_at = [], fail_at

    def lookup(self, pixels, index_B, number_B):
        self.asked.append((int(index_B), threading.current_thread()))
        if int(index_B) == self.fail_at:
            raise TinkitError("The store is damaged.")
        return Features(torch.full((1, 2), float(index_B)))

    def rows(self, index_B, number_B):
        return index_B


def batches(count):
    return [([torch.zeros(1)], torch.tensor(n), torch.tensor(0)) for n in range(count)]


def test_the_teacher_s_rows_come_with_their_batch_and_one_batch_ahead():
    source, seen = Listed(), []
    for (_, index_B, _), teacher in ahead(batches(5), source):
        seen.append(int(index_B))
        assert teacher.global_BD[0, 0] == int(index_B)
        assert len(source.asked) <= len(seen) + 1
    assert seen == [0, 1, 2, 3, 4]
    assert all(thread is not threading.main_thread() for _, thread in source.asked)


def test_a_live_teacher_is_asked_when_its_batch_is_due():
    source = Listed()
    source.reads = False
    for number, _ in enumerate(ahead(batches(3), source)):
        assert len(source.asked) == number + 1
    assert all(thread is threading.main_thread() for _, thread in source.asked)


def test_an_error_of_the_source_comes_where_its_batch_would_have_come():
    running = ahead(batches(5), Listed(fail_at=2))
    assert [int(next(running)[0][1]) for _ in range(2)] == [0, 1]
    with pytest.raises(TinkitError, match="damaged"):
        next(running)


def test_a_broken_picture_is_handed_on_in_its_place():
    loader = [*batches(1), Broken("a.jpg", "gone"), *batches(1)]
    kinds = [(isinstance(batch, Broken), teacher is None) for batch, teacher in ahead(loader, Listed())]
    assert kinds == [(False, False), (True, True), (False, False)]


def test_who_stops_early_leaves_no_thread():
    before = threading.active_count()
    running = ahead(batches(50), source := Listed())
    next(running)
    running.close()
    assert threading.active_count() == before
    assert len(source.asked) <= 2


def test_an_error_of_the_loader_comes_through():
    def loader():
        yield batches(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ahead(loader(), Listed()))


class Whole:
    """A pass over one linear layer, and what of Fabric a step needs."""

    def __init__(self, layer, extra):
        self.layer, self.extra, self.fabric = layer, extra, self

    def __call__(self, images):
        loss = self.layer(images).square().mean()
        loss.backward()
        return {"loss": loss, "token": self.extra}

    def clip_gradients(self, module, optimizer, max_norm, error_if_nonfinite):
        return torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)


def step(extra, clip=1.0, images=None):
    torch.manual_seed(0)
    layer, told = nn.Linear(3, 2), []
    optimizer = torch.optim.AdamW(layer.parameters())
    before = layer.weight.clone()
    images = torch.ones(2, 3) if images is None else images

    def refuse(values):
        told.append(values)
        if not all(torch.tensor(list(values.values())).isfinite()):
            raise TinkitError("not finite")

    error = None
    try:
        values = take_step(Whole(layer, torch.tensor(extra)), (images,), layer, optimizer, clip, 0.25, refuse)
    except TinkitError as found:
        values, error = None, found
    return values, told, error, not torch.equal(before, layer.weight), optimizer


def test_a_step_tells_all_parts_and_moves_by_its_learning_rate():
    values, told, error, moved, optimizer = step(3.0)
    assert error is None
    assert set(values) == {"loss", "token"}
    assert values["token"] == 3.0
    assert [set(each) for each in told] == [{"loss", "token"}, {"gradient"}]
    assert moved
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_part_that_is_not_finite_stops_before_a_weight_is_changed(clip):
    _, told, error, moved, _ = step(float("nan"), clip)
    assert error is not None
    assert "gradient" not in told[-1]
    assert not moved


def test_a_gradient_that_is_not_finite_is_told_as_such():
    _, told, error, moved, _ = step(
        1.0, images=torch.full((2, 3), 3e18)
    )  # the loss is 1e38, its gradient's length more
    assert error is not None
    assert list(told[-1]) == ["gradient"]
    assert not moved


class Counting:
    """A teacher that tells the sizes of its batches."""

    def __init__(self):
        self.sizes = []

    def features(self, pixels, parts):
        self.sizes.append(len(pixels))
        values = pixels.float()
        taps = {"t": values[:, :, None, None]} if "taps" in parts else {}
        return Features(values, values[:, None], (1, 1), values if "logits" in parts else None, taps)


@pytest.mark.parametrize("parts", [("local",), ("local", "logits", "taps")])
def test_a_live_teacher_works_in_batches_of_its_own(parts):
    pixels = [None, torch.arange(10, dtype=torch.uint8).view(5, 2)]
    whole = Live(Counting(), parts).lookup(pixels, None, None)
    source = Live(teacher := Counting(), parts, 2)
    found = source.lookup(pixels, None, None)
    assert teacher.sizes == [2, 2, 1]
    assert (found.grid, set(found.taps)) == (whole.grid, set(whole.taps))
    for name in ("global_BD", "local_BLD", "logits_BC"):
        ours, theirs = getattr(found, name), getattr(whole, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    assert source.rows(torch.arange(2), torch.arange(2)) is None
    assert not WithHead(source, nn.Linear(2, 2)).reads


def test_cuda_graphs_without_a_gpu_are_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(TinkitError, match="CUDA graphs need a GPU"):
        compiled(model, "cuda-graphs", torch.device("cpu"))
    assert compiled(model, "off", torch.device("cpu")) is model
    assert compiled(model, Settings(images="photos").compile, torch.device("cpu")) is model
