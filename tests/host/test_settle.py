"""The precision of an export, settled on planted faults: the gate catches them, and a handful of nodes heals them."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from export_parts import loud_norm, outlier_channel, write_run
from PIL import Image

from tinkit.bundle import open_bundle
from tinkit.errors import CannotJudge, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.export import command as exports
from tinkit.host.export.calibration_pictures import calibration_feeds
from tinkit.host.export.command import export
from tinkit.host.export.gate import Draft
from tinkit.host.export.graph_truth import graph_truth
from tinkit.host.export.precision import Plan, write_precision
from tinkit.host.run import load_run
from tinkit.host.student import build_student
from tinkit.recipes import load_target
from tinkit.target import Batch, Gate

# Random weights are more fragile in int8 than trained ones; healing may cost more of a network this small.
INT8 = {"gate": {"embedding": Gate(0.95, 0.9)}, "heal": 0.3, "floor": 0.7}
EXPANSION, PROJECTION = "backbone.blocks.3.0.conv_pw/Conv", "backbone.blocks.2.0.conv_pwl/Conv"


@pytest.fixture(scope="module")
def loud(photos, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("loud") / "run", photos, loud_norm, architecture="test_convnext")


@pytest.fixture(scope="module")
def hostile(photos, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("hostile") / "run", photos, outlier_channel)


def worst(result):
    return min(hop.cosine_min for hop in result.hops if hop.gate is not None and hop.output == "embedding")


@pytest.mark.slow
def test_an_overflow_on_real_pictures_alone_is_caught(loud, tmp_path):
    result = export(loud, "onnx-fp16", out=tmp_path / "bundle", heal=False)
    assert result.verdict == FAILED
    assert worst(result) == -1.0
    assert any("first node that is not finite is backbone.stem.0/Conv" in hop.reason for hop in result.hops)
    assert result.healing == {}
    (tmp_path / "noise").mkdir()
    for index in range(6):
        noise = np.random.default_rng(index).normal(124, 58, (80, 80, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "noise" / f"{index}.png")
    on_noise = export(loud, "onnx-fp16", out=tmp_path / "other", heal=False, exam=tmp_path / "noise")
    assert worst(on_noise) > 0.99  # random input would have hidden it


def test_an_overflow_is_healed_by_a_handful_of_nodes(loud, tmp_path):
    said = []
    result = export(loud, "onnx-fp16", out=tmp_path / "bundle", say=said.append)
    found = result.healing["fp16"]
    assert result.verdict == PASSED
    assert worst(result) > 0.9999
    assert found["before"] == -1.0
    names = [node["node"] for node in found["kept"]]
    assert "backbone.stem.0/Conv" in names
    assert len(names) <= 5
    assert all(name.startswith("backbone.stem") for name in names)
    assert all(node["op_type"] and node["gain"] > 1 for node in found["kept"])
    manifest = open_bundle(result.bundle).manifest
    assert [node["node"] for node in manifest["healing"]["fp16"]["kept"]] == names
    assert 0.9 <= manifest["precision"]["macs"]["fp16"] < 1
    assert any(line.startswith("heal     fp16: ") for line in said)


def test_tensorrt_8_gets_the_nodes_as_a_list(loud, tmp_path):
    result = export(loud, "trt86-fp16", out=tmp_path / "bundle")
    manifest = open_bundle(result.bundle).manifest
    assert result.verdict == PASSED
    assert result.truth.verdict == NOT_JUDGED
    assert any(name.startswith("backbone.stem.0/") for name in manifest["fp32_nodes"])
    weights = onnx.load(tmp_path / "bundle" / "model.onnx").graph.initializer
    assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in weights}


@pytest.mark.parametrize("name", ["onnx-int8", "trt-int8"])
@pytest.mark.slow
def test_an_outlier_channel_is_caught_and_healed(hostile, tmp_path, name):
    target = replace(load_target(name), **INT8)
    failed = export(hostile, target, out=tmp_path / "failed", heal=False)
    assert failed.verdict == FAILED
    result = export(hostile, target, out=tmp_path / "bundle")
    found = result.healing["int8"]
    assert result.verdict == PASSED
    assert worst(result) > 0.95 > worst(failed)
    assert EXPANSION in [node["node"] for node in found["kept"]]
    assert found["ranking"][0]["node"] in (EXPANSION, PROJECTION)
    assert len(found["kept"]) <= 3
    assert result.truth.macs["int8"] == pytest.approx(1 - found["macs"])
    calibration = open_bundle(result.bundle).manifest["calibration"]
    assert set(calibration["worst_cosine"]) == {"minmax", "percentile", "entropy"}
    assert calibration["worst_cosine"][calibration["chosen"]] == max(calibration["worst_cosine"].values())


@pytest.mark.slow
def test_what_cannot_be_healed_stays_failed_with_its_ranking(hostile, tmp_path):
    result = export(hostile, replace(load_target("onnx-int8"), **{**INT8, "heal": 0.0}), out=tmp_path / "bundle")
    found = result.healing["int8"]
    assert result.verdict == FAILED
    assert not found["healed"]
    assert found["ranking"][0]["node"] in (EXPANSION, PROJECTION)
    assert "not healed" in found["reason"]


def test_a_graph_that_claims_fp16_but_is_fp32_fails(hostile, tmp_path, monkeypatch):
    def lazy(fp32, target, plan=None, ranges=None):
        return write_precision(fp32, replace(target, precision="fp32"), Plan())

    monkeypatch.setattr("tinkit.host.export.settle.write_precision", lazy)
    result = export(hostile, "trt-fp16", out=tmp_path / "bundle")
    assert result.truth.verdict == FAILED
    assert result.verdict == FAILED
    assert "0.00% of the MACs in fp16" in result.truth.reason
    assert open_bundle(result.bundle).manifest["host_gate"]["verdict"] == FAILED


def test_int8_is_calibrated_on_pictures_that_the_exam_does_not_have(hostile, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("tinkit.host.export.calibration_pictures.PICTURES", 5)
    real = exports.settle

    def watched(fp32, draft, exam, feeds, *arguments):
        seen.append((exam.pixels, np.concatenate([feed["image"] for feed in feeds()]), draft, fp32))
        return real(fp32, draft, exam, feeds, *arguments)

    monkeypatch.setattr(exports, "settle", watched)
    export(hostile, replace(load_target("onnx-int8"), **INT8), out=tmp_path / "bundle", heal=False)
    exam, calibration, draft, fp32 = seen[0]
    examined = draft.feed(exam, fp32)["image"]
    assert len(calibration) == 5
    assert not any(np.array_equal(one, other) for one in calibration for other in examined)


@pytest.mark.slow
def test_without_its_pictures_the_run_is_calibrated_on_the_exam_and_says_so(photos, tmp_path):
    run = write_run(tmp_path / "run", photos)
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace(str(photos), str(tmp_path / "gone")))
    result = export(run, replace(load_target("onnx-int8"), **INT8), out=tmp_path / "bundle", heal=False)
    assert any("the gate is judged too well" in note for note in result.notes)


def test_an_openvino_target_without_openvino_is_not_judged(hostile, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CannotJudge, match="openvino is missing") as caught:
        export(hostile, "openvino-fp16", out=tmp_path / "bundle")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_the_openvino_file_is_judged_as_it_ships(hostile, tmp_path):
    pytest.importorskip("openvino")
    result = export(hostile, "openvino-fp16", out=tmp_path / "bundle")
    assert result.verdict == PASSED
    assert [hop.hop for hop in result.hops][1:] == ["student -> onnx, batch 1", "student -> onnx, batch 12"]
    assert all("openvino" in hop.conditions for hop in result.hops[1:])
    assert result.truth.computed == "fp32"
    assert graph_truth(onnx.load(tmp_path / "bundle" / "model.onnx"), load_target("openvino-fp16")).weights["fp16"] == 1


@pytest.mark.slow
def test_a_fixed_batch_is_calibrated_ranked_and_healed_in_that_batch(hostile, loud, tmp_path):
    fixed = Batch(3, 3, 3)
    result = export(hostile, replace(load_target("onnx-int8"), **INT8, batch=fixed), out=tmp_path / "int8")
    assert result.healing["int8"]["healed"]
    result = export(loud, replace(load_target("onnx-fp16"), batch=fixed), out=tmp_path / "fp16")
    assert result.healing["fp16"]["healed"]


@pytest.mark.slow
def test_a_neck_on_local_features_is_int8_too(hostile, tmp_path):
    gates = {"embedding": Gate(0.9, 9.0), "local": Gate(-1.0, 9.0)}
    target = replace(load_target("onnx-int8"), **{**INT8, "gate": gates}, local=True)
    result = export(hostile, target, out=tmp_path / "bundle", heal=False)
    assert result.truth.macs == {"int8": 1.0}


@pytest.mark.slow
def test_calibration_wants_a_folder_of_its_own_and_leaves_the_exam_out(hostile, photos, tmp_path, monkeypatch):
    target = replace(load_target("onnx-int8"), **INT8)
    with pytest.raises(TinkitError, match="calibration must be a folder") as caught:
        export(hostile, target, calibration=tmp_path / "none")
    assert "--calibration" in caught.value.next_step
    (tmp_path / "empty").mkdir()
    with pytest.raises(TinkitError, match="for calibration cannot be used"):
        export(hostile, target, calibration=tmp_path / "empty")
    exam = load_run(hostile).exam()
    feeds, notes = calibration_feeds(
        Draft(str(tmp_path), target, build_student("test_efficientnet", 64).spec.preprocessing),
        small_input_model(),
        load_run(hostile),
        exam,
        photos,
    )
    taken = {pixels.tobytes() for pixels in exam.pixels}
    assert notes == []
    assert not taken & {pixels.tobytes() for feed in feeds() for pixels in feed["image"]}


def small_input_model():
    """A graph that takes pixels as they are."""
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", 64, 64, 3])
    node = onnx.helper.make_node("Identity", ["image"], ["embedding"])
    output = onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.UINT8, ["batch", 64, 64, 3])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "pixels", [image], [output]))


def test_without_pictures_no_name_of_one_travels(hostile, photos, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "secret.jpg").write_bytes(b"no picture")
    pictures = [path for path in sorted(photos.rglob("*")) if path.is_file()]
    for number, path in enumerate(pictures[:3]):
        (tmp_path / "mine" / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    export(hostile, "onnx-fp32", out=tmp_path / "bundle", exam=tmp_path / "mine", deploy_only=True)
    assert "secret" not in (tmp_path / "bundle" / "manifest.json").read_text()
