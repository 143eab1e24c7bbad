"""The rehearsal shows what onnxruntime on a CPU leaves out: rounding after every node, and overflow."""

import ml_dtypes
import numpy as np
import pytest
from graph_parts import make_model, overflowing, quantised, run, run_all
from onnx import TensorProto, helper, numpy_helper

from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, PASSED, compare_answers
from tinkit.host.export.graphs import tensor_types
from tinkit.host.export.half import to_half
from tinkit.host.export.rehearsal import probed, rehearsal_graph
from tinkit.target import Gate

LOOSE = Gate(min_cosine=0.9, max_error_share=0.9)
BOTH = pytest.mark.parametrize("precision", ["fp16", "bf16"])
OPTIMISED = pytest.mark.parametrize("optimised", [True, False])
KINDS = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@OPTIMISED
def test_an_overflow_that_the_shipped_file_hides_is_shown_by_the_rehearsal(optimised):
    image = np.full((1, 8, 1, 1), 250.0)
    exact = run(overflowing(), image)
    half, notes = to_half(overflowing(), "fp16")
    assert notes == []
    shipped, rehearsed = run(half, image), run(rehearsal_graph(half), image, optimised)
    assert np.isinf(rehearsed).all()
    assert np.allclose(exact, 720)
    if np.isfinite(shipped).all():  # what onnxruntime on a CPU does today; the reason for the rehearsal
        assert np.allclose(shipped, 720, rtol=1e-2)
    assert compare_answers("planted", "embedding", exact, exact, ["picture"], LOOSE).verdict == PASSED
    assert compare_answers("planted", "embedding", rehearsed, exact, ["picture"], LOOSE).verdict == FAILED


def test_just_below_the_overflow_the_rehearsal_is_finite():
    """90 x 90 x 8 = 64800 is the last stop before 65504."""
    rehearsed = run(rehearsal_graph(to_half(overflowing(), "fp16")[0]), np.full((1, 8, 1, 1), 90.0))
    assert np.allclose(rehearsed, 64800 * 0.0005 * 8, rtol=2e-3)


def test_bf16_does_not_overflow_where_fp16_does_and_is_coarser():
    image = np.random.default_rng(0).uniform(200, 250, (4, 8, 1, 1))
    exact, rehearsed = run(overflowing(22), image), run(rehearsal_graph(to_half(overflowing(22), "bf16")[0]), image)
    assert np.allclose(rehearsed, exact, rtol=2e-2)
    assert not np.allclose(rehearsed, exact, rtol=1e-3)


@BOTH
def test_a_cast_at_the_border_of_a_kept_node_overflows_too(precision):
    """The first convolution is kept in fp32 and gives 180000; the next is half and cannot read that in fp16."""
    half, _ = to_half(overflowing(22), precision, keep=["Conv0"])
    rehearsed = run(rehearsal_graph(half), np.full((1, 8, 1, 1), 250.0))
    assert np.isinf(rehearsed).all() == (precision == "fp16")
    both, _ = to_half(overflowing(22), precision, keep=["Conv0", "Conv1"])
    assert np.allclose(run(rehearsal_graph(both), np.full((1, 8, 1, 1), 250.0)), 720)


@BOTH
@OPTIMISED
def test_the_rehearsal_of_elementwise_nodes_is_numpys_half_bit_for_bit(precision, optimised):
    rng = np.random.default_rng(0)
    image, scale, shift = rng.normal(size=(64, 16)) * 30, rng.normal(size=16), rng.normal(size=16)
    nodes = [
        ("Mul", ["image", "scale"], "a"),
        ("Add", ["a", "shift"], "b"),
        ("Mul", ["b", "b"], "c"),
        ("Sub", ["c", "image"], "embedding"),
    ]
    half, _ = to_half(make_model(nodes, {"scale": scale, "shift": shift}, 16), precision)
    x, s, t = (values.astype(np.float32).astype(KINDS[precision]) for values in (image, scale, shift))
    b = x * s + t
    assert np.array_equal(run(rehearsal_graph(half), image, optimised), (b * b - x).astype(np.float32))


@OPTIMISED
@pytest.mark.parametrize(("precision", "small"), [("fp16", 2.0**-12), ("bf16", 2.0**-9)])
def test_rounding_between_nodes_is_rehearsed(precision, small, optimised):
    """(1 + small) - 1 is 0 in half and `small` in fp32."""
    nodes = [("Add", ["image", "small"], "sum"), ("Sub", ["sum", "one"], "embedding")]
    model = make_model(nodes, {"small": [small], "one": [1.0]}, 1)
    assert run(model, [[1.0]], optimised) == small
    assert run(rehearsal_graph(to_half(model, precision)[0]), [[1.0]], optimised) == 0


def test_nodes_that_stay_in_fp32_are_not_rounded():
    """Max counts among the operators that stay in fp32, and the rehearsal leaves it there."""
    nodes = [("Mul", ["image", "one"], "a"), ("Max", ["a", "floor"], "b"), ("Mul", ["b", "two"], "embedding")]
    half, _ = to_half(make_model(nodes, {"one": [1.0], "floor": [1 / 3], "two": [2.0]}, 1), "fp16", keep=["Mul2"])
    rehearsal = rehearsal_graph(half)
    kept = next(node for node in rehearsal.graph.node if node.op_type == "Max")
    assert kept.output[0] == "b"
    assert run(rehearsal, [[0.0]]) == np.float32(1 / 3) * 2
    rounded, _ = to_half(make_model(nodes, {"one": [1.0], "floor": [1 / 3], "two": [2.0]}, 1), "fp16")
    assert run(rehearsal_graph(rounded), [[0.0]]) == np.float16(1 / 3) * 2


@BOTH
def test_an_fp32_model_is_its_own_rehearsal(precision):
    model = quantised()
    image = np.random.default_rng(0).normal(size=(2, 4, 6, 6))
    assert np.array_equal(run(rehearsal_graph(model), image), run(model, image))
    half, _ = to_half(model, precision, keep=[node.name for node in model.graph.node])
    assert np.array_equal(run(rehearsal_graph(half), image), run(model, image))


@BOTH
def test_what_is_dequantised_to_half_is_rounded(precision):
    """Scale 0.3 rounds; 7 quanta of it round again."""
    nodes = [
        ("QuantizeLinear", ["image", "scale", "zero"], "q"),
        ("DequantizeLinear", ["q", "scale", "zero"], "embedding"),
    ]
    model = make_model(nodes, {"scale": np.float32(0.3), "zero": np.int8(0)}, 1)
    kind = KINDS[precision]
    expected = np.float32((kind(0.3).astype(np.float32) * np.float32(7)).astype(kind))
    rehearsed = run(rehearsal_graph(to_half(model, precision)[0]), [[2.1]])
    assert rehearsed == expected
    assert rehearsed != run(model, [[2.1]])


@BOTH
@pytest.mark.parametrize("io", ["float32", "float16"])
def test_probes_give_every_rounded_tensor_and_the_node_it_comes_from(precision, io):
    half, _ = to_half(overflowing(22), precision, io)
    model, sources = probed(rehearsal_graph(half))
    assert list(sources.values())[-2:] == (
        ["Conv1", "embedding/cast"] if (precision, io) == ("bf16", "float16") else ["Conv0", "Conv1"]
    )
    image = np.full((1, 8, 1, 1), 250.0)
    seen = run_all(model, image)
    assert set(sources) <= set(seen)
    assert np.array_equal(seen["embedding"], run(rehearsal_graph(half), image))
    first = next((node for name, node in sources.items() if not np.isfinite(seen[name]).all()), "")
    assert first == ("Conv0" if precision == "fp16" else "")
    assert (seen["large"].astype(KINDS[precision]).astype(np.float32) == seen["large"]).all()


def test_tensors_of_the_rehearsal_keep_their_names_as_float32():
    rehearsal = rehearsal_graph(to_half(overflowing(22), "bf16")[0])
    assert tensor_types(rehearsal)["large"] == TensorProto.FLOAT


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
