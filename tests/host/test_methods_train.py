"""Every method on the tiny pair: it learns, a resume changes no bit, and only the bare student ships."""

import itertools
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from small_pair import SMALL, teacher_weights

import tinkit
from tinkit.errors import Interrupted
from tinkit.host import distill as distill_module
from tinkit.host.methods import METHODS
from tinkit.host.run import load_run
from tinkit.host.student import build_student

LABELLED = {"tcs": {"labels": "folders"}}


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


def settings_of(method, pair):
    return {**pair, **LABELLED.get(method, {}), "method": method, "learning_rate": 2e-3}


def stopped_after(patched, steps):
    """Training is asked to stop after so many steps, as by Ctrl-C."""
    real, asked = distill_module.train, itertools.count(1)

    def train(*arguments):
        return real(*arguments[:-2], lambda: next(asked) >= steps, arguments[-1])

    patched.setattr(distill_module, "train", train)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_lowers_its_own_loss_and_a_resume_changes_no_bit(photos, pair, tmp_path, monkeypatch, method):
    settings = settings_of(method, pair)
    whole = tinkit.distill(photos, out=tmp_path / "whole", **settings)
    record = load_run(whole.run).record
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "event" not in line]
    assert len(losses) >= 50
    assert sum(losses[-10:]) < sum(losses[:10])

    with monkeypatch.context() as patched:
        stopped_after(patched, 23)
        with pytest.raises(Interrupted):
            tinkit.distill(photos, out=tmp_path / "cut", **settings)
    cut = tinkit.distill(out=tmp_path / "cut", resume=True, quiet=True)
    ours, theirs = (load_file(os.path.join(run, "student.safetensors")) for run in (whole.run, cut.run))
    bare = build_student(settings["student"], settings["student_size"], settings["dim"]).state_dict()
    assert set(ours) == set(bare)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    kind = (record["method"]["mapping"] or {}).get("kind")
    assert kind == "pca" if method == "tintem" else kind in ("fitted", None)  # None: nothing to explain in 30 pictures


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_s_student_exports(photos, pair, tmp_path, method):
    run = tinkit.distill(photos, out=tmp_path / "run", **{**settings_of(method, pair), "epochs": 1}).run
    assert tinkit.export(run, target="onnx-fp32").verdict == "passed"
