"""Targets: what cannot go together is refused with what is wanted; old manifests load; the shipped files keep their word."""

import dataclasses
import json
from pathlib import Path

import pytest

from tinkit.errors import TinkitError
from tinkit.recipes import known, load_target
from tinkit.target import Batch, Gate, Target

SHIPPED = sorted(path.stem for path in (Path(__file__).parent.parent / "export").glob("*.toml"))
GATE = {"min_cosine": 0.9, "max_error_share": 0.1}
PLAIN = {"description": "for tests", "runtime": "onnxruntime", "precision": "fp32", "gate": {"embedding": GATE}}
TRT = {"runtime": "tensorrt"}
OLD = {"opset": 17, "exporter": "legacy"}
INT8 = {"precision": "int8", "rest": "fp16"}
FRAME = {"input": "uint8-nhwc", "frame": [480, 640], "gate": {"embedding": GATE, "frame": GATE}}


def made(*changes):
    value = dict(PLAIN)
    for change in changes:
        value.update(change)
    return Target.from_json(value)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [TRT, OLD],
        [TRT, OLD, {"opset": 16, "weakly_typed": True}, INT8],
        [TRT, {"opset": 22, "precision": "bf16"}],
        [INT8],
        [INT8, {"opset": 19, "io": "float16"}],
        [{"precision": "int8", "rest": "fp32", "opset": 18}],
        [{"runtime": "openvino", "compute": "bf16"}],
        [{"precision": "fp16", "io": "float16", "input": "uint8-nhwc"}],
        [FRAME],
    ],
)
def test_what_goes_together_is_taken_and_survives_the_manifest(changes):
    target = made(*changes)
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


@pytest.mark.parametrize(
    ("changes", "key", "wanted"),
    [
        ([{"opset": 15}], "opset", "16 to 22"),
        ([{"opset": 23}], "opset", "Attention"),
        ([{"opset": 17}], "exporter", "legacy at opset 17"),
        ([{"exporter": "legacy"}], "exporter", "dynamo at opset 20"),
        ([{"exporter": "other"}], "exporter", "dynamo or legacy"),
        ([TRT, {"precision": "bf16", "opset": 21}], "opset", "22: Conv takes bf16"),
        ([{"precision": "bf16", "opset": 22}], "precision", "no bf16 Conv"),
        ([{"precision": "int8"}], "rest", "fp32 or fp16"),
        ([{"precision": "int8", "rest": "bf16"}], "rest", "fp32 or fp16"),
        ([{"rest": "fp32"}], "rest", "only an int8 target"),
        ([INT8, {"opset": 18}], "opset", "19 or more"),
        ([{"runtime": "openvino"}], "compute", 'write compute = "fp32"'),
        ([{"runtime": "openvino", "compute": "int8"}], "compute", "fp32, bf16 or fp16"),
        ([{"compute": "fp32"}], "compute", "only openvino"),
        ([{"weakly_typed": True}], "weakly_typed", "only TensorRT"),
        ([TRT, {"weakly_typed": True, "precision": "bf16", "opset": 22}], "weakly_typed", "no bf16"),
        ([TRT, OLD, {"weakly_typed": True, "precision": "fp16", "io": "float16"}], "io", "written in fp32"),
        ([TRT, {"precision": "bf16", "opset": 22, "io": "float16"}], "io", "nothing in a bf16 target"),
        ([{"input": "uint8-nchw"}], "input", "uint8-nhwc"),
        ([FRAME, {"frame": [480]}], "frame", "[height, width]"),
        ([FRAME, {"frame": [480, 0]}], "frame", "[height, width]"),
        ([FRAME, {"input": "float-nchw"}], "frame", "uint8-nhwc"),
        ([FRAME, {"gate": {"embedding": GATE}}], "gate", "a gate for `frame`"),
        ([FRAME, {"frame": []}], "gate", "none without"),
        ([{"gate": {"embedding": GATE, "logit": GATE}}], "gate", "gates for embedding"),
        ([{"floor": 1.1}], "floor", "0 to 1"),
        ([{"floor": -0.5}], "floor", "0 to 1"),
        ([{"heal": 2}], "heal", "0 to 1"),
        ([{"heal": float("nan")}], "heal", "0 to 1"),
        ([{"gate": {"embedding": {**GATE, "min_cosine_mean": 0.8}}}], "min_cosine_mean", "min_cosine or more"),
        ([{"gate": {"embedding": {**GATE, "min_cosine_mean": 1.5}}}], "min_cosine_mean", "-1 to 1"),
    ],
)
def test_what_cannot_go_together_is_refused_with_what_is_wanted(changes, key, wanted):
    with pytest.raises(TinkitError, match="out of range") as caught:
        made(*changes)
    assert caught.value.seen.startswith(key + " =")
    assert wanted in caught.value.next_step


@pytest.mark.parametrize("frame", ["480x640", [480.0, 640.0], [True, 640]])
def test_a_frame_that_is_no_list_of_whole_numbers_is_refused(frame):
    with pytest.raises(TinkitError, match="wrong type") as caught:
        made(FRAME, {"frame": frame})
    assert "a list of whole numbers" in caught.value.next_step


def test_a_manifest_from_before_these_keys_loads():
    old = {"opset": 18, "io": "float32", "batch": {"min": 1, "opt": 1, "max": 8}, "local": False, "head": False}
    target = made(old, {"pixel_gate": 2.0, "name": "onnx-fp32"})
    assert (target.input, target.frame, target.exporter, target.rest) == ("float-nchw", (), "dynamo", "")
    assert target.gate["embedding"].min_cosine_mean == -1


@pytest.mark.parametrize(
    ("changes", "floor", "higher"),
    [
        ([], 1.0, "fp32"),
        ([{"precision": "fp16"}], 0.9, "fp32"),
        ([TRT, {"precision": "bf16", "opset": 22}], 0.9, "fp32"),
        ([INT8], 0.85, "fp16"),
        ([INT8, {"rest": "fp32"}], 0.85, "fp32"),
        ([INT8, {"floor": 0.5}], 0.5, "fp16"),
        ([INT8, {"floor": 0}], 0, "fp16"),
    ],
)
def test_floor_and_higher_follow_the_precision(changes, floor, higher):
    target = made(*changes)
    assert (target.floor, target.higher) == (floor, higher)


def test_conv_takes_bf16_from_the_opset_that_the_rule_says():
    from onnx import defs

    def takes(opset):
        return "tensor(bfloat16)" in defs.get_schema("Conv", opset).type_constraints[0].allowed_type_strs

    assert [takes(21), takes(22)] == [False, True]


def test_quantised_scales_may_be_fp16_from_the_opset_that_the_rule_says():
    from onnx import defs

    def takes(opset):
        return "tensor(float16)" in defs.get_schema("QuantizeLinear", opset).type_constraints[0].allowed_type_strs

    assert [takes(18), takes(19)] == [False, True]


def test_the_targets_of_the_design_are_shipped():
    trt8 = [f"trt{version}-{precision}" for version in (85, 86) for precision in ("fp16", "int8")]
    trt = [f"trt-{precision}" for precision in ("fp32", "fp16", "bf16", "int8")]
    others = ["onnx-fp32", "onnx-fp16", "onnx-int8", "openvino-fp16", "openvino-int8"]
    assert set(SHIPPED) >= {*trt8, *trt, *others}
    assert set(SHIPPED) <= set(known("target"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_target_keeps_its_word(name):
    target = load_target(name)
    runtime, precision = name.split("-")
    assert target.runtime == {"onnx": "onnxruntime", "openvino": "openvino"}.get(runtime, "tensorrt")
    assert target.precision == precision
    assert target.weakly_typed == (runtime in ("trt85", "trt86"))
    assert (target.runtime == "tensorrt") == bool(target.unproven)  # no engine of full TensorRT was ever run
    assert target.floor + target.heal <= 1 + 1e-9  # what healing may return must leave the floor standing
    assert target.input == "float-nchw"
    assert target.batch.min == target.batch.opt == 1
    assert (target.compute == "fp32") == (target.runtime == "openvino")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_gate_of_a_shipped_target_names_its_measurement(name):
    text = Path(load_target(name).path).read_text()
    above = text[: text.index("[gate.embedding]")].splitlines()
    assert above[-1].startswith("#")
    assert "docs/" in "\n".join(line for line in above[-6:] if line.startswith("#"))


def test_a_target_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().opset = 18
    assert Batch() == made().batch
    assert Gate(0.9, 0.1) == made().gate["embedding"]
