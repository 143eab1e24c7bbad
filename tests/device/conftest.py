"""A small bundle and a device profile of this machine."""

import pytest
from cuda_parts import FakeDriver, nothing_left
from small_parts import PREPROCESSING, SIZE, small_exam, small_model, small_target, this_machine

from tinkit.bundle import write_bundle
from tinkit.device.cuda import Cuda


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
    return this_machine()


@pytest.fixture
def driver():
    """A pretended driver; whatever a test makes it allocate must be gone at the end."""
    with nothing_left(FakeDriver()) as driver:
        yield driver


@pytest.fixture
def cuda(driver):
    with Cuda(library=driver) as opened:
        yield opened
