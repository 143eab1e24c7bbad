"""OpenVINO behind the protocol: the answers of onnxruntime, what its layers compute in, clear words when it cannot."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper, save

from tinkit.device.openvino_runtime import OpenVinoRuntime, _check_arithmetic
from tinkit.device.runtime import OnnxRuntime, Tensor
from tinkit.device.signal_stack import signal_stack
from tinkit.errors import EXIT_NO_VERDICT, CannotJudge, TinkitError
from tinkit.fidelity import FAILED, PASSED, cosine_per_picture
from tinkit.recipes import load_device
from tinkit.target import Gate, Target
from tinkit.truth import openvino_truth

pytest.importorskip("openvino", reason="openvino is not installed")
# 16 x 16 pixels: multiply-accumulates of one picture
MACS = {"stem/Conv": 16 * 27 * 256, "block/Conv": 16 * 144 * 256, "head/Gemm": 16 * 8}
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def able(compute):
    """Whether OpenVINO computes in this precision here."""
    import openvino

    return compute.upper() in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Drawn:
    """image -> stem/Conv, Relu -> block/Conv (no bias) -> mean -> head/Gemm (bias) -> embedding (batch, 8)."""

    def __init__(self, dtype="float32", quantised=(), pixels=False):
        """dtype: of weights and arithmetic; quantised: nodes with uint8 Q/DQ on data and int8 weights; pixels: the input
        is uint8 NHWC."""
        self.nodes, self.constants, self.dtype, rng = [], [], dtype, np.random.default_rng(11)
        data = "image"
        if pixels:
            data = self.node("Cast", [data], "floats", to=KINDS[dtype])
            data = self.node("Transpose", [data], "planes", perm=[0, 3, 1, 2])
            data = self.node("Mul", [data, self.constant("by", np.float32(1 / 127.5))], "scaled")
        for name, shape in (("stem/Conv", (16, 3, 3, 3)), ("block/Conv", (16, 16, 3, 3)), ("head/Gemm", (16, 8))):
            weight, bias = (
                rng.normal(size=shape) / shape[0] ** 0.5,
                rng.normal(size=shape[-1 if len(shape) == 2 else 0]),
            )
            inputs = [data, self.constant(f"{name}/weight", weight)]
            if name in quantised:
                inputs = [self.quantised(data), self.small(f"{name}/weight", weight)]
            if name != "block/Conv":
                inputs.append(self.constant(f"{name}/bias", bias))
            if len(shape) == 2:
                data = self.node("Gemm", inputs, "embedding", name=name)
                break
            data = self.node("Conv", inputs, f"{name}/out", name=name, pads=[1] * 4)
            data = self.node("Relu", [data], f"{name}/relu")
            if name == "block/Conv":
                data = self.node("ReduceMean", [data, self.constant("axes", np.array([2, 3]))], "mean", keepdims=0)
        self.image = ["batch", 16, 16, 3] if pixels else ["batch", 3, 16, 16]
        self.kinds = ("uint8" if pixels else dtype), dtype

    def constant(self, name, values):
        values = np.asarray(values)
        values = values.astype(self.dtype) if values.dtype.kind == "f" else values
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind, inputs, output, name=None, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name or f"{output}/{kind}", **attributes))
        return output

    def quantised(self, tensor, reach=8.0):
        around = [self.constant(f"{tensor}/scale", np.float32(reach / 255))]
        around.append(self.constant(f"{tensor}/zero", np.uint8(0 if "relu" in tensor else 128)))
        small = self.node("QuantizeLinear", [tensor, *around], f"{tensor}/q")
        return self.node("DequantizeLinear", [small, *around], f"{tensor}/dq")

    def small(self, name, weight):
        scale = float(np.abs(weight).max() / 127)
        around = [self.constant(f"{name}/scale", np.float32(scale)), self.constant(f"{name}/zero", np.int8(0))]
        values = self.constant(f"{name}/int8", np.round(weight / scale).astype(np.int8))
        return self.node("DequantizeLinear", [values, *around], f"{name}/dq")

    def save(self, path):
        image, embedding = (
            helper.make_tensor_value_info(name, KINDS[kind], dims)
            for name, kind, dims in zip(("image", "embedding"), self.kinds, (self.image, ["batch", 8]))
        )
        graph = helper.make_graph(self.nodes, "drawn", [image], [embedding], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        checker.check_model(model, full_check=True)
        save(model, str(path))
        return path


@pytest.fixture
def path(tmp_path):
    return Drawn().save(tmp_path / "model.onnx")


def pictures(count, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(dtype)


def worst_cosine(path, feeds, **options):
    with OpenVinoRuntime(path, **options) as runtime, OnnxRuntime(path) as other:
        answers, reference = runtime.run(feeds)["embedding"], other.run(feeds)["embedding"]
    assert answers.dtype == reference.dtype
    return cosine_per_picture(answers, reference).min()


def test_fp32_answers_are_onnxruntimes_for_two_batch_sizes_on_one_model(path):
    with OpenVinoRuntime(path) as runtime, OnnxRuntime(path) as other:
        for count in (1, 5, 1):
            feeds = {"image": pictures(count, seed=count)}
            answers, reference = runtime.run(feeds)["embedding"], other.run(feeds)["embedding"]
            assert answers.shape == (count, 8)
            assert cosine_per_picture(answers, reference).min() > 0.99999


def test_a_file_with_fp16_tensors(tmp_path):
    path = Drawn("float16").save(tmp_path / "model.onnx")
    assert worst_cosine(path, {"image": pictures(3, "float16")}) > 0.9999
    with OpenVinoRuntime(path) as runtime:
        assert runtime.inputs[0].dtype == runtime.outputs[0].dtype == "float16"
        assert set(runtime.layer_precisions()) == {"fp32"}  # stored in fp16, computed in what was asked for


def test_uint8_pixels(tmp_path):
    path = Drawn(pixels=True).save(tmp_path / "model.onnx")
    pixels = np.random.default_rng(2).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert worst_cosine(path, {"image": pixels}) > 0.99999
    with OpenVinoRuntime(path) as runtime:
        assert runtime.inputs == (Tensor("image", "uint8", ("batch", 16, 16, 3)),)


def test_it_says_under_which_conditions(path):
    with OpenVinoRuntime(path, threads=1) as runtime:
        assert runtime.name == "openvino"
        assert runtime.inputs == (Tensor("image", "float32", ("batch", 3, 16, 16)),)
        assert runtime.outputs == (Tensor("embedding", "float32", ("batch", 8)),)
        assert runtime.conditions["inference_precision_hint"] == "f32"
        assert runtime.conditions["inference_num_threads"] == 1
        assert runtime.conditions["num_streams"] == 1
        assert runtime.conditions["performance_hint"] == "LATENCY"
        assert runtime.conditions["dynamic_quantization_group_size"] == 0
        assert runtime.load_ms > 0
        assert set(runtime.versions()) == {"openvino"}


def test_answers_are_copies(path):
    with OpenVinoRuntime(path) as runtime:
        first = runtime.run({"image": pictures(1)})["embedding"]
        kept = first.copy()
        runtime.run({"image": pictures(1, seed=9)})
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_the_arithmetic_is_the_one_asked_for(path, compute):
    if not able(compute):
        pytest.skip(f"this CPU has no {compute}")
    fp32, half = openvino_target("fp16", compute="fp32"), openvino_target("fp16", compute=compute)
    with OpenVinoRuntime(path, compute=compute) as runtime:
        assert runtime.conditions["inference_precision_hint"] == {"bf16": "bf16", "fp16": "f16"}[compute]
        assert openvino_truth(runtime.node_precisions(), half, MACS).verdict == PASSED
        assert openvino_truth(runtime.node_precisions(), fp32, MACS).verdict == FAILED
    with OpenVinoRuntime(path) as runtime:
        assert openvino_truth(runtime.node_precisions(), fp32, MACS).verdict == PASSED
        assert openvino_truth(runtime.node_precisions(), half, MACS).verdict == FAILED


def openvino_target(precision, **changes):
    values = {
        "description": "for tests",
        "runtime": "openvino",
        "precision": precision,
        "gate": {"embedding": Gate(min_cosine=0.99, max_error_share=0.01)},
        "rest": "fp32" if precision == "int8" else "",
        "compute": "fp32",
    }
    return Target(**dict(values, **changes))


def test_int8_is_seen_in_the_layers_and_judged(tmp_path):
    path = Drawn(quantised=["stem/Conv", "block/Conv"]).save(tmp_path / "model.onnx")
    assert worst_cosine(path, {"image": pictures(4)}) > 0.999
    with OpenVinoRuntime(path) as runtime:
        counts, precisions = runtime.layer_precisions(), runtime.node_precisions()
    assert counts["int8"] == 2
    truth = openvino_truth(precisions, openvino_target("int8"), MACS, counts)
    assert truth.verdict == PASSED
    assert truth.notes == ()  # every node was found, the one that writes the output too
    assert truth.macs["fp32"] == MACS["head/Gemm"] / sum(MACS.values())
    plain = Drawn(quantised=["stem/Conv"]).save(tmp_path / "plain.onnx")
    with OpenVinoRuntime(plain) as runtime:
        truth = openvino_truth(runtime.node_precisions(), openvino_target("int8"), MACS)
    assert truth.verdict == FAILED
    assert truth.macs["int8"] == MACS["stem/Conv"] / sum(MACS.values())


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"image": np.zeros((1, 3, 9, 9), np.float32)},
        {"image": np.zeros((1, 3, 16, 16))},
        {"image": np.zeros((3, 16, 16), np.float32)},
        {"picture": np.zeros((1, 3, 16, 16), np.float32)},
        {"image": np.zeros((1, 3, 16, 16), np.float32), "more": np.zeros(1, np.float32)},
        {"image": np.array([["text"]])},
    ],
)
def test_wrong_feeds_are_told_even_after_a_right_one(path, feeds):
    with OpenVinoRuntime(path) as runtime:
        runtime.run({"image": pictures(1)})
        with pytest.raises(TinkitError, match="does not run"):
            runtime.run(feeds)


def test_a_view_that_is_not_contiguous_is_run_as_it_looks(path):
    turned = np.ascontiguousarray(pictures(2).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with OpenVinoRuntime(path) as runtime:
        one, other = runtime.run({"image": turned}), runtime.run({"image": pictures(2)})
    np.testing.assert_array_equal(one["embedding"], other["embedding"])


@pytest.mark.parametrize("content", [b"not a model", b"", None])
def test_a_model_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TinkitError) as error:
        OpenVinoRuntime(path)
    assert error.value.where == str(path)
    assert not isinstance(error.value, CannotJudge)


def test_an_operator_that_openvino_lacks_is_told(tmp_path):
    image, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("image", "out"))
    graph = helper.make_graph([helper.make_node("Nonsense", ["image"], ["out"], domain="nowhere")], "g", [image], [out])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(tmp_path / "model.onnx"))
    with pytest.raises(TinkitError, match="does not load") as error:
        OpenVinoRuntime(tmp_path / "model.onnx")
    assert "Nonsense" in error.value.seen


def test_missing_openvino_is_no_verdict_and_names_the_extra(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(CannotJudge) as error:
        OpenVinoRuntime(path)
    assert error.value.next_step == 'pip install "tinkit[openvino]"'
    assert error.value.exit_code == EXIT_NO_VERDICT


def test_an_arithmetic_that_the_cpu_lacks_is_no_verdict():
    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    _check_arithmetic(Core(), "fp32")
    with pytest.raises(CannotJudge, match="bf16 on this CPU"):
        _check_arithmetic(Core(), "bf16")


def test_a_closed_runtime_does_nothing(path):
    with OpenVinoRuntime(path) as runtime:
        pass
    for use in (lambda: runtime.run({}), runtime.layer_precisions, runtime.node_precisions):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_second_stream_is_a_model_of_its_own_that_runs_at_the_same_time(path):
    with OpenVinoRuntime(path) as runtime:
        with runtime.again() as other, ThreadPoolExecutor(2) as pool:
            feeds = [{"image": pictures(count, seed=count)} for count in (1, 3)]
            expected = [runtime.run(one)["embedding"] for one in feeds]
            for _ in range(20):
                runs = [pool.submit(one.run, given) for one, given in zip((runtime, other), feeds)]
                for run, wanted in zip(runs, expected):
                    np.testing.assert_array_equal(run.result()["embedding"], wanted)
            assert other.conditions == dict(runtime.conditions, enable_cpu_pinning=False)
        assert set(runtime.run(feeds[0])) == {"embedding"}  # the second one took nothing with it
        with pytest.raises(ValueError, match="closed"):
            other.run(feeds[0])
    with pytest.raises(ValueError, match="closed"):
        runtime.again()


def test_an_unknown_arithmetic_is_a_programmers_error(path):
    with pytest.raises(ValueError, match="unknown arithmetic"):
        OpenVinoRuntime(path, compute="int8")


def test_it_loads_where_warnings_are_errors_and_writes_no_cache(path, tmp_path):
    code = f"from tinkit.device.openvino_runtime import OpenVinoRuntime; OpenVinoRuntime({str(path)!r})"
    before = set(os.listdir(tmp_path))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert set(os.listdir(tmp_path)) == before


def test_the_device_profile_is_there():
    assert load_device("x86-openvino").runtime == "openvino"


def test_an_output_keeps_its_name_where_openvino_folds_nodes_into_it(tmp_path):
    from onnx import TensorProto, helper, save

    image, answer = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("image", "answer")
    )
    nodes = [helper.make_node("Relu", ["image"], ["a"]), helper.make_node("Identity", ["a"], ["answer"])]
    graph = helper.make_graph(nodes, "folded", [image], [answer])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx")
    with OpenVinoRuntime(tmp_path / "model.onnx") as runtime:
        seen = runtime.run({"image": np.array([[-1, 0, 1, 2]], np.float32)})
    assert list(seen) == ["answer"]
    assert seen["answer"].tolist() == [[0, 0, 1, 2]]


def test_the_thread_keeps_its_own_signal_stack(path):
    """A model's would go with the model, and the next signal would kill the process."""
    before = signal_stack()
    with OpenVinoRuntime(path):
        assert signal_stack() == before
    assert signal_stack() == before
