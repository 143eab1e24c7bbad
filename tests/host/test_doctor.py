"""The doctor: says what is there, what is missing with its command, and the traps that pip does not see."""

from collections import namedtuple
from pathlib import Path

import pytest

from tinkit.host import doctor
from tinkit.host.doctor import MISSING, OK, TROUBLE
from tinkit.strict import read_toml

PYPROJECT = read_toml(Path(__file__).parents[2] / "pyproject.toml")


def versions(**installed):
    return {name.replace("_", "-"): version for name, version in installed.items()}.get


def test_this_machine_is_examined_whole(tmp_path):
    findings = {finding.what: finding for finding in doctor.examine(tmp_path)}
    assert {
        "python",
        "torch",
        "torchvision",
        "timm",
        "onnxruntime",
        "tensorrt",
        "GPU",
        "ssh",
        "disk",
        "cores",
        "memory",
    } <= set(findings)
    for finding in findings.values():
        assert finding.state in (OK, MISSING, TROUBLE)
        assert finding.detail
    for what in ("python", "torch", "torchvision", "timm", "onnx", "onnxruntime", "PIL"):  # the tests need them
        assert findings[what].state == OK, findings[what]


def test_what_is_missing_comes_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    missing = [
        finding for finding in doctor.examine() if finding.state == MISSING and finding.what not in ("GPU", "ssh")
    ]
    assert {"torch", "timm", "onnx", "onnxruntime", "tensorrt", *doctor.TEACHERS} <= {
        finding.what for finding in missing
    }
    assert all(finding.command.startswith("pip install ") for finding in missing)


@pytest.mark.parametrize(
    ("name", "distribution", "extra", "purpose"),
    [
        ("openvino", "openvino", "openvino", "openvino-* targets"),
        ("tensorrt_rtx_bindings", "tensorrt-rtx-cu13-bindings", "trt-check", "--check-build"),
    ],
)
def test_parts_of_single_targets_come_with_their_own_extra(monkeypatch, name, distribution, extra, purpose):
    there = {distribution: "1.2.3"}
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor, "installed", there.get)
    found = {finding.what: finding for finding in doctor.examine()}[name]
    assert (found.state, found.command) == (OK, "")
    assert found.detail.startswith("1.2.3; ")
    there.clear()
    found = {finding.what: finding for finding in doctor.examine()}[name]
    assert (found.state, found.command) == (MISSING, f'pip install "tinkit[{extra}]"')
    assert purpose in found.detail
    brought = PYPROJECT["project"]["optional-dependencies"][extra]
    assert any(line.startswith(distribution) for line in brought)


def test_a_package_without_metadata_still_counts(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert doctor._package("json", "no-such-distribution", "JetPack's way", "").state == OK


def test_two_onnxruntimes_overwrite_each_other():
    found = doctor._onnxruntime(versions(onnxruntime="1.20.0", onnxruntime_gpu="1.20.1"))
    assert found.state == TROUBLE
    assert "overwrite each other" in found.detail
    assert "uninstall" in found.command


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_gpu"])
def test_one_onnxruntime_is_fine(name):
    assert doctor._onnxruntime(versions(**{name: "1.20.0"})).state == OK


def test_a_torchvision_of_another_torch_is_trouble():
    def wants(_):
        return ["numpy", "torch==2.9.1", "scipy; extra == 'scipy'"]

    assert doctor._torchvision(versions(torchvision="0.24.1", torch="2.9.1+cpu"), wants).state == OK
    found = doctor._torchvision(versions(torchvision="0.24.1", torch="2.10.0"), wants)
    assert found.state == TROUBLE
    assert "wants torch 2.9.1, here is 2.10.0" in found.detail


def test_a_disk_that_is_nearly_full_is_trouble(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(10**12, 10**12, 4 * 10**9))
    assert doctor._disk(tmp_path).state == TROUBLE
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(10**12, 0, 5 * 10**9))
    assert doctor._disk(tmp_path).state == OK


def test_gpus_are_named():
    assert doctor._gpu(["NVIDIA H200"]).detail == "NVIDIA H200"
    assert doctor._gpu([]).state == MISSING
