"""What old parsers read: every rule with a planted fault, and the students that the 8.x targets export are legal."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tinkit.host.export.half import to_half
from tinkit.host.export.int8 import to_int8
from tinkit.host.export.legality import OPERATORS_10, OPERATORS_85, OPERATORS_86, generation_of, problems
from tinkit.host.export.to_onnx import student_to_onnx
from tinkit.host.student import build_student
from tinkit.recipes import load_target

STUDENTS = {
    "mobilenetv4_conv_small": 96,
    "mobilenetv3_small_100": 96,
    "efficientvit_b0": 96,
    "fastvit_t8": 128,
    "repvit_m1_0": 96,
    "vit_tiny_patch16_224": 96,
    "tiny_vit_5m_224": 224,
}
TRT85, TRT86, TRT10, BF16, ONNX = (
    load_target(name) for name in ("trt85-fp16", "trt86-fp16", "trt-fp16", "trt-bf16", "onnx-fp32")
)


def graph(nodes, opset=16, constants=(), kind=TensorProto.FLOAT):
    """A model image (1, 3, 8, 8) -> y of `nodes`; constants are (name, array)."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", kind, [1, 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )


def one(op, *inputs, opset=16, constants=(), **attributes):
    return graph([helper.make_node(op, ["image", *inputs], ["y"], f"block/{op}", **attributes)], opset, constants)


def axes_input(op, opset):
    return one(op, "axes", opset=opset, constants=[("axes", np.array([2, 3]))])


def computed_axes(op, opset, place):
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], "block/Shape"),
        helper.make_node("Slice", ["shape", "two", "four"], ["axes"], "block/Slice"),
        helper.make_node(op, ["image", *["pads"] * (place > 1), *[""] * (place > 2), "axes"], ["y"], f"block/{op}"),
    ]
    constants = [("two", np.array([2])), ("four", np.array([4])), ("pads", np.array([1, 1, 1, 1]))]
    return graph(nodes, opset, constants)


def qdq(dtype=np.int8, zero=0, opset=17):
    scale, point = ("scale", np.float32(0.1)), ("zero", np.array(zero, dtype))
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"], "block/Q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "block/DQ"),
    ]
    return graph(nodes, opset, [scale, point])


def int32_bias():
    nodes = [
        helper.make_node("DequantizeLinear", ["bias", "scale"], ["b"], "block/DQ"),
        helper.make_node("Add", ["image", "b"], ["y"], "block/Add"),
    ]
    return graph(nodes, 17, [("bias", np.array(3, np.int32)), ("scale", np.float32(0.1))])


def computed_zero():
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["top"], "block/Max", keepdims=0),
        helper.make_node("Cast", ["top"], ["zero"], "block/Cast", to=TensorProto.INT8),
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["q"], "block/Q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], "block/DQ"),
    ]
    return graph(nodes, 17, [("scale", np.float32(0.1))])


def resize(opset=16, **attributes):
    scales = ("scales", np.array([1, 1, 0.5, 0.5], np.float32))
    return one("Resize", "", "scales", opset=opset, constants=[scales], **attributes)


def layer_norm():
    return one("LayerNormalization", "ones", opset=17, constants=[("ones", np.ones(8, np.float32))])


def bf16_conv():
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], "block/Cast", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["w"], ["v"], "block/Cast_2", to=TensorProto.BFLOAT16),
        helper.make_node("Conv", ["x", "v"], ["y"], "block/Conv"),
    ]
    return graph(nodes, 22, [("w", np.zeros((4, 3, 3, 3), np.float32))])


def foreign():
    model = one("Relu")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[0].domain = "com.microsoft"
    return model


@pytest.mark.parametrize(
    ("model", "wanted", "told"),
    [
        (one("Relu", opset=17), TRT85, ["opset 17", "TensorRT 8.5", "16"]),
        (one("Relu", opset=18), TRT86, ["opset 18", "TensorRT 8.6", "17"]),
        (one("Relu", opset=21), TRT10, ["opset 21", "TensorRT 10", "20"]),
        (one("Relu", opset=23), BF16, ["opset 23", "TensorRT 10.13", "22"]),
        (layer_norm(), TRT85, ["block/LayerNormalization", "TensorRT 8.5 does not have"]),
        (one("Gelu", opset=20), TRT86, ["block/Gelu", "TensorRT 8.6 does not have"]),
        (one("Det"), TRT10, ["block/Det", "TensorRT 10 does not have"]),
        (axes_input("ReduceMean", 18), TRT86, ["block/ReduceMean", "axes as an input"]),
        (axes_input("ReduceMax", 18), TRT85, ["block/ReduceMax", "axes as an input"]),
        (axes_input("ReduceMin", 18), TRT86, ["block/ReduceMin", "axes as an input"]),
        (axes_input("ReduceProd", 18), TRT86, ["block/ReduceProd", "axes as an input"]),
        (computed_axes("ReduceMean", 20, 1), TRT10, ["block/ReduceMean", "computes its axes"]),
        (computed_axes("ReduceSum", 17, 1), TRT86, ["block/ReduceSum", "computes its axes"]),
        (computed_axes("Pad", 20, 3), TRT10, ["block/Pad", "computes its axes"]),
        (resize(mode="cubic"), TRT85, ["block/Resize", "cubic"]),
        (resize(20, mode="linear", antialias=1), TRT10, ["block/Resize", "antialias"]),
        (qdq(np.uint8), TRT86, ["block/Q", "uint8"]),
        (qdq(np.uint8, 128), TRT10, ["block/DQ", "uint8"]),
        (qdq(np.int8, 3), TRT10, ["block/DQ", "not 0"]),
        (computed_zero(), TRT10, ["block/Q", "computes its zero point"]),
        (int32_bias(), TRT10, ["block/DQ", "int32"]),
        (bf16_conv(), ONNX, ["block/Conv", "bf16"]),
        (foreign(), TRT10, ["block/Relu", "com.microsoft"]),
        (foreign(), ONNX, ["block/Relu", "com.microsoft"]),
    ],
)
def test_a_planted_fault_is_told_with_its_node(model, wanted, told):
    found = problems(model, wanted)
    assert any(all(word in sentence for word in told) for sentence in found), found


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (one("Relu"), TRT85),
        (layer_norm(), TRT86),
        (one("Gelu", opset=20), TRT10),
        (one("ReduceMean", axes=[2, 3], opset=17), TRT86),
        (axes_input("ReduceMean", 18), TRT10),
        (one("ReduceSum", "axes", opset=16, constants=[("axes", np.array([2, 3]))]), TRT85),
        (resize(mode="linear"), TRT85),
        (qdq(), TRT86),
        (qdq(np.uint8, 128), ONNX),
        (bf16_conv(), BF16),
    ],
)
def test_just_inside_the_limits_nothing_is_told(model, wanted):
    assert problems(model, wanted) == []


def test_generations_grow():
    assert OPERATORS_85 < OPERATORS_86 < OPERATORS_10
    names = [generation_of(each).name for each in (TRT85, TRT86, TRT10, BF16)]
    assert names == ["TensorRT 8.5", "TensorRT 8.6", "TensorRT 10", "TensorRT 10.13"]
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert known >= OPERATORS_10  # no misspelt name, which would be an operator that no graph has


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_vit"])
@pytest.mark.parametrize("name", ["trt86-fp16", "trt86-int8", "trt85-fp16", "trt85-int8"])
def test_small_students_are_legal_for_tensorrt_8(architecture, name, tmp_path):
    wanted = load_target(name)
    model = exported(architecture, 64, wanted, tmp_path / "model.onnx")
    if wanted.precision == "int8":
        model = quantised(model)
    assert problems(model, wanted) == []
    assert {opset.version for opset in model.opset_import} == {wanted.opset}
    norms = sum(node.op_type == "LayerNormalization" for node in model.graph.node)
    assert (norms > 0) == (architecture == "test_vit" and wanted.opset == 17)


@pytest.mark.slow
def test_a_small_student_is_legal_for_tensorrt_10_in_every_precision(tmp_path):
    model = exported("test_efficientnet", 64, load_target("trt-fp32"), tmp_path / "model.onnx")
    assert problems(model, load_target("trt-fp32")) == []
    assert problems(to_half(model, "fp16")[0], TRT10) == []
    assert problems(quantised(model), load_target("trt-int8")) == []


def test_the_form_for_onnxruntime_is_told_for_tensorrt(tmp_path):
    model = exported("test_efficientnet", 64, TRT86, tmp_path / "model.onnx")
    found = problems(quantised(model, "onnxruntime"), load_target("trt86-int8"))
    assert any("uint8" in sentence for sentence in found)
    assert any("int32" in sentence for sentence in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trt86-fp16", "trt85-fp16"])
@pytest.mark.parametrize("architecture", STUDENTS)
def test_the_proven_students_are_legal_for_tensorrt_8(architecture, name, tmp_path):
    wanted = load_target(name)
    assert problems(exported(architecture, STUDENTS[architecture], wanted, tmp_path / "model.onnx"), wanted) == []


def exported(architecture, size, wanted, path):
    torch.manual_seed(0)
    student_to_onnx(build_student(architecture, size, 32).deploy(False), size, wanted, path)
    return onnx.load(path)


def quantised(model, form="tensorrt"):
    """`model` in int8, every tensor between -4 and 4: the form is what is looked at, not the answers."""
    names = {name for node in model.graph.node for name in (*node.input, *node.output) if name}
    return to_int8(model, dict.fromkeys(names, (-4.0, 4.0)), form)[0]
