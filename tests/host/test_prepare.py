"""What is decided before training: pictures that turn out unreadable late, and what a resumed run may change."""

import json
import os

import pytest
from small_pair import SMALL, stopped_after, teacher_weights

import tinkit
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.run import load_run


@pytest.fixture
def pair(tmp_path):
    return {**SMALL, "teacher_weights": teacher_weights(tmp_path), "store": str(tmp_path / "stores")}


@pytest.fixture
def some_photos(photos, tmp_path):
    (folder := tmp_path / "photos").mkdir()
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))[:30]):
        (folder / f"{number}.jpg").write_bytes(path.read_bytes())
    return folder


def test_pictures_that_nobody_opened_before_are_put_aside_by_name(some_photos, pair, tmp_path):
    broken = [f"broken{number}.jpg" for number in range(8)]
    for name in broken:
        (some_photos / name).write_text("no picture")
    for path in some_photos.iterdir():
        os.utime(path, (1e9, 1e9))  # a part of the address, and so of what is held out
    result = tinkit.distill(some_photos, out=tmp_path / "run", scan="quick", **pair)
    images = load_run(result.run).record["images"]
    assert sorted(entry["name"] for entry in images["skipped"]) == broken
    assert images["usable"] == result.pictures == 30
    assert images["heldout"] < 8, "some of them were to be held out"
    assert images["train"] + images["heldout"] == 30
    exam = load_run(result.run).exam()
    assert len(exam.pixels) == images["heldout"]


def test_with_too_few_left_it_says_so(some_photos, pair, tmp_path):
    for path in sorted(some_photos.iterdir())[:24]:
        path.write_text("no picture")
    with pytest.raises(TinkitError, match="too few pictures"):
        tinkit.distill(some_photos, out=tmp_path / "run", scan="quick", **pair)


def test_a_resumed_run_may_change_where_it_runs_and_nothing_else(some_photos, pair, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        stopped_after(patched, 1)
        with pytest.raises(Interrupted):
            tinkit.distill(some_photos, out=out, **pair)
    for name, other in (("seed", 3), ("sync_batchnorm", False), ("batch_size", 4), ("scan", "quick")):
        with pytest.raises(TinkitError, match="keeps its settings") as caught:
            tinkit.distill(out=out, resume=True, quiet=True, **{name: other})
        assert name in caught.value.seen
    with pytest.raises(TinkitError, match="equal share"):
        tinkit.distill(out=out, resume=True, quiet=True, devices=3)
    changed = {
        "workers": 1,
        "checkpoint_minutes": 1.5,
        "keep_checkpoints": 1,
        "decoded_cache_gb": 0.0,
        "micro_batch": 8,
    }
    assert tinkit.distill(out=out, resume=True, quiet=True, **changed).epochs == 2
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert {name: settings[name] for name in changed} == changed
