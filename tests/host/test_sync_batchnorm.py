"""Batch normalisation over two processes against one with the whole batch: outputs, gradients, statistics, weights."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tinkit.host.distill.gather import gather
from tinkit.host.distill.objective import Objective, Term
from tinkit.host.distill.pair import Pair
from tinkit.host.distill.schedule import make_optimizer
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.state import Distiller
from tinkit.host.distill.sync_batchnorm import BatchNormAcross, restore, synchronise
from tinkit.host.features import Features
from tinkit.host.student import build_student
from tinkit.host.taps import side_of

CPU = torch.device("cpu")
WHOLE, STEPS = 8, 3


class Small(nn.Module):
    """Layers of every kind: rows and maps, with and without affine, statistics and activation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.act = BatchNormAct2d(6)
        self.plain = nn.BatchNorm2d(6, affine=False, momentum=None)
        self.forgetful = nn.BatchNorm2d(6, track_running_stats=False)
        self.rows = nn.BatchNorm1d(6)

    def forward(self, images):
        maps = self.forgetful(self.plain(self.act(self.conv(images))))
        return self.rows(maps.mean((2, 3)))


def small():
    torch.manual_seed(3)
    return Small().double()


def images(step=0):
    return torch.randn(WHOLE, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) * 3 + 5


def loss_of(rows):
    """Of the whole batch together, and of each row: both kinds that methods have."""
    together = gather(rows)
    return (together @ together.T).pow(2).mean() + rows.pow(3).mean()


def distiller():
    torch.manual_seed(1)
    student = build_student("test_efficientnet", 32, 16, None)
    student.eval()
    ours = student(torch.zeros(1, 3, 32, 32))
    student.train()
    shapes = Pair(side_of(ours), side_of(teacher(torch.arange(1), student.dim)))
    method = Objective([Term("tintem", 1.0, {"mapping": "learned"})], shapes, 0.0)
    return Distiller(student, method).double()


def teacher(index_B, width, step=0):
    whole = torch.randn(WHOLE, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + step))
    return Features(whole[index_B, 0], whole[index_B, 1:], (2, 2))


def train(module, rows, steps, dtype):
    """A few steps of the real student, method and optimiser on these rows of every batch."""
    module = module.to(dtype)
    optimizer = make_optimizer(module, Settings(images=""))
    wrapped = module
    if len(rows) < WHOLE:
        wrapped = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)
    for group in optimizer.param_groups:
        group["lr"] = 5e-3
    for step in range(steps):
        pixels = torch.randn(WHOLE, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        features = teacher(rows, 16, step)
        features = Features(features.global_BD.to(dtype), features.local_BLD.to(dtype), features.grid)
        wrapped(pixels[rows].to(dtype), features, rows, step, 0)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return module


def state_of(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def small_pass(module, rows, steps=3):
    """Outputs and gradients of the last of a few passes in training, which the statistics remember."""
    for step in range(steps):
        module.zero_grad()
        pixels = images(step)[rows].requires_grad_()
        out = module(pixels)
        loss_of(out).backward()
    return {"out": out.detach(), "pixels": pixels.grad} | {
        f"grad.{name}": parameter.grad for name, parameter in module.named_parameters()
    }


def rank_main(rank, folder):
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    rows = torch.arange(WHOLE).chunk(2)[rank]
    module = small()
    synchronise(module, CPU)
    found = small_pass(module, rows)
    torch.save({"found": found, "state": state_of(module)}, f"{folder}/small-{rank}.pt")
    for name, synced, dtype in (
        ("whole", True, torch.float64),
        ("single", True, torch.float32),
        ("own", False, torch.float64),
    ):
        real = distiller()
        if synced:
            synchronise(real, CPU)
        train(real, rows, STEPS, dtype)
        restore(real)
        torch.save(state_of(real), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's own threads may outlive the group


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    code = "import sys; from test_sync_batchnorm import *; rank_main(int(sys.argv[1]), sys.argv[2])"
    command = [sys.executable, "-c", code]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=Path(__file__).parent, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    errors = [rank.communicate(timeout=240)[1].decode()[-2000:] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    return folder


def load(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone():
    """One process with the whole batch, in double precision."""
    return state_of(train(distiller(), torch.arange(WHOLE), STEPS, torch.float64))


@pytest.mark.slow
def test_outputs_gradients_and_statistics_are_those_of_the_whole_batch(two_processes):
    module = small()
    whole = small_pass(module, torch.arange(WHOLE))
    parts = [load(two_processes, f"small-{rank}") for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([part["found"]["out"] for part in parts]), whole["out"])
    # The losses of the processes are means over their own rows: their mean is that of the whole.
    torch.testing.assert_close(torch.cat([part["found"]["pixels"] for part in parts]) / 2, whole["pixels"])
    for name in (name for name in whole if name.startswith("grad.")):
        torch.testing.assert_close(sum(part["found"][name] for part in parts) / 2, whole[name], msg=name)
    for part in parts:
        assert list(part["state"]) == list(module.state_dict())
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(part["state"][name], tensor, msg=name)


@pytest.mark.slow
def test_several_steps_on_two_processes_give_the_weights_of_one(two_processes, alone):
    for rank in (0, 1):
        found = load(two_processes, f"whole-{rank}")
        assert list(found) == list(alone)
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.slow
def test_both_processes_hold_the_same_weights_to_the_bit(two_processes):
    first, second = (load(two_processes, f"single-{rank}") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_in_single_precision_the_statistics_are_those_of_one_process(two_processes, alone):
    """Weights may differ more: AdamW makes a whole step of a gradient that is nothing but rounding."""
    found = load(two_processes, "single-0")
    for name in (name for name in alone if name.endswith("running_var")):
        torch.testing.assert_close(found[name].double(), alone[name], rtol=2e-2, atol=1e-4, msg=name)


@pytest.mark.slow
def test_without_it_the_result_differs(two_processes, alone):
    found = load(two_processes, "own-0")
    assert max(float((found[name] - alone[name]).abs().max()) for name in alone if name.endswith("weight")) > 1e-3


def test_a_process_alone_and_eval_mode_are_plain_to_the_bit():
    plain, synced = small(), small()
    assert synchronise(synced, CPU) == 4
    for module in (plain, synced):
        small_pass(module, torch.arange(WHOLE))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(synced.state_dict()[name], tensor), name
    assert torch.equal(plain.eval()(images()), synced.eval()(images()))


def test_restoring_gives_the_plain_modules_back_with_what_was_learned():
    module = small()
    layers = [type(layer) for layer in module.modules()]
    synchronise(module, CPU)
    assert any(isinstance(layer, BatchNormAcross) for layer in module.modules())
    small_pass(module, torch.arange(WHOLE))
    learned, twin = state_of(module), copy.deepcopy(module)
    for one in (module, twin):
        restore(one)
        assert [type(layer) for layer in one.modules()] == layers
        assert all(torch.equal(tensor, learned[name]) for name, tensor in one.state_dict().items())
    one.act.running_mean.zero_()
    assert module.act.running_mean.abs().sum() > 0  # the copy is one of its own


def test_converting_for_a_gpu_takes_torchs_own_and_keeps_the_activation():
    module = small()
    synchronise(module, torch.device("cuda"))
    assert isinstance(module.act, nn.SyncBatchNorm)
    assert isinstance(module.act.act, nn.ReLU)
    restore(module)
    assert type(module.act) is BatchNormAct2d
