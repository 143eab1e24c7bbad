"""A run with labels: a head on the teacher, cross-entropy, and a classifier that ships only when asked for."""

import json

import numpy as np
import pytest
import torch
from small_pair import SMALL, stopped_after, teacher_weights

import tinkit
from tinkit.bundle import open_bundle
from tinkit.errors import Interrupted, TinkitError
from tinkit.host.run import load_run


@pytest.fixture
def pair(tmp_path):
    return {**SMALL, "teacher_weights": teacher_weights(tmp_path, classes=10), "store": str(tmp_path / "stores")}


def last_record(run):
    with open(f"{run}/log.jsonl", encoding="utf-8") as handle:
        return [line for line in map(json.loads, handle) if "event" not in line][-1]


def test_labels_bring_cross_entropy_and_classes(photos, pair, tmp_path):
    result = tinkit.distill(photos, out=tmp_path / "run", **{**pair, "method": "kd", "labels": "folders"})
    run = load_run(result.run)
    assert {"kl", "label"} <= set(last_record(result.run))
    dropped = run.record["labels"]["dropped_classes"]  # all their pictures are held out
    assert sorted(run.record["classes"] + dropped) == sorted({path.parent.name for path in photos.rglob("*.jpg")})
    assert len(dropped) < 3
    assert run.record["method"]["label_weight"] == pytest.approx(0.1)
    assert run.record["student"]["classes"] is None  # not asked for: the head does not ship
    assert not any(name.startswith("head.") for name in run.student().state_dict())


def test_some_labels_in_a_csv_are_enough_and_the_rest_still_trains(photos, pair, tmp_path):
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    lines = [f"{name},{'even' if number % 2 else 'odd'}" for number, name in enumerate(names[:20])]
    (file := tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(lines))
    result = tinkit.distill(photos, out=tmp_path / "run", **{**pair, "method": "tintem+dist", "labels": str(file)})
    assert {"tintem.token", "dist.inter", "label"} <= set(last_record(result.run))
    assert load_run(result.run).record["classes"] == ["even", "odd"]


@pytest.mark.parametrize("method", ["kd", "tcs"])
def test_a_kept_head_ships_as_logits_with_its_class_names(photos, pair, tmp_path, method):
    settings = {**pair, "method": method, "labels": "folders", "keep_head": True}
    result = tinkit.distill(photos, out=tmp_path / "run", **settings)
    run = load_run(result.run)
    student = run.student()
    assert student.spec.classes == len(run.record["classes"])
    exported = tinkit.export(result.run, target="onnx-fp16")
    assert {hop.output for hop in exported.hops if hop.gate is not None} == {"pixels", "embedding", "logits"}
    bundle = open_bundle(exported.bundle)
    assert bundle.manifest["classes"] == run.record["classes"]
    exam = bundle.exam()
    with torch.no_grad():
        said = student.head(torch.from_numpy(exam.answers["embedding"])).numpy()
    np.testing.assert_allclose(exam.answers["logits"], said, rtol=1e-4, atol=1e-4)


def test_the_teacher_s_own_classifier_gives_logits_without_labels(photos, pair, tmp_path):
    result = tinkit.distill(photos, out=tmp_path / "run", **{**pair, "method": "dist", "keep_head": True})
    record = load_run(result.run).record
    assert record["student"]["classes"] == 10
    assert record["classes"] is None  # weights carry no names, and these are not ImageNet's thousand


def test_imagenet_s_thousand_have_names():
    from tinkit.host.teacher import class_names

    class Thousand:
        classes, named_classes = 1000, True

    names = class_names(Thousand())
    assert len(names) == 1000
    assert names[207] == "golden retriever"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "tcs"}, "--labels folders"),
        ({"method": "kd", "teacher_weights": None}, "no classifier.*--labels"),
        ({"keep_head": True}, "no head to keep"),
        ({"label_weight": 1.0}, "needs labels"),
        ({"logits": True}, "no term over logits"),
        ({"method": "kd", "center": False}, "kd has no center"),
        ({"method": "vkd", "options": ("norm=batch",)}, "vkd cannot work like this.*options of vkd"),
        ({"method": "kd", "labels": "missing.csv"}, "is missing"),
        ({"method": "at", "teacher": "onnx"}, "timm teacher"),
    ],
)
def test_what_is_missing_comes_with_the_option_that_gives_it(photos, pair, tmp_path, change, words):
    change = dict(change)
    if change.get("teacher_weights", "") is None:
        (plain := tmp_path / "plain").mkdir()
        change["teacher_weights"] = teacher_weights(plain)
    if change.get("teacher") == "onnx":
        change.update(teacher=onnx_teacher(tmp_path), teacher_weights=None)
    with pytest.raises(TinkitError, match=f"(?s){words}"):
        tinkit.distill(photos, out=tmp_path / "run", **{**pair, **change})
    assert not (tmp_path / "stores").exists()  # said before the teacher has seen anything


def onnx_teacher(folder):
    import onnx
    from onnx import TensorProto, helper

    shape = [None, 3, 64, 64]
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["global"])],
        "teacher",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("global", TensorProto.FLOAT, [None, 3])],
    )
    path = str(folder / "teacher.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_labels_without_weight_say_so(photos, pair, tmp_path, capsys):
    tinkit.distill(photos, out=tmp_path / "run", **{**pair, "labels": "folders", "quiet": False})
    assert "--label-weight 1" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_labels(photos, pair, tmp_path, monkeypatch):
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))

    def write(*classes):
        lines = [f"{name},{classes[number % len(classes)]}" for number, name in enumerate(names)]
        (tmp_path / "labels.csv").write_text("\n".join(lines))

    settings = {**pair, "method": "kd", "labels": str(tmp_path / "labels.csv"), "keep_head": True}
    write("cat", "dog")
    with monkeypatch.context() as patched:
        stopped_after(patched, 3)
        with pytest.raises(Interrupted):
            tinkit.distill(photos, out=tmp_path / "run", **settings)
    for others in (("yak", "dog"), ("cat", "dog", "emu")):
        write(*others)
        with pytest.raises(TinkitError, match="labels"):
            tinkit.distill(out=tmp_path / "run", resume=True, quiet=True)
    write("cat", "dog")
    assert tinkit.distill(out=tmp_path / "run", resume=True, quiet=True).epochs == pair["epochs"]


def test_an_embedding_that_nothing_trains_is_told(photos, pair, tmp_path, capsys):
    for method, told in (("at", True), ("at+mse", False), ("kd", False)):
        settings = {**pair, "method": method, "epochs": 1, "quiet": False}
        tinkit.distill(photos, out=tmp_path / method, **settings)
        assert ("nothing in at trains the embedding" in capsys.readouterr().err) == told


def test_a_mapping_fitted_afterwards_is_not_shown_as_a_target(photos, pair, tmp_path):
    result = tinkit.distill(photos, out=tmp_path / "run", **{**pair, "method": "mse"})
    record = load_run(result.run).record
    assert "cosine_mean" not in result.metrics
    if record["method"]["mapping"] is not None:
        assert -1 <= result.metrics["fitted_cosine_mean"] <= 1
        assert "fitted afterwards" in record["chain"][0]["hop"]


def test_what_was_decided_is_in_the_record(photos, pair, tmp_path):
    settings = {**pair, "method": "kd+mse:2", "options": ("kd.tau=2",), "labels": "folders"}
    record = load_run(tinkit.distill(photos, out=tmp_path / "run", **settings).run).record
    kd, mse = record["method"]["terms"]
    assert kd["options"]["tau"] == 2
    assert mse["weight"] == 2
    assert 30 < record["labels"]["train"] < record["labels"]["labelled"] <= 40
