"""Layers by ONNX node on real runtimes and a pretended TensorRT: every ms has its node, and damage has words."""

import glob
import json
import os
import tempfile
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_parts import DataType, Network, TensorIOMode
from hypothesis import given
from hypothesis import strategies as st
from layer_parts import FUSED, NODES, SIZE, ReportingTensorRt, mobile_net, net, weights
from rtx_parts import beside_us
from small_parts import small_target, this_machine

from tinkit.device import onnxruntime_layers, openvino_layers
from tinkit.device.cuda_memory import Stream
from tinkit.device.fused_nodes import nodes_of_layers
from tinkit.device.layers import NOT_A_NODE, NOT_KNOWN, layers_report, profile_layers, profiled
from tinkit.device.loaded_engine import LoadedEngine
from tinkit.device.onnx_nodes import Graph, Node
from tinkit.device.onnxruntime_layers import read_events, split_runs
from tinkit.device.runtime import OnnxRuntime
from tinkit.device.tensorrt_log import recording_logger
from tinkit.device.tensorrt_runtime import TensorRtRuntime
from tinkit.errors import CannotJudge, TinkitError
from tinkit.target import Batch

PICTURES = {"image": np.random.default_rng(2).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return mobile_net(tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(autouse=True)
def private_folder(tmp_path, monkeypatch):
    """Temporary folders are made in one of their own, which every test must leave empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert os.listdir(folder) == []


def held(layers):
    """The sets of nodes of the layers that have some, views left out."""
    return [set(layer["nodes"]) - {"flat"} for layer in layers if set(layer["nodes"]) - {"flat"}]


def test_onnxruntime_names_every_node_once(path):
    with OnnxRuntime(path) as runtime:
        before = runtime.run(PICTURES)["embedding"]
        found = profiled(runtime, PICTURES, runs=9, model_path=path)
        np.testing.assert_array_equal(runtime.run(PICTURES)["embedding"], before)
    assert held(found.layers) == FUSED
    named = [name for layer in found.layers for name in layer["nodes"]]
    assert (len(named), set(named)) == (len(NODES), NODES)
    for layer in found.layers:
        assert layer["note"] == ("" if layer["nodes"] else NOT_A_NODE)
        assert layer["type"]
    assert {layer["type"] for layer in found.layers if not layer["nodes"]} <= {"ReorderInput", "ReorderOutput"}
    assert sum(layer["share"] for layer in found.layers) == pytest.approx(1)
    assert all(layer["ms"] >= 0 for layer in found.layers)


def test_the_slowest_layer_is_the_one_that_works_most_and_the_sum_is_near_the_whole(tmp_path):
    """A planted giant: one product of 1024 x 1024 x 1024 among small ones. In small nets the profiler itself costs more."""
    nodes = [
        ("small", "MatMul", ["image", "a"], ["t1"]),
        ("giant", "MatMul", ["t1", "b"], ["t2"]),
        ("end", "Erf", ["t2"], ["embedding"]),
    ]
    constants = {"a": weights(4, 1024), "b": weights(1024, 1024)}
    path = net(tmp_path / "giant.onnx", nodes, constants, [1, 1024, 4], {"embedding": [1, 1024, 1024]})
    with OnnxRuntime(path) as runtime:
        found = profiled(runtime, {"image": weights(1, 1024, 4)}, 9, path)
        told, wholes, _ = onnxruntime_layers.onnxruntime_layers(runtime, {"image": weights(1, 1024, 4)}, (9, 12), path)
    assert max(found.layers, key=lambda layer: layer["ms"])["nodes"] == ["giant"]
    parts = [sum(ms for _, ms, _ in run) / whole for run, whole in zip(told, wholes)]
    assert max(parts) <= 1.01  # of one run; medians of layers need not add up to the median of runs
    assert sorted(parts)[4] > 0.7


def test_openvino_names_the_same_layers(path):
    pytest.importorskip("openvino")
    from tinkit.device.openvino_runtime import OpenVinoRuntime

    with OpenVinoRuntime(path) as runtime:
        found = profiled(runtime, PICTURES, runs=9, model_path=path)
    seen = held(found.layers)  # what takes less than a microsecond is not told by OpenVINO
    assert seen == [names for names in FUSED if names in seen]
    assert [names for names in FUSED[:3] if names not in seen] == []
    assert {layer["type"] for layer in found.layers if not layer["nodes"]} <= {"Reorder"}
    assert 0 < sum(layer["ms"] for layer in found.layers) <= found.profiled_ms * 1.05  # means on both sides


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_a_quantised_convolution_is_named(tmp_path, kind):
    pytest.importorskip(kind)
    nodes = [
        ("q1", "QuantizeLinear", ["image", "s", "z"], ["t1"]),
        ("dq1", "DequantizeLinear", ["t1", "s", "z"], ["t2"]),
        ("dqw", "DequantizeLinear", ["w", "s", "z"], ["t3"]),
        ("conv", "Conv", ["t2", "t3"], ["t4"]),
        ("relu", "Relu", ["t4"], ["t5"]),
        ("q2", "QuantizeLinear", ["t5", "s", "z"], ["t6"]),
        ("dq2", "DequantizeLinear", ["t6", "s", "z"], ["embedding"]),
    ]
    constants = {"s": np.float32(0.05), "z": np.int8(0), "w": np.ones((4, 3, 1, 1), np.int8)}
    path = net(tmp_path / "q.onnx", nodes, constants, [1, 3, 8, 8], {"embedding": [1, 4, 8, 8]})
    from tinkit.device.runtime import open_runtime

    with open_runtime(kind, path) as runtime:
        layers = profile_layers(runtime, {"image": weights(1, 3, 8, 8)}, 3, path)
    by_node = {name: layer for layer in layers for name in layer["nodes"]}
    assert by_node["conv"] is by_node["relu"]
    if kind == "openvino":
        assert {"conv", "relu"} <= set(by_node["conv"]["nodes"]) <= {"conv", "relu", "q2", "dq2"}
        assert "dqw" not in by_node  # done before any picture
    else:  # where the processor is not asked for int8, onnxruntime does each by itself, also the weight's
        assert {"q1", "dq1", "dqw", "conv", "relu", "q2", "dq2"} == set(by_node)


def test_a_report_has_the_top_20_and_says_how_near_the_sum_is(tmp_path):
    nodes = [("erf{}".format(i), "Erf", ["t{}".format(i)], ["t{}".format(i + 1)]) for i in range(24)]
    nodes[0] = ("erf0", "Erf", ["image"], ["t1"])
    path = net(tmp_path / "many.onnx", nodes, {}, ["batch", 64], {"t24": ["batch", 64]})
    manifest = {"node_macs": {}, "node_bytes": {node[0]: [256, 256, 0] for node in nodes}}
    with OnnxRuntime(path) as runtime:
        report = layers_report(
            runtime, {"image": weights(3, 64)}, manifest, this_machine(), batch=3, whole_ms=1.0, model_path=path, runs=3
        )
    assert (report["runtime"], report["runs"], report["batch"], report["layers"]) == ("onnxruntime", 3, 3, 24)
    assert len(report["top"]) == 20
    times = [line["ms"] for line in report["top"]]
    assert times == sorted(times, reverse=True)
    assert report["named_share"] == 1
    assert report["peaks"]["source"].startswith("measured here with numpy")
    assert all(line["bytes"] == 3 * 512 and line["bound"] == "memory" for line in report["top"])
    assert "{:.1%} of the profiled whole".format(report["total_ms"] / report["profiled_ms"]) in report["note"]
    assert "{:.1%} of the whole without a profiler".format(report["total_ms"]) in report["note"]
    json.dumps(report, allow_nan=False)


def test_a_manifest_of_an_older_export_gives_times_without_bounds(path):
    with OnnxRuntime(path) as runtime:
        report = layers_report(runtime, PICTURES, {}, this_machine(), batch=2, model_path=path, runs=3)
    assert {line["bound"] for line in report["top"]} == {"unknown"}
    assert {line["times_the_bound"] for line in report["top"]} == {None}


# what onnxruntime writes, and what may happen to it


def events(durations, runs=2, ts=1000):
    """The events of some runs of the layers {name: microseconds}."""
    found = [{"cat": "Session", "name": "session_initialization", "ts": 1, "dur": 5, "args": {}}]
    for _ in range(runs):
        start = ts
        for name, lasted in durations.items():
            found.append(
                {"cat": "Node", "name": name + "_kernel_time", "ts": ts, "dur": lasted, "args": {"op_name": "Conv"}}
            )
            ts += lasted + 2
        found.append(
            {"cat": "Session", "name": "SequentialExecutor::Execute", "ts": start, "dur": ts - start, "args": {}}
        )
        found.append({"cat": "Session", "name": "model_run", "ts": start - 3, "dur": ts - start + 5, "args": {}})
        ts += 50
    return found


def test_runs_are_split_at_model_run_and_the_last_are_kept():
    told, wholes = split_runs(events({"a": 10, "b": 30}, runs=3), 2)
    assert told == [[("a", 0.01, "Conv"), ("b", 0.03, "Conv")]] * 2
    assert wholes == [0.049, 0.049]


def test_layers_inside_a_layer_are_not_counted_twice():
    found = events({"loop": 100, "after": 7}, runs=1)
    inner = {"cat": "Node", "name": "inner_kernel_time", "ts": 1010, "dur": 20, "args": {"op_name": "Add"}}
    told, _ = split_runs([found[0], inner, *found[1:]], 1)
    assert [row[0] for row in told[0]] == ["loop", "after"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found[:-1], "1 runs of 2 layers"),
        (lambda found: [event for event in found if event["cat"] != "Node"], "2 runs of 0 layers"),
        (lambda found: [*found[:2], *found[3:]], "differ in their layers"),
        (lambda found: [*found, "text"], "'text'"),
        (lambda found: [dict(event, dur="ten") for event in found], "dur 'ten'"),
        (lambda found: [dict(event, dur=-1) for event in found], "dur -1"),
        (lambda found: [dict(event, dur=float("nan")) for event in found], "dur nan"),
        (lambda found: [dict(event, dur=10**12) for event in found], "dur 1000000000000"),
        (lambda found: [dict(event, ts=None) for event in found], "ts None"),
    ],
)
def test_damaged_events_are_an_error_with_words(change, words):
    with pytest.raises(TinkitError, match="onnxruntime's profile cannot be read") as error:
        split_runs(change(events({"a": 10, "b": 30})), 2)
    assert words in error.value.seen


@pytest.mark.parametrize("text", ["", "[{", "{}", "3", "[" * 100_000, '["\\ud800"', "\x00\xff"])
def test_a_damaged_file_is_an_error_with_words(tmp_path, text):
    file = tmp_path / "events.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(TinkitError, match="onnxruntime's profile cannot be read"):
        read_events(file)


def test_a_missing_or_huge_file_is_an_error_with_words(tmp_path, monkeypatch):
    with pytest.raises(TinkitError, match="cannot be read"):
        read_events(tmp_path / "none.json")
    (tmp_path / "big.json").write_text("[" + " " * 100 + "]")
    monkeypatch.setattr(onnxruntime_layers, "MAX_PROFILE_BYTES", 100)
    with pytest.raises(TinkitError, match="cannot be read") as error:
        read_events(tmp_path / "big.json")
    assert "102 bytes" in error.value.seen


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["cat", "name", "ts", "dur", "args", "op_name"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=6), st.integers(0, 9))
def test_no_event_crashes_the_reader(extra, place):
    found = events({"a": 10, "b": 30})
    found[place:place] = extra
    try:
        told, _ = split_runs(found, 2)
    except TinkitError:
        return
    assert all(np.isfinite(row[1]) for run in told for row in run)


def test_a_profile_damaged_on_the_disk_leaves_no_folder(path, private_folder, monkeypatch):
    seen = []

    def damaged(file):
        assert os.stat(os.path.dirname(file)).st_mode & 0o777 == 0o700
        seen.extend(glob.glob(str(private_folder / "*" / "*")))
        with open(file, "r+", encoding="utf-8") as handle:
            handle.truncate(200)
        return read_events(file)

    monkeypatch.setattr(onnxruntime_layers, "read_events", damaged)
    with OnnxRuntime(path) as runtime, pytest.raises(TinkitError, match="profile cannot be read"):
        profiled(runtime, PICTURES, 2, path)
    assert len(seen) == 2  # events and the graph that was run; the fixture sees that both are gone


def test_a_run_that_fails_leaves_no_folder(path):
    with OnnxRuntime(path) as runtime, pytest.raises(TinkitError, match="does not profile"):
        profiled(runtime, {"image": PICTURES["image"][:, :1]}, 2, path)


# fused nodes, by hand


def node(name, op, reads, writes):
    return Node(name, op, tuple(reads.split()), tuple(writes.split()))


def test_what_cannot_be_named_stays_unnamed():
    graph = Graph([node("a", "Conv", "image w", "t1"), node("b", "Relu", "t1", "out")], {"w"}, {"out"})
    ran = Graph([node("x", "Mystery", "image", "u1"), node("y", "Mystery", "u1", "u2"), node("z", "Relu", "u2", "out")])
    assert nodes_of_layers(graph, ran) == {"x": [], "y": [], "z": ["a", "b"]}


def test_names_that_come_twice_tell_nothing():
    graph = Graph([node("a", "Erf", "image", "t1"), node("b", "Erf", "t1", "out")])
    ran = Graph([node("same", "Erf", "image", "t1"), node("same", "Erf", "t1", "out")])
    assert nodes_of_layers(graph, ran) == {}


def test_a_reshape_behind_a_gemm_is_no_node_and_the_gemm_has_the_bias():
    graph = Graph(
        [node("m", "MatMul", "image w", "t1"), node("add", "Add", "t1 b", "t2"), node("gelu", "Gelu", "t2", "out")],
        {"w", "b"},
    )
    ran = Graph(
        [
            node("gemm_input_reshape", "Reshape", "image s1", "r1"),
            node("m/MatMulAddFusion", "Gemm", "r1 w b", "r2"),
            node("gemm_output_reshape", "Reshape", "r2 s2", "t2"),
            node("gelu", "Gelu", "t2", "out"),
        ],
        {"w", "b", "s1", "s2"},
    )
    found = nodes_of_layers(graph, ran)
    assert found == {
        "gemm_input_reshape": [],
        "m/MatMulAddFusion": ["m", "add"],
        "gemm_output_reshape": [],
        "gelu": ["gelu"],
    }


def test_openvinos_layers_take_the_product_that_they_do_not_name_and_nothing_else():
    graph = Graph(
        [
            node("norm", "LayerNormalization", "image w", "t1"),
            node("product", "MatMul", "t1 w", "t2"),
            node("bias", "Add", "t2 b", "t3"),
            node("erf", "Erf", "t3", "t4"),
        ],
        {"w", "b"},
    )
    kept, kinds = {"mvn": [], "x": ["bias"], "y": ["t4"]}, {"mvn": "MVN", "x": "FullyConnected", "y": "Eltwise"}
    assert openvino_layers.nodes_of_names(graph, kept, kinds) == {"mvn": [], "x": ["product", "bias"], "y": ["erf"]}
    kept["mvn"] = ["product/WithoutBiases"]  # of another layer: then it is not taken
    assert openvino_layers.nodes_of_names(graph, kept, kinds) == {"mvn": ["product"], "x": ["bias"], "y": ["erf"]}


def test_what_lies_between_two_nodes_of_an_openvino_layer_is_in_it():
    graph = Graph(
        [
            node("norm", "LayerNormalization", "image", "t0"),
            node("conv", "Conv", "t0 w", "t1"),
            node("sigmoid", "Sigmoid", "t1", "t2"),
            node("mul", "Mul", "t1 t2", "t3"),
            node("erf", "Erf", "t3", "t4"),
        ],
        {"w"},
    )
    found = openvino_layers.nodes_of_names(graph, {"a": ["conv", "mul"]}, {"a": "Convolution"})
    assert found == {"a": ["conv", "sigmoid", "mul"]}


def test_openvinos_averages_become_the_mean_of_the_last_runs():
    """Three runs of 10 ms before and two of 4 ms: the average of all is 7.6 ms, that of the last two is 4."""

    def told(name, ms, status="Status.EXECUTED"):
        return SimpleNamespace(node_name=name, node_type="Erf", status=status, real_time=timedelta(milliseconds=ms))

    before, after = [told("a", 10), told("b", 1)], [told("a", 7.6), told("b", 0.6), told("c", 0, "Status.NOT_RUN")]
    found = openvino_layers.mean_times(before, after, kept=2, made=5)
    assert [(name, kind) for name, _, kind in found] == [("a", "Erf"), ("b", "Erf")]
    assert [ms for _, ms, _ in found] == [pytest.approx(4), pytest.approx(0)]


# TensorRT, pretended


INSPECTOR = {
    "Layers": [
        {"Name": "Reformatting CopyNode for Input Tensor 0 to stem/conv + stem/relu", "LayerType": "Reformat", "Metadata": ""},
        {"Name": "stem/conv + stem/relu", "LayerType": "CaskConvolution",
         "Metadata": "[ONNX Layer: stem/conv]\x1e[ONNX Layer: stem/relu]"},
        {"Name": "__myl_Fuse", "LayerType": "kgen", "Metadata": "[ONNX Layer: last]\x1e[ONNX Layer: invented]"},
    ],
    "Bindings": [],
}  # fmt: skip
REPORTS = [
    ("Reformatting CopyNode for Input Tensor 0 to stem/conv + stem/relu", 0.125),
    ("stem/conv + stem/relu", 0.5),
    ("__myl_Fuse", 0.25),
    ("pool", 0.125),  # a name that the inspector lacks
    ("__myl_Other", 1.0),
]


@pytest.fixture
def reporting(driver):
    tensors = {
        "image": (TensorIOMode.INPUT, DataType.FLOAT, (-1, 3, SIZE, SIZE)),
        "embedding": (TensorIOMode.OUTPUT, DataType.FLOAT, (-1, 8)),
    }
    made = Network(tensors, lambda given: {"embedding": given["image"][:, 0, 0, :8]})
    return ReportingTensorRt(driver, made, REPORTS, json.dumps(INSPECTOR))


@pytest.fixture
def engine_runtime(reporting, cuda):
    target = small_target(runtime="tensorrt", precision="fp16", batch=Batch(1, 2, 4))
    with TensorRtRuntime(reporting, b"plan", target, cuda) as runtime:
        yield runtime


def test_tensorrt_tells_layers_of_another_context_with_the_nodes_of_the_inspector(reporting, engine_runtime, path):
    engine_runtime.run(PICTURES)
    found = profiled(engine_runtime, PICTURES, runs=3, model_path=path)
    assert [(layer["nodes"], layer["type"], layer["note"]) for layer in found.layers] == [
        ([], "Reformat", NOT_A_NODE),
        (["stem/conv", "stem/relu"], "CaskConvolution", ""),
        (["last"], "kgen", ""),  # "invented" is no node of this graph
        (["pool"], "", ""),
        ([], "", NOT_KNOWN),
    ]
    # run 1 was timed, 2 to 4 warm up, of 5, 6 and 7 the median is 6 times what was planted
    assert [layer["ms"] for layer in found.layers] == [0.75, 3.0, 1.5, 0.75, 6.0]
    assert [layer["share"] for layer in found.layers] == [0.0625, 0.25, 0.125, 0.0625, 0.5]
    engine_runtime.run(PICTURES)
    timed, *others = reporting.ran
    assert others[-1] is timed
    assert timed.profiler is None
    assert set(others[:-1]) == {others[0]} != {timed}


def test_tensorrt_is_as_it_was_after_another_batch_was_profiled(reporting, engine_runtime, path):
    engine_runtime.run({"image": np.concatenate([PICTURES["image"]] * 2)})
    profiled(engine_runtime, PICTURES, runs=1, model_path=path)
    given = engine_runtime.run(PICTURES)["embedding"]
    np.testing.assert_array_equal(given, PICTURES["image"][:, 0, 0, :8])
    given = engine_runtime.run({"image": PICTURES["image"][:1]})["embedding"]
    np.testing.assert_array_equal(given, PICTURES["image"][:1, 0, 0, :8])


def test_too_little_memory_for_a_second_context_is_told_and_the_first_goes_on(reporting, engine_runtime, path):
    reporting.network.fails["create_execution_context"] = "out of memory"
    with pytest.raises(TinkitError):
        profiled(engine_runtime, PICTURES, 1, path)
    reporting.network.fails.clear()
    assert engine_runtime.run(PICTURES)["embedding"].shape == (2, 8)


@pytest.mark.parametrize("ms", [float("nan"), float("inf"), -1.0, 1e9])
def test_a_time_that_is_none_is_told(reporting, engine_runtime, path, ms):
    reporting.reports = [("stem/conv + stem/relu", ms)]
    with pytest.raises(TinkitError, match="a time that is none"):
        profiled(engine_runtime, PICTURES, 1, path)


def test_a_tensorrt_that_reports_nothing_cannot_be_judged(reporting, engine_runtime, path):
    reporting.reports = []
    with pytest.raises(CannotJudge, match="no layers"):
        profiled(engine_runtime, PICTURES, 1, path)


def test_contexts_of_one_engine_keep_their_own_buffers(reporting, cuda):
    """A context made from another by copying its attributes must not change where the first one's tensors lie."""
    with LoadedEngine(reporting, b"plan", cuda, recording_logger(reporting)) as first, Stream(cuda):
        first.use_buffer("image", 1)
        second = LoadedEngine.__new__(LoadedEngine)
        second.__dict__.update(vars(first))
        second.use_buffer("image", 2)
        assert (first._addresses, second._addresses) == ({"image": 1}, {"image": 2})


def profiler_for_real():
    """(whether it is the bindings' own kind, what it heard) of a profiler made for the real bindings."""
    import tensorrt_rtx_bindings as bindings

    from tinkit.device.loaded_engine import _profiler

    heard = []
    profiler = _profiler(bindings, heard)
    bindings.IProfiler.report_layer_time  # noqa: B018 - it is there to be overridden
    profiler.report_layer_time("conv", 0.5)
    return isinstance(profiler, bindings.IProfiler), heard


def test_the_profiler_is_one_that_the_real_bindings_take():
    assert beside_us(profiler_for_real) == (True, [("conv", 0.5)])


def test_another_runtime_cannot_be_judged(path):
    class Other:
        name, model_path = "other", path

    with pytest.raises(CannotJudge, match="does not tell the time of its layers"):
        profiled(Other(), PICTURES)
    with pytest.raises(ValueError, match="path"):
        profiled(type("Pathless", (), {"name": "onnxruntime"})(), PICTURES)
