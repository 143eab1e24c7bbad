"""The feature store: written once, continued after a kill, refused when it is another's or damaged."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from small_pair import TEACHER, teacher_weights

from tinkit.errors import TinkitError
from tinkit.host import store as store_module
from tinkit.host.images import scan
from tinkit.host.store import open_or_build
from tinkit.host.teacher import load_teacher
from tinkit.host.views import AllViews, ViewPolicy


@pytest.fixture
def parts(photos, tmp_path):
    teacher = load_teacher(TEACHER, teacher_weights(tmp_path), size=32)
    views = AllViews(list(scan(photos).usable[:20]), ViewPolicy(), [teacher.preprocessing], 0.9, numbers=[0, 1])
    return teacher, views, str(tmp_path / "stores")


class Counting:
    """A teacher that counts the pictures it sees and may fail after some."""

    def __init__(self, teacher, fail_after=None):
        self.teacher, self.identity, self.preprocessing = teacher, teacher.identity, teacher.preprocessing
        self.seen, self.fail_after = 0, fail_after

    def features(self, pixels, parts=("local",)):
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise RuntimeError("the power failed")
        self.seen += len(pixels)
        return self.teacher.features(pixels, parts)


def test_rows_are_the_teacher_s_own_features_of_those_views(parts):
    teacher, views, root = parts
    store = open_or_build(root, teacher, views, dtype="float32")
    found = store.features([3, 5], [1, 0])
    live = teacher.features(torch.stack([views[3][1], views[5][0]]))
    torch.testing.assert_close(found.global_BD, live.global_BD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.local_BLD, live.local_BLD, rtol=1e-5, atol=1e-6)
    assert found.grid == live.grid
    half = open_or_build(root, teacher, views, dtype="float16")
    assert half.path != store.path
    torch.testing.assert_close(half.features([3], [1]).global_BD, found.global_BD[:1], rtol=1e-3, atol=1e-4)


def test_a_finished_store_is_read_and_not_computed_again(parts):
    teacher, views, root = parts
    first = Counting(teacher)
    open_or_build(root, first, views)
    assert first.seen == 40
    second = Counting(teacher)
    ticks = []
    open_or_build(root, second, views, tick=ticks.append)
    assert second.seen == 0
    assert sum(ticks) == 20


def test_an_interrupted_store_goes_on_where_it_was(parts, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK_ROWS", 8)  # four pictures a chunk
    teacher, views, root = parts
    whole = open_or_build(root + "-whole", teacher, views, batch=8)
    with pytest.raises(RuntimeError, match="power"):
        open_or_build(root, Counting(teacher, fail_after=24), views, batch=8)
    rest = Counting(teacher)
    resumed = open_or_build(root, rest, views, batch=8)
    assert rest.seen == 40 - 24
    for name in ("global", "local"):
        assert np.array_equal(resumed.arrays[name], whole.arrays[name])


def test_half_written_rows_and_a_cut_list_are_dropped(parts, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK_ROWS", 8)
    teacher, views, root = parts
    whole = open_or_build(root, teacher, views, batch=8)
    expected = np.array(whole.arrays["global"])
    listing = os.path.join(whole.path, "chunks.jsonl")
    with open(listing) as handle:
        lines = handle.readlines()
    with open(listing, "w") as handle:
        handle.writelines([*lines[:2], lines[2][:10]])
    with open(os.path.join(whole.path, "global.bin"), "ab") as handle:
        handle.write(b"half a row")
    assert np.array_equal(open_or_build(root, teacher, views, batch=8).arrays["global"], expected)


@pytest.mark.parametrize("name", ["global.bin", "local.bin", "identity.json", "chunks.jsonl"])
def test_a_flipped_byte_is_refused(parts, name):
    teacher, views, root = parts
    store = open_or_build(root, teacher, views)
    path = os.path.join(store.path, name)
    with open(path, "r+b") as handle:
        handle.seek(os.path.getsize(path) // 2)
        byte = handle.read(1)
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte[0] ^ 1]))
    with pytest.raises(TinkitError):
        open_or_build(root, teacher, views)


def test_a_shortened_array_is_refused(parts):
    teacher, views, root = parts
    store = open_or_build(root, teacher, views)
    path = os.path.join(store.path, "local.bin")
    os.truncate(path, os.path.getsize(path) - 1)
    with pytest.raises(TinkitError, match="damaged"):
        open_or_build(root, teacher, views)


def test_another_policy_or_picture_is_another_store(parts):
    teacher, views, root = parts
    first = open_or_build(root, teacher, views)
    other_policy = AllViews(views.pictures, ViewPolicy(seed=1), views.sizes, 0.9, numbers=[0, 1])
    fewer = AllViews(views.pictures[:10], ViewPolicy(), views.sizes, 0.9, numbers=[0, 1])
    paths = {first.path, open_or_build(root, teacher, other_policy).path, open_or_build(root, teacher, fewer).path}
    assert len(paths) == 3


def test_features_that_overflow_half_precision_are_refused(parts):
    teacher, views, root = parts

    class Huge(Counting):
        def features(self, pixels, parts=("local",)):
            found = super().features(pixels, parts)
            found.global_BD = found.global_BD + 1e6
            return found

    with pytest.raises(TinkitError, match="store-dtype float32"):
        open_or_build(root, Huge(teacher), views)


KILLED = """
import time
import torch
torch.set_num_threads(1)
from tinkit.host import store
from tinkit.host.images import scan
from tinkit.host.teacher import load_teacher
from tinkit.host.views import AllViews, ViewPolicy
from pathlib import Path
store.CHUNK_ROWS = 8
teacher = load_teacher("test_efficientnet", {weights!r}, size=32)
views = AllViews(list(scan({photos!r}).usable[:20]), ViewPolicy(), [teacher.preprocessing], 0.9, numbers=[0, 1])
real = teacher.features
def slow(pixels, parts):
    time.sleep(0.3)
    return real(pixels, parts)
teacher.features = slow
store.open_or_build({root!r}, teacher, views, batch=4)
"""


def test_kill_9_costs_at_most_a_chunk(parts, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK_ROWS", 8)
    teacher, views, root = parts
    whole = open_or_build(root + "-whole", teacher, views, batch=4)
    script = KILLED.format(weights=str(tmp_path / "teacher.safetensors"), photos=str(photos), root=root)
    process = subprocess.Popen([sys.executable, "-c", script])
    listing = os.path.join(root, os.path.basename(whole.path), "chunks.jsonl")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (os.path.exists(listing) and os.path.getsize(listing)):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(listing) as handle:
        finished = [json.loads(line) for line in handle]
    assert 1 <= len(finished) < 5
    rest = Counting(teacher)
    resumed = open_or_build(root, rest, views, batch=4)
    assert rest.seen == 40 - 8 * len(finished)
    assert np.array_equal(resumed.arrays["local"], whole.arrays["local"])
