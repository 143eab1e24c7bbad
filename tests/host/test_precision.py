"""fp16 in the graph rounds as fp16 rounds, and the rehearsal shows what onnxruntime on a CPU leaves out."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinkit.device.runtime import open_runtime
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, PASSED, compare_answers
from tinkit.host.precision import precision_shares, rehearsal_graph, tensor_types, to_fp16
from tinkit.target import Gate

LOOSE = Gate(min_cosine=0.9, max_error_share=0.9)


def make_model(nodes, constants, width, out_width=None, rank4=False):
    """image (batch, width[, 1, 1]) -> embedding, from nodes as (operator, inputs, output[, attributes])."""
    tail = [1, 1] if rank4 else []
    graph = helper.make_graph(
        [
            helper.make_node(op, inputs, [out], name=f"{op}{i}", **(more[0] if more else {}))
            for i, (op, inputs, out, *more) in enumerate(nodes)
        ],
        "planted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", width, *tail])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", out_width or width, *tail])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, image, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with open_runtime("onnxruntime", path) as runtime:
        kind = runtime.inputs[0].dtype
        return runtime.run({"image": np.asarray(image, kind)})["embedding"]


def overflowing():
    """250 x 90 x 8 = 180000 between two convolutions, 720 at the end: harmless in fp32, infinite in fp16."""
    constants = {"up": np.full((8, 8, 1, 1), 90.0), "down": np.full((8, 8, 1, 1), 0.0005)}
    nodes = [("Conv", ["image", "up"], "large"), ("Conv", ["large", "down"], "embedding")]
    return make_model(nodes, constants, 8, rank4=True)


def test_an_overflow_that_the_shipped_file_hides_is_shown_by_the_rehearsal(tmp_path):
    image = np.full((1, 8, 1, 1), 250.0)
    exact = run(overflowing(), image, tmp_path)
    half, notes = to_fp16(overflowing())
    assert notes == []
    shipped, rehearsed = run(half, image, tmp_path), run(rehearsal_graph(half), image, tmp_path)
    assert np.isinf(rehearsed).all()
    assert np.allclose(exact, 720)
    if np.isfinite(shipped).all():  # what onnxruntime on a CPU does today; the reason for the rehearsal
        assert np.allclose(shipped, 720, rtol=1e-2)
    assert compare_answers("planted", "embedding", exact, exact, ["picture"], LOOSE).verdict == PASSED
    assert compare_answers("planted", "embedding", rehearsed, exact, ["picture"], LOOSE).verdict == FAILED


def test_just_below_the_overflow_the_rehearsal_is_finite(tmp_path):
    """90 x 90 x 8 = 64800 is the last stop before 65504."""
    rehearsed = run(rehearsal_graph(to_fp16(overflowing())[0]), np.full((1, 8, 1, 1), 90.0), tmp_path)
    assert np.allclose(rehearsed, 64800 * 0.0005 * 8, rtol=2e-3)


def test_the_rehearsal_of_elementwise_nodes_is_numpys_fp16_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    image, scale, shift = rng.normal(size=(64, 16)) * 30, rng.normal(size=16), rng.normal(size=16)
    nodes = [
        ("Mul", ["image", "scale"], "a"),
        ("Add", ["a", "shift"], "b"),
        ("Mul", ["b", "b"], "c"),
        ("Sub", ["c", "image"], "embedding"),
    ]
    half, _ = to_fp16(make_model(nodes, {"scale": scale, "shift": shift}, 16))
    x, s, t = (values.astype(np.float32).astype(np.float16) for values in (image, scale, shift))
    b = x * s + t
    assert np.array_equal(run(rehearsal_graph(half), image, tmp_path), (b * b - x).astype(np.float32))


def test_rounding_between_nodes_is_rehearsed(tmp_path):
    """(1 + 2^-12) - 1 is 0 in fp16 and 2^-12 in fp32."""
    nodes = [("Add", ["image", "small"], "sum"), ("Sub", ["sum", "one"], "embedding")]
    model = make_model(nodes, {"small": [2.0**-12], "one": [1.0]}, 1)
    assert run(model, [[1.0]], tmp_path) == 2.0**-12
    assert run(rehearsal_graph(to_fp16(model)[0]), [[1.0]], tmp_path) == 0


@pytest.mark.parametrize("io", ["float32", "float16"])
def test_inputs_and_outputs_are_of_the_dtype_asked_for_and_the_rehearsal_keeps_them(tmp_path, io):
    half, _ = to_fp16(overflowing(), io)
    for model in (half, rehearsal_graph(half)):
        assert run(model, np.ones((2, 8, 1, 1)), tmp_path).dtype == io


def test_to_fp16_leaves_the_model_alone_and_every_weight_is_in_fp16():
    model = overflowing()
    before = model.SerializeToString()
    half, _ = to_fp16(model)
    assert model.SerializeToString() == before
    assert {tensor.data_type for tensor in half.graph.initializer} == {TensorProto.FLOAT16}


def test_constants_are_rounded_as_fp16_rounds_and_what_is_lost_is_told():
    values = np.array([1e5, -7e4, 65504, 2e4, 1 / 3, 1e-6, 4e-8, 1e-9, -1e-9, 0], np.float32)
    half, notes = to_fp16(make_model([("Mul", ["image", "scale"], "embedding")], {"scale": values}, len(values)))
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert np.array_equal(numpy_helper.to_array(half.graph.initializer[0]), expected)
    assert np.isinf(expected[:2]).all()
    assert [note.split(" (")[0] for note in notes] == [
        "fp16: 1 constants hold values above 65504, which become infinite",
        "fp16: 2 values below 6e-8 in 1 constants become 0",
    ]


def test_shares_count_weights_by_the_dtype_they_multiply_in():
    constants = {"wide": np.ones((4, 12)), "narrow": np.ones((12, 2))}
    nodes = [("MatMul", ["image", "wide"], "a"), ("MatMul", ["a", "narrow"], "embedding")]
    model = make_model(nodes, constants, 4, 2)
    assert precision_shares(model)["fp32"] == 1
    assert precision_shares(to_fp16(model)[0])["fp16"] == 1
    from onnxconverter_common import float16

    mixed = precision_shares(float16.convert_float_to_float16(model, node_block_list=["MatMul1"]))
    assert (mixed["fp16"], mixed["fp32"]) == (48 / 72, 24 / 72)
    assert mixed["nodes"] == {"fp32": 1, "fp16": 1}


def test_a_cast_that_the_graph_already_has_becomes_one_to_fp16(tmp_path):
    """Positions counted in integers (edgenext): Cast to float meets fp16 neighbours."""
    nodes = [
        ("Shape", ["image"], "shape"),
        ("Cast", ["shape"], "sides", {"to": TensorProto.FLOAT}),
        ("Mul", ["sides", "third"], "b"),
        ("Add", ["image", "b"], "embedding"),
    ]
    half, _ = to_fp16(make_model(nodes, {"third": [1 / 3]}, 2))
    assert precision_shares(half)["fp32"] == 0
    for model in (half, rehearsal_graph(half)):
        assert np.allclose(run(model, [[0, 0], [1, 1], [2, 2]], tmp_path)[0], [1, 2 / 3], rtol=1e-3)


def test_nodes_that_stay_in_fp32_are_not_rounded(tmp_path):
    """Max is on the converter's list: it computes in fp32, and the rehearsal leaves it there."""
    nodes = [("Mul", ["image", "one"], "a"), ("Max", ["a", "floor"], "b"), ("Mul", ["b", "one"], "embedding")]
    half, _ = to_fp16(make_model(nodes, {"one": [1.0], "floor": [1 / 3]}, 1))
    rehearsal = rehearsal_graph(half)
    kept = next(node for node in rehearsal.graph.node if node.op_type == "Max")
    assert tensor_types(rehearsal)[kept.output[0]] == TensorProto.FLOAT
    assert not kept.output[0].endswith("/exact")
    assert run(rehearsal, [[0.0]], tmp_path) == np.float16(1 / 3)


def test_control_flow_is_refused_rather_than_left_unrounded():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT16, None)],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["embedding"], name="choice", then_branch=branch, else_branch=branch)],
        "planted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT16, ["batch", 1])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT16, ["batch", 1])],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(TinkitError, match="control flow"):
        rehearsal_graph(model)
