"""Two gloo processes against one: the same gradient from two halves of a batch, for every method that says so."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from method_parts import batch, pair
from torch import nn

from tinkit.host.distill.objective import Objective, Term
from tinkit.host.distill.pair import Batch
from tinkit.host.methods import METHODS, method_class

GATHERED = {
    "tintem": {"mapping": "learned", "center": True, "cosines_weight": 1.0},
    "rkd": {"gather": True},
    "pkt": {"gather": True},
    "sp": {"gather": True},
    "dist": {"gather": True},
}
# What a process sees alone: batch statistics (normalisation, whitening) or noise of its own.
LOCAL = {"afd", "rtk", "diffkd", "simkd"}
WHOLE = 8


class Pretend(nn.Module):
    """A student whose features are its parameters times its inputs: enough to carry a gradient."""

    def __init__(self, whole: Batch):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8, dtype=torch.float64))
        self.whole = whole

    def forward(self, rows):
        student = self.whole.student

        def scaled(tensor, width_at=-1):
            width = tensor.shape[width_at]
            shape = [width if axis == width_at % tensor.ndim else 1 for axis in range(tensor.ndim)]
            return tensor[rows].detach() * self.scale[:width].view(shape)

        return replace(
            student,
            global_BD=scaled(student.global_BD),
            local_BLD=scaled(student.local_BLD),
            logits_BC=scaled(student.logits_BC),
            taps={name: scaled(tap, 1) for name, tap in student.taps.items()},
        )


class Both(nn.Module):
    def __init__(self, name, options):
        super().__init__()
        torch.manual_seed(0)
        self.whole = batch(pair(), B=WHOLE, labels=True)
        self.student = Pretend(self.whole)
        self.method = Objective([Term(name, 1.0, options)], pair()).double()
        self.method.fit(lambda: [self.whole.teacher])

    def forward(self, rows):
        whole = self.whole
        teacher = replace(
            whole.teacher,
            global_BD=whole.teacher.global_BD[rows],
            local_BLD=whole.teacher.local_BLD[rows],
            logits_BC=whole.teacher.logits_BC[rows],
            taps={name: tap[rows] for name, tap in whole.teacher.taps.items()},
        )
        one = Batch(self.student(rows), teacher, whole.index_B[rows], 0, 0, whole.labels_B[rows])
        return self.method(one)["loss"]


def gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def alone(name, options, rows):
    module = Both(name, options)
    module(rows).backward()
    return gradients(module)


def rank_main(rank, folder, names):
    """What each of the two processes does."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    rows = torch.arange(WHOLE).chunk(2)[rank]
    for name in names:
        module = Both(name, GATHERED.get(name, {}))
        wrapped = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)
        wrapped(rows).backward()
        if rank == 0:
            torch.save({"gradients": gradients(module), "buffers": dict(module.named_buffers())}, f"{folder}/{name}.pt")
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's own threads may outlive the group: one was seen to abort a finished process at its end


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    code = "import sys; from test_processes import *; rank_main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])"
    command = [sys.executable, "-c", code]
    names = [name for name in METHODS if name not in LOCAL]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder), *names], cwd=Path(__file__).parent, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    errors = [rank.communicate(timeout=120)[1].decode()[-2000:] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    return folder


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LOCAL])
def test_two_halves_give_the_gradient_of_the_whole(two_processes, name):
    found = torch.load(two_processes / f"{name}.pt", weights_only=True)
    whole = alone(name, GATHERED.get(name, {}), torch.arange(WHOLE))
    assert set(found["gradients"]) == set(whole)
    for parameter, gradient in whole.items():
        torch.testing.assert_close(found["gradients"][parameter], gradient, rtol=1e-9, atol=1e-12, msg=parameter)


def test_a_running_mean_is_that_of_all_processes(two_processes):
    found = torch.load(two_processes / "tintem.pt", weights_only=True)["buffers"]
    one = Both("tintem", GATHERED["tintem"])
    one(torch.arange(WHOLE))
    key = "method.terms.tintem.mapping.mean"
    assert one.get_buffer(key).abs().sum() > 0
    torch.testing.assert_close(found[key], one.get_buffer(key))


@pytest.mark.parametrize("name", ["rkd", "pkt", "sp", "dist"])
def test_without_gathering_a_batch_matrix_stays_with_its_process(name):
    """Stated in `gathers`: the mean over two halves is then another gradient than that of the whole."""
    halves = [alone(name, {}, rows) for rows in torch.arange(WHOLE).chunk(2)]
    whole = alone(name, {}, torch.arange(WHOLE))
    key = next(key for key in whole if whole[key].abs().sum() > 0)
    assert not torch.allclose((halves[0][key] + halves[1][key]) / 2, whole[key], rtol=1e-3)


def test_every_method_states_what_it_gathers():
    assert all(len(method_class(name).gathers) > 20 for name in METHODS)
