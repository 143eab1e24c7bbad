"""For all tests: one thread, no network, a folder of real photographs, and a disk that is full."""

import contextlib
import os

# Before numpy and torch are imported: they read these once.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", HF_HUB_OFFLINE="1", TINKIT_DEBUG="0")

# What else measures on this machine is not waited for.
os.environ["TINKIT_MEASURING"] = f"tests-{os.getpid()}"

import resource

import pytest
from hypothesis import settings

settings.register_profile("tinkit", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("tinkit")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with 40 crops (JPEG, 96 px, one folder a photograph). Shared: copy it before changing anything."""
    from tinkit.host.demo_pictures import cut

    folder = tmp_path_factory.mktemp("pictures") / "photos"
    cut(folder, count=40, size=96)
    return folder


@pytest.fixture
def full_disk():
    """Within `with full_disk():` no file grows beyond 4 KB: the kernel refuses, as on a full disk (EFBIG)."""

    @contextlib.contextmanager
    def limit():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # Python ignores the signal that goes with it
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
