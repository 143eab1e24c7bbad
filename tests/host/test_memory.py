"""Memory of a training step: kept by the process while it trains, given back afterwards."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from small_pair import SMALL, teacher_weights

import tinkit
from tinkit.host import memory
from tinkit.host.memory import kept_memory

BLOCK = 64 << 20
LOOK = """
import resource, torch
from tinkit.host.memory import kept_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones({block} // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(1)
usual = faults()
with kept_memory():
    faults()
    kept, held = faults(), resident()
print(usual, kept, held - resident())
"""


@pytest.mark.skipif(memory._glibc() is None or not os.path.exists("/proc/self/statm"), reason="needs glibc and /proc")
def test_blocks_stay_while_it_trains_and_go_back_afterwards():
    code, without_gpu = LOOK.format(block=BLOCK), {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=without_gpu)
    usual, kept, given_back = map(int, done.stdout.split())
    assert kept < usual / 10
    assert given_back > BLOCK / 2


@pytest.fixture
def told(monkeypatch):
    """What a C library that only remembers is told, on a machine without a GPU."""
    told = []
    monkeypatch.setattr(memory, "_glibc", lambda: Told(told))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return told


def test_an_error_inside_gives_it_back_too(told):
    with pytest.raises(ZeroDivisionError), kept_memory():
        raise ZeroDivisionError
    assert told[0] == (memory.MMAP_MAX, 0)
    assert (memory.MMAP_MAX, memory.DEFAULT_MMAP_MAX) in told
    assert told[-1] == "trimmed"


def test_the_outermost_of_several_gives_it_back(told):
    with kept_memory():
        with kept_memory():
            pass
        assert len(told) == 2
    assert told[-1] == "trimmed"
    assert told.count("trimmed") == 1


def test_a_run_keeps_it_while_it_fills_the_store_and_while_it_trains(photos, tmp_path, told):
    tinkit.distill(photos, out=tmp_path / "run", **{**SMALL, "teacher_weights": teacher_weights(tmp_path), "epochs": 1})
    stores, trainings = 2, 1  # of the training pictures and of the held-out ones
    assert told.count((memory.MMAP_MAX, 0)) == told.count("trimmed") == stores + trainings


def test_a_gpu_and_another_c_library_are_left_alone(monkeypatch, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with kept_memory():
        assert told == []
    monkeypatch.undo()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with kept_memory():
        pass
    assert told == []


class Told:
    """A C library that only remembers."""

    def __init__(self, told):
        self.told = told

    def mallopt(self, parameter, value):
        self.told.append((parameter, value))

    def malloc_trim(self, _):
        self.told.append("trimmed")
