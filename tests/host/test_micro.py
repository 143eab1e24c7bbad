"""A batch in pieces gives the gradient of the whole; a GPU that is full (pretended) halves the pieces and nothing else."""

import contextlib
import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host.distill import micro
from tinkit.host.distill.micro import Passes, in_pieces
from tinkit.host.distill.objective import Objective, Term
from tinkit.host.distill.pair import Pair
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.state import Distiller, State
from tinkit.host.distill.step import take_step
from tinkit.host.distill.sync_batchnorm import restore, synchronise
from tinkit.host.features import Features
from tinkit.host.student import build_student
from tinkit.host.taps import side_of, tap_indices

B, CLASSES = 6, 4
METHODS = [
    ("tintem", {}),
    ("tintem", {"mapping": "learned", "center": True}),
    ("crd", {"negatives": 5}),
    ("rkd", {}),
    ("dist", {}),
    ("fitnet", {}),
]


class Plain:
    """What of Fabric a pass uses, on one CPU process."""

    device = torch.device("cpu")

    def autocast(self):
        return contextlib.nullcontext()

    def backward(self, loss):
        loss.backward()

    def clip_gradients(self, module, optimizer, max_norm, error_if_nonfinite):
        return torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm, error_if_nonfinite=error_if_nonfinite)


class Patches(nn.Module):
    """A student without batch norm: a convolution, random noise where asked for, and a head."""

    def __init__(self, dropout=0.0, norm=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, 4)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(5, CLASSES)

    def forward(self, images):
        map_BCHW = self.drop(self.norm(self.conv(images)).tanh())
        global_BD = map_BCHW.mean((2, 3))
        return Features(global_BD, map_BCHW.flatten(2).mT, (2, 2), self.head(global_BD), {"s": map_BCHW})


def batch(seed=0, count=B):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    logits_BC, taps = normal(count, CLASSES), {"t": normal(count, 7, 3, 3)}
    teacher = Features(normal(count, 7), normal(count, 9, 7), (3, 3), logits_BC, taps)
    labels_B = torch.tensor([0, 1, -1, 2, 3, 1])[:count]
    return normal(count, 3, 8, 8), teacher, torch.arange(count), 0, 0, labels_B


def distiller(name="tintem", options=None, student=None):
    torch.manual_seed(0)
    student = student or Patches()
    images, teacher, *_ = batch()
    with torch.no_grad():
        pair = Pair(side_of(student.eval()(images)), side_of(teacher), CLASSES, 20, 3)
    whole = Distiller(student, Objective([Term(name, 1.0, options or {})], pair, 0.5))
    whole.method.fit(lambda: iter([teacher]))
    return whole.train()


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def whole_and_pieces(first, size):
    second = copy.deepcopy(first)
    inputs = batch()
    parts = first(*inputs)
    parts["loss"].backward()
    return first, parts, second, in_pieces(second, Plain(), size, *inputs)


@pytest.mark.parametrize("size", [1, 4, 3])
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_pieces_give_the_loss_and_the_gradient_of_the_whole(name, options, size):
    first, parts, second, found = whole_and_pieces(distiller(name, options), size)
    assert "label" in parts
    for part, value in parts.items():
        torch.testing.assert_close(found[part], value, rtol=1e-5, atol=1e-6, msg=part)
    ours, theirs = gradients(second), gradients(first)
    assert set(ours) == set(theirs)
    assert any(gradient.abs().sum() > 0 for gradient in ours.values())
    for parameter, gradient in theirs.items():
        torch.testing.assert_close(ours[parameter], gradient, rtol=1e-5, atol=1e-6, msg=parameter)
    for (buffer, a), (_, b) in zip(first.named_buffers(), second.named_buffers()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=f"{buffer}: a method with state is called once")


def test_a_sum_over_the_losses_of_pieces_would_be_another_gradient():
    """What this is for: the same comparison, done plainly, fails."""
    first, _, second, _ = whole_and_pieces(distiller("rkd"), 3)
    second.zero_grad()
    images, teacher, index_B, step, epoch, labels_B = batch()
    for rows in torch.arange(B).split(3):
        some = Features(teacher.global_BD[rows], teacher.local_BLD[rows], (3, 3), teacher.logits_BC[rows])
        (second(images[rows], some, index_B[rows], step, epoch, labels_B[rows])["loss"] / 2).backward()
    weight = "student.conv.weight"
    assert not torch.allclose(gradients(second)[weight], gradients(first)[weight], rtol=1e-2)


def test_a_real_network_with_batch_norm_at_rest():
    """Batch norm in eval mode does not look at the batch: equal again."""
    torch.manual_seed(0)
    student = build_student("test_efficientnet", 32, 8)
    student.tapped = tap_indices(student.backbone)
    images = torch.randn(B, 3, 32, 32)
    with torch.no_grad():
        pair = Pair(side_of(student.eval()(images)), side_of(batch()[1]), None, 20, 3)
    first = Distiller(student, Objective([Term("tintem", 1.0, {})], pair))
    first.method.fit(lambda: iter([batch()[1]]))
    second, inputs = copy.deepcopy(first), (images, *batch()[1:])
    first(*inputs)["loss"].backward()
    in_pieces(second, Plain(), 2, *inputs)
    for parameter, gradient in gradients(first).items():
        torch.testing.assert_close(gradients(second)[parameter], gradient, rtol=1e-4, atol=1e-5, msg=parameter)


def test_running_statistics_take_in_each_piece_once():
    module = distiller(student=Patches(norm=True))
    in_pieces(module, Plain(), 2, *batch())
    norm = module.student.norm
    assert norm.num_batches_tracked == 3
    expected, (images, *_) = torch.zeros(5), batch()
    with torch.no_grad():
        for piece in images.split(2):
            expected = 0.9 * expected + 0.1 * module.student.conv(piece).mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected)


def test_noise_is_replayed():
    """The gradient goes through the very draws that the loss was made of; the generator goes on where it stood."""
    module = distiller(student=Patches(dropout=0.5))
    seen = []
    module.student.drop.register_forward_hook(lambda _module, _inputs, out: seen.append(out.detach() == 0))
    torch.manual_seed(5)
    in_pieces(module, Plain(), 2, *batch())
    assert len(seen) == 6
    for first, again in zip(seen[:3], seen[3:]):
        assert torch.equal(first, again)
    assert not torch.equal(seen[0], seen[1])
    state = torch.get_rng_state()
    torch.manual_seed(5)
    with torch.no_grad():
        for piece in batch()[0].split(2):
            module.student(piece)
    assert torch.equal(torch.get_rng_state(), state)


def full_above(monkeypatch, module, limit, fail_in_backward=False):
    """The student of a GPU with room for `limit` pictures."""
    monkeypatch.setattr(micro, "can_run_out", lambda device: True)
    plain = type(module.student).forward

    def refuse(_gradient):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate much.")

    def forward(self, images):
        features = plain(self, images)
        if len(images) > limit:
            if not fail_in_backward:
                refuse(None)
            if features.global_BD.requires_grad:
                features.global_BD.register_hook(refuse)
        return features

    monkeypatch.setattr(type(module.student), "forward", forward)


def trained(module, steps=3, micro_batch=None, ema=False):
    """(state, what was said) after some steps as the loop takes them."""
    average = ModelEmaV3(module, decay=0.9) if ema else None
    state, said = (
        State(module, torch.optim.AdamW(module.parameters(), fused=True), average, micro_batch=micro_batch),
        [],
    )
    passes = Passes(module, state, Plain(), said.append)
    torch.manual_seed(3)
    for step in range(steps):
        take_step(passes, batch(step), module, state.optimizer, 1.0, 1e-2, lambda values: None)
        state.step += 1
        if average is not None:
            average.update(module, step=state.step)
    return state, said


@pytest.mark.parametrize("fail_in_backward", [False, True])
@pytest.mark.parametrize(("name", "options"), [("tintem", {"mapping": "learned"}), ("crd", {})])
def test_a_full_gpu_gives_the_run_that_began_with_small_pieces(monkeypatch, name, options, fail_in_backward):
    module = distiller(name, options, Patches(dropout=0.3, norm=True))
    small, said = trained(copy.deepcopy(module), micro_batch=2, ema=True)
    assert said == []
    full_above(monkeypatch, module, 2, fail_in_backward)
    found, said = trained(module, ema=True)
    assert found.micro_batch == 2
    assert ["3 pictures at a time" in said[0], "2 pictures at a time" in said[1], len(said)] == [True, True, 2]
    for ours, theirs in ((found.distiller, small.distiller), (found.average.module, small.average.module)):
        for tensor, value in ours.state_dict().items():
            same_bits = {"rtol": 0, "atol": 0, "equal_nan": True}
            torch.testing.assert_close(value, theirs.state_dict()[tensor], **same_bits, msg=tensor)


def test_a_resumed_run_goes_on_with_its_pieces(monkeypatch):
    module = distiller()
    full_above(monkeypatch, module, 2)
    state, _ = trained(module)
    again = State(copy.deepcopy(module), torch.optim.AdamW(module.parameters(), fused=True), None)
    again.load_state_dict(state.state_dict())
    assert again.micro_batch == 2
    older = state.state_dict()
    del older["place"]["micro_batch"]
    again = State(copy.deepcopy(module), torch.optim.AdamW(module.parameters(), fused=True), None)
    again.load_state_dict(older)
    assert again.micro_batch is None


def test_one_picture_that_does_not_fit_is_an_error_with_advice(monkeypatch):
    module = distiller()
    full_above(monkeypatch, module, 0)
    with pytest.raises(TinkitError, match="even with one picture"):
        trained(module)


def test_several_processes_must_agree_so_a_full_gpu_stops_them(monkeypatch):
    module = distiller()
    full_above(monkeypatch, module, 2)
    monkeypatch.setattr(micro, "count", lambda: 2)
    with pytest.raises(TinkitError, match="micro-batch 3"):
        trained(module)


def test_on_a_cpu_nothing_is_kept_and_nothing_caught(monkeypatch):
    module = distiller()
    full_above(monkeypatch, module, 2)
    monkeypatch.setattr(micro, "can_run_out", lambda device: device.type == "cuda")
    with pytest.raises(torch.OutOfMemoryError):
        trained(module)


def test_the_setting_is_a_size():
    assert Settings(images="photos", micro_batch=2).micro_batch == 2
    with pytest.raises(TinkitError, match="micro_batch"):
        Settings(images="photos", micro_batch=0)


def test_pieces_of_a_whole_are_the_plain_pass():
    module, calls = distiller(), []
    state = SimpleNamespace(micro_batch=B, distiller=module)
    passes = Passes(lambda *inputs: calls.append(1) or module(*inputs), state, Plain(), None)
    assert set(passes(*batch())) >= {"loss", "token"}
    assert calls == [1]


WHOLE, PIECE = 8, 2
SHARED = {"tintem": {"mapping": "learned", "center": True}, "rkd": {"gather": True}}


def in_double(name):
    torch.manual_seed(1)
    return distiller(name, SHARED[name], Patches(norm=True)).double()


def rows_in_double(rows):
    """Some rows of a batch of eight, of which the second half has no label."""
    images, teacher, index_B, step, epoch, _ = batch(count=WHOLE)
    labels_B = torch.tensor([0, 1, -1, 2, -1, -1, -1, -1])
    teacher = Features(teacher.global_BD[rows].double(), teacher.local_BLD[rows].double(), (3, 3))
    return images[rows].double(), teacher, index_B[rows], step, epoch, labels_B[rows]


def rank_main(rank, folder):
    """One of two processes: its half of the batch in pieces, as under DDP, with batch norm over both."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name in SHARED:
        module = in_double(name)
        module.unused = nn.Parameter(torch.ones(2).double())
        synchronise(module, Plain.device)
        nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)
        module.unused.grad = torch.ones(2).double() if rank else None  # as a term that one process alone had use for
        parts = in_pieces(module, Plain(), PIECE, *rows_in_double(torch.arange(WHOLE).chunk(2)[rank]))
        restore(module)
        found = {"parts": parts, "gradients": gradients(module), "buffers": dict(module.named_buffers())}
        torch.save(found, f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's own threads may outlive the group


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    code = "import sys; from test_micro import *; rank_main(int(sys.argv[1]), sys.argv[2])"
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(folder)], cwd=Path(__file__).parent, stderr=-1)
        for rank in (0, 1)
    ]
    errors = [rank.communicate(timeout=240)[1].decode()[-2000:] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_pieces_of_two_processes_are_the_pieces_of_one(two_processes, name):
    """Batch norm sees the pieces of both together, so that one process is given them side by side."""
    module, side_by_side = in_double(name), torch.tensor([0, 1, 4, 5, 2, 3, 6, 7])
    parts = in_pieces(module, Plain(), 2 * PIECE, *rows_in_double(side_by_side))
    halves = [torch.load(two_processes / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    mean = sum(half["parts"]["loss"] for half in halves) / 2
    torch.testing.assert_close(mean, parts["loss"], rtol=1e-9, atol=1e-12)
    for half in halves:
        assert half["gradients"].pop("unused").tolist() == [0.5, 0.5]
        assert set(half["gradients"]) == set(gradients(module))
        for parameter, gradient in gradients(module).items():
            torch.testing.assert_close(half["gradients"][parameter], gradient, rtol=1e-8, atol=1e-11, msg=parameter)
        for buffer, tensor in module.named_buffers():
            torch.testing.assert_close(half["buffers"][buffer], tensor, rtol=1e-8, atol=1e-11, msg=buffer)
