"""A small bundle and a device profile of this machine."""

import pytest
from small_parts import PREPROCESSING, SIZE, small_exam, small_model, small_target

from tinkit.bundle import write_bundle
from tinkit.device import board
from tinkit.recipes import DeviceProfile


@pytest.fixture(scope="session")
def exam():
    return small_exam()


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture
def make_bundle(tmp_path, model_path):
    """make_bundle(exam, manifest, model, **changes of the target) -> `Bundle`; everything may be left out."""

    def make(exam=None, manifest=None, model=model_path, **changes):
        target = small_target(**changes)
        tensors = {
            "inputs": [{"name": "image", "dtype": target.io, "shape": ["batch", 3, SIZE, SIZE]}],
            "outputs": [{"name": "embedding", "dtype": target.io, "shape": ["batch", 8]}],
        }
        value = {
            "name": "small",
            "created": "2025-01-01T00:00:00+00:00",
            "target": target.to_json(),
            "preprocessing": PREPROCESSING.to_json(),
            "tensors": tensors,
            "chain": [],
            "host_gate": {"verdict": "passed"},
        }
        return write_bundle(tmp_path / "bundle-small", model, dict(value, **(manifest or {})), exam)

    return make


@pytest.fixture
def here():
    """A device profile of this very machine that times quickly."""
    return DeviceProfile(
        description="this machine",
        runtime="onnxruntime",
        arch=board.architecture(),
        name="here",
        batches=(1, 4),
        warmup_s=0.05,
        min_samples=200,
        min_seconds=0.01,
    )
