"""What is installed, by metadata alone: a distribution that is not called like its runtime is told by its own name."""

import sys

import pytest

from tinkit.device.hello import RUNTIMES, runtimes


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """A function that installs distributions into a place of their own: {"onnxruntime-gpu": "1.20.0"}."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for names in RUNTIMES.values():
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)  # another test may have imported it

    def install(versions, packages=("onnxruntime",)):
        for package in packages:
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").write_text("raise RuntimeError('it was imported')")
            monkeypatch.delitem(sys.modules, package, raising=False)
        for name, version in versions.items():
            folder = tmp_path / "{}-{}.dist-info".format(name.replace("-", "_"), version)
            folder.mkdir()
            (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: {}\nVersion: {}\n".format(name, version))

    return install


def test_the_plain_distribution_is_told_once(plant):
    plant({"onnxruntime": "1.23.0"})
    assert runtimes() == {"onnxruntime": "1.23.0"}


def test_another_distribution_is_told_by_its_own_name_as_well(plant):
    plant({"onnxruntime-gpu": "1.20.0"})
    assert runtimes() == {"onnxruntime": "1.20.0", "onnxruntime-gpu": "1.20.0"}


def test_of_two_distributions_both_are_told(plant):
    plant({"onnxruntime-gpu": "1.20.0", "onnxruntime": "1.23.0", "onnxruntime-openvino": "1.22.0"})
    assert runtimes() == {"onnxruntime": "1.23.0", "onnxruntime-gpu": "1.20.0", "onnxruntime-openvino": "1.22.0"}


def test_a_package_without_metadata_and_metadata_without_a_package(plant):
    plant({"onnxruntime-gpu": "1.20.0"}, packages=("tensorrt",))
    assert runtimes() == {"tensorrt": "unknown"}
