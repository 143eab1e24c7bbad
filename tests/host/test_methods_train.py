"""Every method on the tiny pair: it learns, a resume changes no bit, and only the bare student ships."""

import json
import os

import pytest
from safetensors.torch import load_file
from small_pair import SMALL, stopped_after, teacher_weights

import tinkit
from tinkit.errors import Interrupted
from tinkit.host.methods import METHODS
from tinkit.host.run import load_run
from tinkit.host.student import build_student

LABELLED = {"tcs": {"labels": "folders"}}
AVERAGED = {name: {"ema": 0.9} for name in ("tcs", "crd", "diffkd")}  # methods with buffers of their own


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One store for all methods that want the same of the teacher."""
    folder = tmp_path_factory.mktemp("methods")
    return {
        **SMALL,
        "teacher_weights": teacher_weights(folder, classes=10),
        "store": str(folder / "stores"),
        "epochs": 13,
    }


# One of each kind (mapped, projected, over logits, with a memory); the others are slow tests.
QUICK = ("tintem", "vkd", "kd", "crd")


def settings_of(method, pair):
    return {**pair, **LABELLED.get(method, {}), **AVERAGED.get(method, {}), "method": method, "learning_rate": 2e-3}


def timeless(epoch):
    return {name: value for name, value in epoch.items() if name != "step_ms"}


@pytest.mark.parametrize(
    "method", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in METHODS]
)
def test_a_method_lowers_its_own_loss_and_a_resume_changes_no_bit(photos, pair, tmp_path, monkeypatch, method):
    settings = settings_of(method, pair)
    whole = tinkit.distill(photos, out=tmp_path / "whole", **settings)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "event" not in line]
    assert len(losses) >= 50
    assert sum(losses[-10:]) < sum(losses[:10])

    with monkeypatch.context() as patched:
        stopped_after(patched, 23)
        with pytest.raises(Interrupted):
            tinkit.distill(photos, out=tmp_path / "cut", **settings)
    cut = tinkit.distill(out=tmp_path / "cut", resume=True, quiet=True)
    bare = build_student(settings["student"], settings["student_size"], settings["dim"]).state_dict()
    assert set(load_file(os.path.join(whole.run, "student.safetensors"))) == set(bare)
    ours, theirs = load_run(whole.run).record, load_run(cut.run).record
    assert ours["files"] == theirs["files"]  # student, mapping and exam, by their hashes
    assert [timeless(epoch) for epoch in ours["history"]] == [timeless(epoch) for epoch in theirs["history"]]
    assert (ours["method"]["fitted_afterwards"] is None) or ours["method"]["mapping"]["kind"] == "fitted"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_s_student_exports(photos, pair, tmp_path, method):
    run = tinkit.distill(photos, out=tmp_path / "run", **{**settings_of(method, pair), "epochs": 1}).run
    assert tinkit.export(run, target="onnx-fp32").verdict == "passed"
