"""Precision truth: shares against the floor, and both layouts of an engine inspector's JSON, edited to lie and not."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_parts import reduced_target

from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.truth import Truth, engine_layers, engine_truth, judge_truth, openvino_truth, shares

DATA = Path(__file__).parent / "data"
LAYOUTS = ("inspector-10.json", "inspector-11.json")
MACS = {"stem/Conv": 600, "block/Conv": 300, "head/MatMul": 100}
TO_FP32 = (
    ("FP16", "FP32"),
    ("Half", "Float"),
    ("f16f16_f16f32", "f32f32_tf32f32"),
    ("f16f32_f16f32", "f32f32_tf32f32"),
)


def recorded(name, edits=()):
    text = (DATA / name).read_text()
    for old, new in edits:
        assert old in text or (old == "FP16" and "inspector-11" in name)  # there the data type is a word of its own
        text = text.replace(old, new)
    return text


def edit_layer(text, name, edits):
    """The JSON with only the layer of this name edited."""
    value = json.loads(text)
    index = [layer["Name"] for layer in value["Layers"]].index(name)
    layer = json.dumps(value["Layers"][index])
    for old, new in edits:
        layer = layer.replace(old, new)
    value["Layers"][index] = json.loads(layer)
    return json.dumps(value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_fp16_engine_is_told_in_both_layouts(name):
    truth = engine_truth(recorded(name), reduced_target(), MACS)
    assert truth.verdict == PASSED, truth.reason
    assert truth.macs == {"fp16": 1.0}
    assert truth.notes == ()
    assert truth.layers == {"fp16": 0.8, "fp32": 0.2}  # five that work: the reformat and the constant are not counted


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_engine_that_is_fp32_fails_an_fp16_target(name):
    truth = engine_truth(recorded(name, TO_FP32), reduced_target(), MACS)
    assert truth.verdict == FAILED
    assert truth.macs == {"fp32": 1.0}
    assert "0.00% of the MACs in fp16, the floor is 90.00%" in truth.reason


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_fp32_engine_passes_an_fp32_target_and_an_fp16_engine_does_not(name):
    assert engine_truth(recorded(name, TO_FP32), reduced_target("fp32"), MACS).verdict == PASSED
    assert engine_truth(recorded(name), reduced_target("fp32"), MACS).verdict == FAILED


@pytest.mark.parametrize("name", LAYOUTS)
def test_at_the_floor_passes_and_below_it_fails(name):
    mixed = edit_layer(recorded(name), "head/MatMul_myl0_3", TO_FP32)
    truth = engine_truth(mixed, reduced_target(floor=0.9), MACS)
    assert truth.macs == {"fp16": 0.9, "fp32": 0.1}
    assert truth.verdict == PASSED
    assert engine_truth(mixed, reduced_target(floor=0.9001), MACS).verdict == FAILED
    assert engine_truth(mixed, reduced_target(floor=0.9), dict(MACS, **{"head/MatMul": 101})).verdict == FAILED


def test_the_two_layouts_tell_the_same():
    assert engine_layers(recorded(LAYOUTS[0])) == engine_layers(recorded(LAYOUTS[1]))


@pytest.mark.parametrize("key", ["DataType", "Datatype", "dataType", "Data Type", "data_type"])
def test_the_split_field_is_read_in_any_spelling_and_wins_over_the_format(key):
    tensor = {"Name": "x", "Format": "Row major linear FP32 format (kLINEAR)", key: "Half"}
    (layer,) = engine_layers({"Layers": [{"Name": "a", "LayerType": "kgen", "Inputs": [tensor], "Outputs": []}]})
    assert layer.precision == "fp16"


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Float", "fp32"),
        ("Half", "fp16"),
        ("BF16", "bf16"),
        ("Int8", "int8"),
        ("FP8", "unknown"),
        ("Int32", "unknown"),
        ("UInt8", "unknown"),
        ("N/A due to dynamic shapes", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_words_of_data_types(words, precision):
    (layer,) = engine_layers({"Layers": [{"Name": "a", "Inputs": [{"Name": "x", "Format/Datatype": words}]}]})
    assert layer.precision == precision


@pytest.mark.parametrize(
    ("first", "weights", "precision"),
    [
        ("Int8", "Int8", "int8"),
        ("Half", "Int8", "fp16"),  # weights stored small, the product is not
        ("Int8", "Half", "fp16"),
        ("Half", "Float", "fp32"),
        ("Float", "Float", "fp32"),
        ("N/A due to dynamic shapes", "Int8", "int8"),
    ],
)
def test_a_product_is_as_wide_as_the_wider_of_its_sides(first, weights, precision):
    entry = {
        "Name": "a",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Format/Datatype": first}],
        "Outputs": [{"Name": "y", "Format/Datatype": "Float"}],
        "Weights": {"Type": weights, "Count": 9},
    }
    assert engine_layers({"Layers": [entry]})[0].precision == precision


def test_an_int8_product_of_two_inputs_is_not_widened_by_its_scales():
    inputs = [{"Name": name, "Format/Datatype": kind} for name, kind in (("x", "Int8"), ("w", "Int8"), ("s", "Float"))]
    assert engine_layers({"Layers": [{"Name": "a", "LayerType": "gemm", "Inputs": inputs}]})[0].precision == "int8"


@pytest.mark.parametrize(
    ("tactic", "precision"),
    [
        ("sm80_xmma_fprop_implicit_gemm_interleaved_i8f32_i8i32_f32_nchw_vect_c_32_tilesize256x128x64", "int8"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize32x32x64", "fp32"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "bf16"),
        ("__myl_MulAdd_0x1234", "unknown"),
    ],
)
def test_a_tactic_tells_where_types_are_not_shown(tactic, precision):
    assert (
        engine_layers({"Layers": [{"Name": "a", "LayerType": "gemm", "TacticName": tactic}]})[0].precision == precision
    )


def test_dynamic_shapes_without_a_context_are_told_by_weights_and_tactics():
    truth = engine_truth(recorded("inspector-dynamic.json"), reduced_target(), MACS)
    assert (truth.verdict, truth.macs) == (PASSED, {"fp16": 1.0})
    assert "the inspector had no execution context" in truth.notes[0]
    edits = [edit for edit in TO_FP32 if edit[0] != "FP16"]
    assert engine_truth(recorded("inspector-dynamic.json", edits), reduced_target(), MACS).verdict == FAILED


def test_an_engine_that_tells_only_names_is_not_judged():
    truth = engine_truth(recorded("inspector-names.json"), reduced_target(), MACS)
    assert truth.verdict == NOT_JUDGED
    assert "detailed profiling verbosity" in truth.reason
    assert truth.macs == {"unknown": 1.0}
    assert truth.notes == ()  # the nodes are found by name all the same


def test_nodes_of_a_layer_by_metadata_or_by_its_name():
    def nodes(name, metadata=""):
        return engine_layers({"Layers": [{"Name": name, "LayerType": "x", "Metadata": metadata}]})[0].nodes

    for between in ("\x1f", "\x1e", "", "\\u001e"):
        assert nodes("any", "[ONNX Layer: a/Conv]" + between + "[ONNX Layer: b[0]/Relu]") == ("a/Conv", "b[0]/Relu")
    assert nodes("a/Conv + PWN(PWN(b/Sigmoid), b/Mul)") == ("a/Conv", "b/Sigmoid", "b/Mul")
    assert nodes("a/Conv || b/Conv") == ("a/Conv", "b/Conv")
    assert nodes("head/MatMul_myl3_12") == ("head/MatMul",)


def test_a_node_that_no_layer_names_is_unknown_and_said():
    truth = engine_truth(recorded(LAYOUTS[0]), reduced_target(), dict(MACS, **{"lost/Conv": 1000}))
    assert truth.macs == {"fp16": 0.5, "unknown": 0.5}
    assert truth.verdict == NOT_JUDGED  # fp16 may be 100 % or 50 %
    assert "1 of 4 nodes" in truth.notes[0]
    assert "lost/Conv" in truth.notes[0]
    assert engine_truth(recorded(LAYOUTS[0], TO_FP32), reduced_target(), dict(MACS, lost=1000)).verdict == FAILED


def test_without_macs_there_is_no_verdict():
    assert engine_truth(recorded(LAYOUTS[0]), reduced_target(), {}).verdict == NOT_JUDGED


def test_a_fused_region_that_hides_nodes_is_said():
    entry = {"Name": "{ForeignNode[stem/Conv...head/MatMul]}", "LayerType": "Myelin", "Inputs": [], "Outputs": []}
    truth = engine_truth({"Layers": [entry]}, reduced_target(), MACS)
    assert truth.verdict == NOT_JUDGED
    assert "ForeignNode" in truth.notes[0]


@pytest.mark.parametrize("wrong", ["", "{", "[]", "null", '{"Bindings": []}', '{"Layers": {}}'])
def test_what_is_not_an_inspectors_answer_is_refused(wrong):
    with pytest.raises(TinkitError, match="inspector"):
        engine_truth(wrong, reduced_target(), MACS)


def test_bare_control_characters_in_the_text_are_read():
    text = recorded(LAYOUTS[0]).replace("\\u001f", "\x1f")
    assert "\x1f" in text
    assert engine_truth(text, reduced_target(), MACS).verdict == PASSED


def test_openvino_is_judged_by_what_its_layers_compute_in():
    layers = {"stem/Conv/WithoutBiases": "int8", "stem/Conv": "int8", "block/Conv": "int8", "head/MatMul": "fp32"}
    int8 = reduced_target("int8", runtime="openvino", compute="fp32", rest="fp32", floor=0.9)
    truth = openvino_truth(layers, int8, MACS, {"int8": 2, "fp32": 2})
    assert (truth.verdict, truth.macs, truth.computed) == (PASSED, {"int8": 0.9, "fp32": 0.1}, "fp32")
    assert truth.layers == {"fp32": 0.5, "int8": 0.5}
    assert openvino_truth(dict(layers, **{"block/Conv": "bf16"}), int8, MACS).verdict == FAILED


def test_openvino_fp16_is_judged_by_the_arithmetic_that_was_asked_for():
    fp16 = reduced_target("fp16", runtime="openvino", compute="fp32")
    truth = openvino_truth(dict.fromkeys(MACS, "fp32"), fp16, MACS)
    assert (truth.verdict, truth.precision) == (PASSED, "fp32")
    assert openvino_truth(dict.fromkeys(MACS, "bf16"), fp16, MACS).verdict == FAILED


def test_a_truth_travels_as_json():
    truth = engine_truth(recorded(LAYOUTS[0]), reduced_target(), dict(MACS, lost=1))
    assert Truth.from_json(json.loads(json.dumps(truth.to_json()))) == truth


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_the_floor_itself_always_passes_and_one_less_fails(part, rest):
    found = shares({"fp16": part, "fp32": rest})
    assert judge_truth(found, "fp16", part / (part + rest), "of the MACs")[0] == PASSED
    assert judge_truth(found, "fp16", (part + 1) / (part + rest), "of the MACs")[0] == FAILED


def test_what_is_unknown_neither_passes_nor_fails_while_it_decides():
    assert judge_truth({"fp16": 0.5, "unknown": 0.5}, "fp16", 0.9, "")[0] == NOT_JUDGED
    assert judge_truth({"fp16": 0.5, "unknown": 0.3, "fp32": 0.2}, "fp16", 0.9, "")[0] == FAILED
    assert judge_truth({"fp16": 0.9, "unknown": 0.1}, "fp16", 0.9, "")[0] == PASSED
    assert judge_truth({}, "fp16", 0.0, "")[0] == NOT_JUDGED
