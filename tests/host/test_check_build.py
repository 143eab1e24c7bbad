"""The real builder on the CPU: it takes a small convolution net and an attention block, and says what it refuses."""

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinkit.errors import CannotJudge, TinkitError
from tinkit.host.export.check_build import _end, check_build
from tinkit.target import Batch, Gate, Target

WIDTH = 16


def target(precision="fp32", **changes):
    gate = {"embedding": Gate(min_cosine=0.99, max_error_share=0.01)}
    rest = "fp32" if precision == "int8" else ""
    values = {"runtime": "tensorrt", "precision": precision, "rest": rest, "gate": gate, "batch": Batch(1, 2, 4)}
    return Target(description="", **dict(values, **changes))


WEAK = {"weakly_typed": True, "opset": 17, "exporter": "legacy"}


class Graph:
    """Nodes and constants of a small model, written one after the other; `dtype` is that of all floats inside."""

    def __init__(self, dtype, quantised=False):
        self.dtype, self.quantised, self.nodes, self.constants = np.dtype(dtype), quantised, [], []
        self.rng = np.random.default_rng(5)

    def add(self, op, *inputs, **attributes):
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value, dtype=None):
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype or self.dtype), name))
        return name

    def weight(self, *shape):
        weight = self.constant(self.rng.normal(size=shape) / 8)
        return self.fake_quantised(weight, np.full(shape[0], 0.02), axis=0) if self.quantised else weight

    def activation(self, tensor):
        return self.fake_quantised(tensor, 0.05) if self.quantised else tensor

    def fake_quantised(self, tensor, scale, **attributes):
        scale, zero = self.constant(scale), self.constant(np.zeros(np.shape(scale)), np.int8)
        whole = self.add("QuantizeLinear", tensor, scale, zero, **attributes)
        return self.add("DequantizeLinear", whole, scale, zero, **attributes)

    def save(self, path, last, shape, opset=20):
        half = self.dtype == np.float16
        if half:
            self.add("Cast", last, to=TensorProto.FLOAT)
        self.nodes[-1].output[0] = "embedding"
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])
        embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "small", [image], [embedding], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.save(model, path)
        return path

    def entry(self):
        half = self.dtype == np.float16
        return self.add("Cast", "image", to=TensorProto.FLOAT16) if half else "image"


def convolutions(path, dtype="float32", quantised=False, opset=20):
    """image (batch, 16, 8, 8) -> two convolutions with a ReLU between, one of them by channel, pooled."""
    g = Graph(dtype, quantised)
    x = g.add("Conv", g.activation(g.entry()), g.weight(WIDTH, WIDTH, 3, 3), pads=[1, 1, 1, 1])
    x = g.add("Relu", x)
    x = g.add("Conv", g.activation(x), g.weight(WIDTH, 1, 3, 3), group=WIDTH)
    x = g.add("GlobalAveragePool", x)
    return g.save(path, g.add("Flatten", x), (WIDTH, 8, 8), opset)


def attention(path, dtype="float32", quantised=False, opset=20):
    """image (batch, 4, 16) as four tokens -> LayerNormalization, attention with one head, a projection."""
    g = Graph(dtype, quantised)
    x = g.entry()
    y = g.add("LayerNormalization", x, g.constant(np.ones(WIDTH)), g.constant(np.zeros(WIDTH)))
    query, key, value = (g.add("MatMul", g.activation(y), g.weight(WIDTH, WIDTH)) for _ in range(3))
    scores = g.add("MatMul", query, g.add("Transpose", key, perm=[0, 2, 1]))
    mixed = g.add("MatMul", g.add("Softmax", scores, axis=-1), value)
    out = g.add("Add", x, g.add("MatMul", g.activation(mixed), g.weight(WIDTH, WIDTH)))
    return g.save(path, g.add("Flatten", out), (4, WIDTH), opset)


FORMS = {
    "fp32": {},
    "fp16": {"dtype": "float16"},
    "int8": {"quantised": True},
    "int8-fp16": {"quantised": True, "dtype": "float16"},
}


@pytest.fixture
def builder():
    pytest.importorskip("tensorrt_rtx_bindings", reason="the TensorRT-RTX wheels are not installed")


@pytest.mark.tensorrt
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", [convolutions, attention])
def test_the_builder_takes_every_precision(builder, tmp_path, model, form):
    path = model(tmp_path / "model.onnx", **FORMS[form])
    precision, _, rest = form.partition("-")
    wanted = target(precision, rest=rest or "fp32") if precision == "int8" else target(precision)
    built = check_build(path, wanted)
    assert built.version.startswith("TensorRT-RTX 1.")
    assert built.megabytes > 0.01
    assert built.seconds > 0
    assert built.note == ""
    assert not any("cudaError 35" in line or "The logger passed" in line for line in built.lines)


@pytest.mark.tensorrt
def test_a_target_for_8_is_built_as_it_is_typed_and_says_so(builder, tmp_path):
    path = convolutions(tmp_path / "model.onnx", opset=17)
    built = check_build(path, target("fp16", **WEAK))
    assert "the fp16 that this target asks TensorRT 8 for by flags was not tried" in built.note


def mixed_addition(g):
    g.add("Add", "image", g.add("Cast", "image", to=TensorProto.FLOAT16))


def unsigned(g):
    scale, zero = g.constant(0.1), g.constant(128, np.uint8)
    g.add("DequantizeLinear", g.add("QuantizeLinear", "image", scale, zero), scale, zero)


def shifted(g):
    scale, zero = g.constant(0.1), g.constant(3, np.int8)
    g.add("DequantizeLinear", g.add("QuantizeLinear", "image", scale, zero), scale, zero)


def int32_bias(g):
    bias = g.add("DequantizeLinear", g.constant(np.zeros(WIDTH), np.int32), g.constant(0.1))
    g.add("Conv", "image", g.weight(WIDTH, WIDTH, 1, 1), bias)


def determinant(g):
    g.add("Det", "image")


REFUSED = [
    (mixed_addition, "must have same input types", "without a Cast"),
    (unsigned, "Non-zero zero point", "symmetric int8 only"),
    (shifted, "Non-zero zero point", "symmetric int8 only"),
    (int32_bias, "has type Int32", "no int32 bias"),
    (determinant, "Det Det0: UNSUPPORTED_NODE", "no such operator"),
]


@pytest.mark.tensorrt
@pytest.mark.parametrize(("write", "seen", "next_step"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_the_builder_refuses_comes_with_its_words_and_a_next_step(builder, tmp_path, write, seen, next_step):
    g = Graph("float32")
    write(g)
    path = g.save(tmp_path / "model.onnx", g.nodes[-1].output[0], (WIDTH, 8, 8))
    with pytest.raises(TinkitError, match="does not read") as error:
        check_build(path, target())
    assert seen in error.value.seen
    assert error.value.seen.startswith("TensorRT-RTX 1.")
    assert "cudaError 35" not in error.value.seen
    assert next_step in error.value.next_step


@pytest.mark.tensorrt
def test_a_model_that_kills_the_builder_is_an_error_and_not_the_end(builder, tmp_path):
    g = Graph("float32")
    g.add("Attention", "image", "image", "image")
    path = g.save(tmp_path / "model.onnx", g.nodes[-1].output[0], (2, 4, WIDTH), opset=23)
    with pytest.raises(TinkitError, match=r"ended on this model|does not build") as error:
        check_build(path, target())
    assert "signal" in error.value.seen or "opset of 22 or less" in error.value.next_step


def test_the_end_of_the_process_is_told():
    assert _end(SimpleNamespace(returncode=2, stderr="")) == "exit code 2: nothing was said"
    assert _end(SimpleNamespace(returncode=1, stderr="Traceback\nMemoryError\n")) == "exit code 1: MemoryError"


def test_a_builder_that_dies_of_a_model_is_the_model_s_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tinkit.host.export.check_build.find_builder", lambda: None)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=-11, stdout="", stderr=""))
    with pytest.raises(TinkitError, match="ended on this model") as error:
        check_build(tmp_path / "model.onnx", target())
    assert error.value.seen == "signal 11 (Segmentation fault)"


def test_without_the_wheels_there_is_no_verdict_and_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(CannotJudge, match="not installed") as error:
        check_build(tmp_path / "model.onnx", target())
    assert "tinkit[trt-check]" in error.value.next_step


def test_only_a_tensorrt_target_can_be_tried(tmp_path):
    with pytest.raises(TinkitError, match="Only a TensorRT target"):
        check_build(tmp_path / "model.onnx", target(runtime="onnxruntime"))
