"""Half precision in the graph: exactly the nodes that may stay in fp32 do, constants round as the dtype rounds, Q/DQ too."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from graph_parts import FLOATS, computed_in, graph_model, make_model, overflowing, quantised, run, run_all
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_parts import small_target

from tinkit.errors import TinkitError
from tinkit.host.export.graphs import tensor_types
from tinkit.host.export.half import ALWAYS_FP32, to_half
from tinkit.host.export.rehearsal import rehearsal_graph
from tinkit.target import Batch

FLOAT, FP16, BF16 = FLOATS
ONNX_TYPES = {"fp16": FP16, "bf16": BF16}
NUMPY_TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "bf16"])
OPERATORS = ("Add", "Shift", "Scale", "MatMul", "Sigmoid", "Softmax", "LayerNormalization", "Max", "Constant")


def random_model(seed, count=7):
    """A graph with branches, constants shared by several nodes, Constant nodes, and an output that is read inside."""
    rng = np.random.default_rng(seed)
    constants = {"weight": rng.normal(size=(4, 4)), "vector": rng.normal(size=4)}
    names, nodes = ["image"], []
    for number in range(count):
        a, b = names[-1 - int(rng.integers(0, min(2, len(names))))], names[int(rng.integers(0, len(names)))]
        out = "middle" if number == count // 2 else "embedding" if number == count - 1 else f"t{number}"
        op = str(rng.choice(OPERATORS))
        if op == "Constant":
            value = numpy_helper.from_array(rng.normal(size=4).astype(np.float32))
            nodes.append(("Constant", [], f"c{number}", {"name": f"c{number}", "value": value}))
        inputs = {"Add": [a, b], "Shift": [a, "vector"], "Scale": ["vector", a], "MatMul": [a, "weight"]}
        inputs |= {"LayerNormalization": [a, "vector", "vector"], "Max": [a, b], "Constant": [a, f"c{number}"]}
        names_of = {"Shift": "Add", "Scale": "Mul", "Constant": "Add"}
        nodes.append((names_of.get(op, op), inputs.get(op, [a]), out, {"name": f"n{number}"}))
        names.append(out)
    return graph_model(nodes, constants, ["batch", 4], {"middle": ["batch", 4], "embedding": ["batch", 4]})


def faults(model, original, kept, half):
    """What is wrong with a model in which exactly `kept` of the original's nodes should compute in fp32."""
    found, types, seen = [], computed_in(model), set()
    made = {name: node for node in model.graph.node for name in node.output}
    for node in original.graph.node:
        if node.op_type != "Constant" and types.get(node.name) != {FLOAT if node.name in kept else half}:
            found.append(f"{node.name} computes in {types.get(node.name)}")
    for node in model.graph.node:
        if node.op_type == "Cast":
            key = (node.input[0], node.attribute[0].i)
            if key in seen:
                found.append(f"{key[0]} is cast twice")
            seen.add(key)
            before = made.get(node.input[0])
            if before is not None and before.op_type == "Cast":
                found.append(f"{node.input[0]} is cast there and back")
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), io=st.sampled_from(["float32", "float16"]))
def test_exactly_the_kept_nodes_compute_in_fp32(seed, share, io):
    model = random_model(seed)
    rng = np.random.default_rng(seed + 1)
    keep = {node.name for node in model.graph.node if node.op_type != "Constant" and rng.random() < share}
    kept = keep | {node.name for node in model.graph.node if node.op_type in ALWAYS_FP32}
    for precision in ("fp16", "bf16"):
        reduced, notes = to_half(model, precision, io, keep)
        assert notes == []
        onnx.checker.check_model(reduced, full_check=True)
        assert faults(reduced, model, kept, ONNX_TYPES[precision]) == []
        image = rng.normal(size=(2, 4))
        answers = run_all(rehearsal_graph(reduced), image)
        assert {array.dtype for array in answers.values()} == {np.dtype(io)}
        if precision == "fp16":
            shipped = run_all(reduced, image)
            assert all(np.allclose(shipped[name], answers[name], atol=0.05, rtol=0.05) for name in answers)


def test_a_cast_that_is_missing_or_in_the_wrong_place_is_seen_by_that_check():
    model = random_model(5)
    keep = {"n2", "n3"}
    kept = keep | {node.name for node in model.graph.node if node.op_type in ALWAYS_FP32}
    reduced, _ = to_half(model, "fp16", "float32", keep)
    assert faults(reduced, model, kept - {"n2"}, FP16)
    assert faults(reduced, model, kept | {"n6"}, FP16)
    twice = helper.make_node("Cast", ["image"], ["again"], name="again", to=FP16)
    reduced.graph.node.insert(0, twice)
    reduced.graph.node.insert(1, helper.make_node("Cast", ["again"], ["back"], name="back", to=FLOAT))
    assert "again is cast there and back" in faults(reduced, model, kept, FP16)


@PRECISIONS
def test_a_model_that_is_kept_whole_is_the_same_bit_for_bit(precision):
    model = random_model(11)
    everything = [node.name for node in model.graph.node]
    image = np.random.default_rng(0).normal(size=(3, 4))
    kept, exact = run_all(to_half(model, precision, "float32", everything)[0], image), run_all(model, image)
    assert all(np.array_equal(kept[name], exact[name]) for name in exact)


def test_kept_nodes_hand_on_unrounded_values():
    """(1 + 2^-12) - 1 is 2^-12 when both nodes are kept, 0 when only one is."""
    nodes = [("Add", ["image", "small"], "sum"), ("Sub", ["sum", "one"], "embedding")]
    model = make_model(nodes, {"small": [2.0**-12], "one": [1.0]}, 1)
    both, one = to_half(model, "fp16", keep=["Add0", "Sub1"])[0], to_half(model, "fp16", keep=["Sub1"])[0]
    assert run(rehearsal_graph(both), [[1.0]]) == 2.0**-12
    assert run(rehearsal_graph(one), [[1.0]]) == 0


def test_a_constant_read_in_two_precisions_is_there_unrounded_and_rounded():
    nodes = [("Mul", ["image", "third"], "a"), ("Mul", ["a", "third"], "embedding")]
    half, _ = to_half(make_model(nodes, {"third": [1 / 3]}, 1), "fp16", keep=["Mul1"])
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    assert values["third"] == np.float32(1 / 3)
    assert values["third/fp16"].dtype == np.float16
    assert values["third/fp16"] == np.float16(1 / 3)


@PRECISIONS
def test_to_half_leaves_the_model_alone_and_every_weight_is_half(precision):
    model = overflowing(opset=22)
    before = model.SerializeToString()
    half, notes = to_half(model, precision)
    assert notes == []
    assert model.SerializeToString() == before
    assert {tensor.data_type for tensor in half.graph.initializer} == {ONNX_TYPES[precision]}


@PRECISIONS
def test_constants_are_rounded_as_the_dtype_rounds_and_what_is_lost_is_told(precision):
    values = np.array([1e5, -7e4, 65504, 2e4, 1 / 3, 1 + 2**-8, 1 + 2**-8 + 2**-16, 1e-9, -1e-9, 4e-41, 0], np.float32)
    model = make_model([("Mul", ["image", "scale"], "embedding")], {"scale": values}, len(values))
    half, notes = to_half(model, precision)
    with np.errstate(over="ignore"):
        expected = values.astype(NUMPY_TYPES[precision])
    assert np.array_equal(numpy_helper.to_array(half.graph.initializer[0]), expected)
    assert [note.split(" (")[0] for note in notes] == {
        "fp16": [
            "fp16: 1 constants hold values above 65504, which become infinite",
            "fp16: 3 values below 6e-8 in 1 constants become 0",
        ],
        "bf16": ["bf16: 1 values below 9e-41 in 1 constants become 0"],
    }[precision]


def test_bf16_rounds_to_nearest_even():
    """8 bits of mantissa: 1 + 2^-8 is half way and goes to the even 1, a little more goes up to 1 + 2^-7."""
    values = [1 + 2**-8, 1 + 2**-8 + 2**-16, 1 + 3 * 2**-8]
    half, _ = to_half(make_model([("Mul", ["image", "scale"], "embedding")], {"scale": values}, 3), "bf16")
    raw = numpy_helper.to_array(half.graph.initializer[0]).astype(np.float32)
    assert raw.tolist() == [1, 1 + 2**-7, 1 + 2**-6]


@pytest.mark.parametrize("io", ["float32", "float16"])
@PRECISIONS
def test_inputs_and_outputs_are_of_the_dtype_asked_for_and_the_rehearsal_keeps_them(precision, io):
    half, _ = to_half(overflowing(opset=22), precision, io)
    assert run(rehearsal_graph(half), np.ones((2, 8, 1, 1))).dtype == io
    if precision == "fp16":  # onnxruntime has no convolution in bf16
        assert run(half, np.ones((2, 8, 1, 1))).dtype == io


@pytest.mark.parametrize("io", ["float32", "float16"])
def test_an_output_that_the_graph_reads_on_reaches_the_reader_in_half(io):
    """The embedding, read by a head: the cast to fp32 is for the outside only."""
    nodes = [("MatMul", ["image", "neck"], "embedding"), ("MatMul", ["embedding", "head"], "logits")]
    constants = {"neck": np.eye(3), "head": np.ones((3, 2))}
    model = graph_model(nodes, constants, ["batch", 3], {"embedding": ["batch", 3], "logits": ["batch", 2]})
    half, _ = to_half(model, "fp16", io)
    assert computed_in(half)["MatMul1"] == {FP16}
    for answers in (run_all(half, [[1, 2, 3]]), run_all(rehearsal_graph(half), [[1, 2, 3]])):
        assert answers["logits"].tolist() == [[6, 6]]
        assert answers["embedding"].dtype == io
    kept, _ = to_half(model, "fp16", io, keep=["MatMul0"])
    assert computed_in(kept)["MatMul0"] == {FLOAT}
    assert run_all(kept, [[1, 2, 3]])["logits"].tolist() == [[6, 6]]


def test_a_cast_that_the_graph_already_has_becomes_one_to_half():
    """Positions counted in integers (edgenext): Cast to float meets half neighbours."""
    nodes = [
        ("Shape", ["image"], "shape"),
        ("Cast", ["shape"], "sides", {"to": FLOAT}),
        ("Mul", ["sides", "third"], "b"),
        ("Add", ["image", "b"], "embedding"),
    ]
    half, _ = to_half(make_model(nodes, {"third": [1 / 3]}, 2), "fp16")
    assert computed_in(half)["Cast1"] == computed_in(half)["Mul2"] == {FP16}
    for model in (half, rehearsal_graph(half)):
        assert np.allclose(run(model, [[0, 0], [1, 1], [2, 2]])[0], [1, 2 / 3], rtol=1e-3)


@PRECISIONS
def test_a_tensor_made_of_a_shape_is_half(precision):
    value = numpy_helper.from_array(np.array([1.5], np.float32))
    for more in ({}, {"value": value}):
        nodes = [
            ("Shape", ["image"], "shape"),
            ("ConstantOfShape", ["shape"], "made", more),
            ("Add", ["image", "made"], "embedding"),
        ]
        half, _ = to_half(make_model(nodes, {}, 2), precision)
        assert computed_in(half)["ConstantOfShape1"] == {ONNX_TYPES[precision]}
        assert run(rehearsal_graph(half), [[1, 2]]).tolist() == [[1 + 1.5 * len(more), 2 + 1.5 * len(more)]]


def test_what_the_exporter_noted_of_types_does_not_contradict_the_new_ones():
    """torch notes types of constants and of what nodes give; both change."""
    model = make_model([("Mul", ["image", "one"], "a"), ("Add", ["a", "one"], "embedding")], {"one": [1.0]}, 1)
    model.graph.value_info.append(helper.make_tensor_value_info("one", FLOAT, [1]))
    model.graph.value_info.append(helper.make_tensor_value_info("a", FLOAT, ["batch", 1]))
    for keep in ([], ["Mul0"]):
        half, _ = to_half(model, "fp16", keep=keep)
        assert run(half, [[2.0]]) == run(rehearsal_graph(half), [[2.0]]) == 3
        noted = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
        assert all(tensor_types(half)[name] == kind for name, kind in noted.items())
        assert not set(noted) & {"one", "one/fp16"}


def test_pixels_become_an_input_in_fp32():
    nodes = [
        ("Cast", ["image"], "float", {"to": FLOAT, "name": "normalise/cast"}),
        ("Mul", ["float", "scale"], "scaled", {"name": "normalise/scale"}),
        ("Add", ["scaled", "shift"], "input", {"name": "resize/shift"}),
        ("Mul", ["input", "scale"], "embedding", {"name": "network"}),
    ]
    constants = {"scale": np.full(3, 1 / 255), "shift": np.full(3, -0.5)}
    kinds = {"image_type": TensorProto.UINT8}
    model = graph_model(nodes, constants, ["batch", 3], {"embedding": ["batch", 3]}, **kinds)
    half, _ = to_half(model, "fp16")
    types = computed_in(half)
    assert types["normalise/cast"] == types["normalise/scale"] == types["resize/shift"] == {FLOAT}
    assert types["network"] == {FP16}
    assert np.allclose(run(half, [[0, 128, 255]]), run(model, [[0, 128, 255]]), rtol=2e-3)


def test_what_onnx_does_not_define_in_bf16_stays_in_fp32_and_is_told():
    """Conv in bf16 begins at opset 22."""
    half, notes = to_half(overflowing(opset=20), "bf16")
    assert notes == ["bf16: 2 nodes stay in fp32, ONNX has no bf16 for them at opset 20 (2 Conv)"]
    assert computed_in(half)["Conv0"] == {FLOAT}
    half, notes = to_half(overflowing(opset=22), "bf16")
    assert notes == []
    assert computed_in(half)["Conv0"] == {BF16}


def test_unknown_names_and_control_flow_are_refused():
    with pytest.raises(ValueError, match="no node of the model is called nobody"):
        to_half(overflowing(), "fp16", keep=["nobody"])
    with pytest.raises(ValueError, match="int4"):
        to_half(overflowing(), "int4")
    branch = helper.make_graph([helper.make_node("Neg", ["image"], ["out"])], "branch", [], [_float("out")])
    choice = helper.make_node("If", ["yes"], ["embedding"], name="choice", then_branch=branch, else_branch=branch)
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = helper.make_graph([choice], "planted", [_float("image")], [_float("embedding")], [yes])
    with pytest.raises(TinkitError, match="control flow"):
        to_half(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "fp16")


def _float(name):
    return helper.make_tensor_value_info(name, FLOAT, ["batch", 1])


# int8 with a half rest


@PRECISIONS
def test_a_quantised_model_keeps_its_int8_and_gets_half_scales(precision):
    opset = 22  # fp16 at 20 is built below
    model = quantised(opset)
    half, notes = to_half(model, precision)
    assert notes == []
    types, kind = computed_in(half), ONNX_TYPES[precision]
    for node in model.graph.node:
        assert types[node.name] == {kind}, node.name
    tensors = tensor_types(half)
    assert all(tensors[name] == TensorProto.INT8 for name in ("image/q", "conv.weight/q", "mean/q", "zero"))
    image = np.random.default_rng(1).normal(size=(4, 4, 6, 6))
    exact, rehearsed = run(model, image), run(rehearsal_graph(half), image)
    apart = np.abs(exact - rehearsed).max() / np.abs(exact).max()
    assert 0 < apart < {"fp16": 0.02, "bf16": 0.08}[precision]
    if precision == "fp16":
        assert np.allclose(run(half, image), exact, atol=0.05)


def test_a_product_kept_in_a_quantised_model_reads_dequantised_fp32():
    model = quantised()
    half, _ = to_half(model, "fp16", keep=["MatMul"])
    types = computed_in(half)
    assert types["MatMul"] == {FLOAT}
    assert types["Conv"] == types["Add"] == {FP16}
    image = np.random.default_rng(1).normal(size=(4, 4, 6, 6))
    assert np.allclose(run(half, image), run(model, image), atol=0.05)


def test_below_opset_19_scales_stay_in_fp32():
    half, notes = to_half(quantised(17), "fp16")
    assert notes == [
        "fp16: 8 nodes stay in fp32, ONNX has no fp16 for them at opset 17 (4 QuantizeLinear, 4 DequantizeLinear)"
    ]
    assert computed_in(half)["Conv"] == {FP16}


def test_a_scale_that_fp16_cannot_hold_is_told_and_an_int32_bias_stays_in_fp32():
    constants = {"scale": np.float32(1e-7), "bias": np.array([70000, -5], np.int32), "small": np.float32(1e-9)}
    nodes = [
        ("QuantizeLinear", ["image", "scale"], "q"),
        ("DequantizeLinear", ["q", "scale"], "dq"),
        ("DequantizeLinear", ["bias", "small"], "shift"),
        ("Add", ["dq", "shift"], "embedding"),
    ]
    constants["zero"] = np.int8(0)
    nodes = [(op, [*inputs, "zero"] if "scale" in inputs else inputs, out) for op, inputs, out in nodes]
    half, notes = to_half(make_model(nodes, constants, 2), "fp16")
    assert notes == ["fp16: 1 quantisation scales are off by more than 1 % (scale)"]
    assert computed_in(half)["DequantizeLinear2"] == {FLOAT}
    assert computed_in(half)["Add3"] == {FP16}


@pytest.mark.tensorrt
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
@pytest.mark.parametrize("name", ["fp16", "bf16", "int8 and fp16", "int8 and bf16", "kept", "int8 kept"])
def test_tensorrt_builds_what_is_written(name, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    from tinkit.device.engine import build

    opset = 22 if "bf16" in name else 20
    precision = "bf16" if "bf16" in name else "fp16"
    model = quantised(opset) if "int8" in name else overflowing(opset)
    keep = [] if "kept" not in name else ["MatMul" if "int8" in name else "Conv1"]
    path = tmp_path / "model.onnx"
    onnx.save(to_half(model, precision, keep=keep)[0], path)
    target = small_target(runtime="tensorrt", precision=precision, opset=opset, batch=Batch(1, 1, 2))
    assert len(build(trt, path, target).plan) > 1000
