"""Questions to graphs: constants, weights behind what reduced graphs put before them, and multiply-accumulates."""

import numpy as np
import onnx
import pytest
import torch
from export_parts import SIZE, small_student, target
from graph_parts import graph_model, make_model, overflowing, quantised
from onnx import TensorProto
from torch.utils.flop_counter import FlopCounterMode

from tinkit.host.export import graphs
from tinkit.host.export.graphs import constant_names, node_macs, tensor_types, weight_of, weight_sources
from tinkit.host.export.half import to_half
from tinkit.host.export.to_onnx import student_to_onnx
from tinkit.host.features import backbone_features


def products(opset=20):
    """One node of each kind with 5 x 7 pixels, and a product of two activations."""
    constants = {
        "depthwise": np.ones((4, 1, 3, 3)),
        "up": np.ones((4, 2, 2, 2)),
        "turned": np.ones((3, 8)),
        "plain": np.ones((3, 6)),
        "left": np.ones((5, 1)),
        "shape": np.array([-1, 1, 6], np.int64),
    }
    nodes = [
        ("Conv", ["image", "depthwise"], "a", {"group": 4, "pads": [1, 1, 1, 1], "name": "depthwise"}),
        ("ConvTranspose", ["a", "up"], "b", {"strides": [2, 2], "name": "up"}),
        ("GlobalAveragePool", ["b"], "c"),
        ("Flatten", ["c"], "d"),
        ("Concat", ["d", "d", "d", "d"], "e", {"axis": 1}),
        ("Gemm", ["e", "turned"], "f", {"transB": 1, "name": "gemm turned"}),
        ("Gemm", ["f", "plain"], "g", {"name": "gemm"}),
        ("Reshape", ["g", "shape"], "h"),
        ("MatMul", ["left", "h"], "i", {"name": "from the left"}),
        ("Transpose", ["i"], "j", {"perm": [0, 2, 1]}),
        ("MatMul", ["i", "j"], "embedding", {"name": "attention"}),
    ]
    return graph_model(nodes, constants, ["batch", 4, "height", "width"], {"embedding": ["batch", 5, 5]}, opset)


MACS = {
    "depthwise": 4 * 5 * 7 * 9,
    "up": 4 * 5 * 7 * 2 * 4,
    "gemm turned": 8 * 3,
    "gemm": 3 * 6,
    "from the left": 5 * 6,
}


def test_macs_by_hand():
    assert node_macs(products(), (5, 7)) == MACS


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_macs_do_not_change_with_precision(precision):
    assert node_macs(to_half(products(22), precision, keep=["up"])[0], (5, 7)) == MACS


def test_macs_of_a_quantised_graph_are_found_behind_q_dq():
    expected = {"Conv": 8 * 36 * 4 * 9, "MatMul": 8 * 5}
    assert node_macs(quantised(), 6) == expected
    assert node_macs(to_half(quantised(), "fp16")[0], 6) == expected


def test_a_fixed_batch_is_divided_out():
    model = overflowing()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 5
    assert node_macs(model, 1) == node_macs(overflowing(), 1) == {"Conv0": 64, "Conv1": 64}


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_vit"])
@pytest.mark.slow
def test_macs_of_a_student_are_torchs_but_for_attention(architecture, tmp_path):
    size = SIZE if architecture == "test_efficientnet" else 160
    student = small_student(architecture=architecture, size=size)
    path = tmp_path / "model.onnx"
    deployed = student.deploy(False)
    student_to_onnx(deployed, size, target(), path)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        deployed.student.neck(backbone_features(deployed.student.backbone, torch.zeros(1, 3, size, size)).global_BD)
    counts = counter.get_flop_counts()["Global"]
    weightless = [count for name, count in counts.items() if "bmm" in str(name) or "attention" in str(name)]
    expected = (sum(counts.values()) - sum(weightless)) // 2
    assert bool(weightless) == (architecture == "test_vit")
    assert sum(node_macs(onnx.load(path), size).values()) == expected


def test_weights_are_found_behind_casts_and_not_where_there_is_none():
    sources, nodes = weight_sources(products()), {node.name: node for node in products().graph.node}
    assert weight_of(nodes["gemm"], sources) == (1, "plain")
    assert weight_of(nodes["from the left"], sources) == (0, "left")
    assert weight_of(nodes["attention"], sources) == (-1, "")
    assert weight_of(nodes["Concat4"], sources) == (-1, "")
    half = to_half(quantised(), "fp16", keep=["MatMul"])[0]
    found = {node.name: weight_of(node, weight_sources(half)) for node in half.graph.node}
    assert found["Conv"] == (1, "conv.weight")
    assert found["MatMul"] == (1, "fc.weight")


def test_constants_are_what_does_not_depend_on_the_picture():
    nodes = [
        ("Constant", [], "one", {"value_float": 1.0}),
        ("Add", ["one", "weight"], "two"),
        ("Shape", ["image"], "shape"),
        ("Mul", ["image", "two"], "embedding"),
    ]
    assert constant_names(make_model(nodes, {"weight": [1.0, 2.0]}, 2)) == {"one", "weight", "two"}


def test_types_are_those_of_inference():
    types = tensor_types(quantised())
    assert types["image/q"] == TensorProto.INT8
    assert types["mean/dq"] == types["conv.weight"] == TensorProto.FLOAT


def test_shapes_that_inference_does_not_find_are_seen_by_running(monkeypatch):
    real, model = graphs._shapes, products()
    constants = {tensor.name for tensor in model.graph.initializer}

    def forgetful(model, size):
        shapes, batch = real(model, size)
        return {name: shape for name, shape in shapes.items() if name in constants | {"image"}}, batch

    monkeypatch.setattr(graphs, "_shapes", forgetful)
    assert node_macs(model, (5, 7)) == MACS
