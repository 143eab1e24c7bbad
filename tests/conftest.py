"""For all tests: one thread, no network, and a folder of real photographs."""

import os

# Before numpy and torch are imported: they read these once.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", HF_HUB_OFFLINE="1", TINKIT_DEBUG="0")

import pytest  # noqa: E402 - after the environment
from hypothesis import settings  # noqa: E402

settings.register_profile("tinkit", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("tinkit")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with 40 crops (JPEG, 96 px, one folder a photograph). Shared: copy it before changing anything."""
    from tinkit.host.demo_pictures import cut

    folder = tmp_path_factory.mktemp("pictures") / "photos"
    cut(folder, count=40, size=96)
    return folder
