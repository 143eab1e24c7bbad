"""What a machine says of itself, on this one and on pretended ones."""

import json
import platform
import resource

import numpy as np
import pytest

from tinkit.device import board
from tinkit.recipes import load_device, match_device


def test_this_machine_tells_its_conditions():
    facts = board.machine()
    assert {"cpu", "arch", "cores", "usable_cores", "memory_gb", "governor", "python", "os", "kernel"} <= set(facts)
    assert 1 <= facts["usable_cores"] <= facts["cores"]
    assert facts["memory_gb"] > 0
    json.dumps(facts)


def test_a_jetson_is_known_by_its_device_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for path, text in {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n\nCPU part\t: 0xd0b\n",
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n',
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    facts = board.machine(str(tmp_path))
    assert facts["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert facts["cpu"] == "Arm implementer 0x41 part 0xd42"
    assert (facts["os"], facts["governor"]) == ("Ubuntu 22.04.4 LTS", "schedutil")


def test_a_machine_that_tells_nothing_is_not_guessed(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "")
    facts = board.machine(str(tmp_path))
    assert (facts["cpu"], facts["governor"]) == ("unknown", "unknown")
    assert "board" not in facts


@pytest.mark.parametrize(
    ("machine", "arch", "profile"),
    [("x86_64", "x86_64", "x86-cpu"), ("AMD64", "x86_64", "x86-cpu"), ("aarch64", "aarch64", "arm64-cpu")]
    + [("arm64", "aarch64", "arm64-cpu")],
)
def test_a_processor_goes_by_one_name_and_has_a_profile(monkeypatch, machine, arch, profile):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert board.architecture() == arch
    assert match_device({}, "onnxruntime", board.architecture()) == profile
    assert load_device(profile).arch == arch


def test_of_a_board_that_is_played_back_the_processor_is_its_own(tmp_path):
    assert board.architecture(str(tmp_path)) == board.architecture()
    (tmp_path / "proc" / "sys" / "kernel").mkdir(parents=True)
    (tmp_path / "proc" / "sys" / "kernel" / "arch").write_text("riscv64\n")
    assert board.architecture(str(tmp_path)) == "riscv64"


def test_peak_memory_sees_what_was_touched_and_never_falls():
    before = board.peak_memory_mb()
    block = np.ones(40_000_000 // 8)
    during = board.peak_memory_mb()
    del block
    assert during > before or during > 45  # an earlier test may have used more than this one
    assert board.peak_memory_mb() >= during - 1  # the kernel counts in batches of pages
    assert during * 1e6 <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 * 1.05


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(board.ctypes, "CDLL", no_library)
    assert board.cuda_gpus() == []
