"""Where the time goes, layer by layer, told by the names of ONNX nodes.

Measured beside the timed model, never in it, for a profiled run is slower: onnxruntime gets a second session, OpenVINO a second
compilation, a TensorRT engine a second context. A fused layer names all of its nodes as far as that can be told; one that the
runtime put in by itself, and one whose nodes are not known, say so. Beside each stands what the machine would allow
(tinkit/device/roofline.py).
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any, Dict, List

from tinkit import truth
from tinkit.device import roofline
from tinkit.device.onnx_nodes import read_graph
from tinkit.errors import CannotJudge, TinkitError

NOT_A_NODE = "not an ONNX node of this graph"
NOT_KNOWN = "its ONNX nodes are not known"
PUT_IN = (
    "Reformat",
    "Reorder",
    "ReorderInput",
    "ReorderOutput",
    "Reshape",
    "Transpose",
    "Cast",
)  # by runtimes themselves
WARMUP_RUNS = 3
TOP = 20  # layers in a report
BIAS_OFF = "/WithoutBiases"  # what OpenVINO adds to the name of a product whose bias was split off
LONGEST_MS = 3.6e6  # no layer takes an hour
CLOCKS = {
    "onnxruntime": "model_run by onnxruntime's own clock, which counts whole microseconds",
    "openvino": "wall clock around the run; means, for OpenVINO tells averages only",
    "tensorrt": "GPU events around the network",
}


@dataclass(frozen=True)
class Profiled:
    """Layers in the order they ran, {"layer", "nodes", "type", "ms", "share", "note"} each; `ms`: median of `runs` runs
    (of OpenVINO their mean).

    share: of the sum of all layers. profiled_ms: median of the whole run, profiled, by `clock`.
    """

    layers: List[Dict[str, Any]]
    runs: int
    profiled_ms: float
    clock: str


def profile_layers(runtime, feeds, runs=20, model_path=None):
    """[{"layer", "nodes", "type", "ms", "share", "note"}] of an open runtime; `profiled` tells more."""
    return profiled(runtime, feeds, runs, model_path).layers


def profiled(runtime, feeds, runs=20, model_path=None):
    """`Profiled` layers over `runs` runs on `feeds` ({input: array}) after a warm-up; the runtime stays as it was.

    model_path: the ONNX file, `runtime.model_path` when None. Raises CannotJudge for a runtime that tells nothing about its
    layers, TinkitError where what it tells cannot be understood.
    """
    path = model_path or getattr(runtime, "model_path", None)
    if runs < 1 or path is None:
        raise ValueError("at least one run, and the path of the ONNX file")
    wanted = (runs, WARMUP_RUNS + runs)
    if runtime.name == "onnxruntime":
        from tinkit.device.onnxruntime_layers import onnxruntime_layers as layers_of
    elif runtime.name == "openvino":
        from tinkit.device.openvino_layers import openvino_layers as layers_of
    elif runtime.name == "tensorrt":
        layers_of = tensorrt_layers
    else:
        raise CannotJudge("This runtime does not tell the time of its layers.", seen=str(runtime.name))
    told, wholes, nodes = layers_of(runtime, feeds, wanted, path)
    return Profiled(_medians(told, nodes), runs, statistics.median(wholes), CLOCKS[runtime.name])


def _medians(told, nodes):
    """The layers of [[(layer, ms, type)] of each run]; a name that comes twice in a run is one layer."""
    sums, kinds = {}, {}  # type: dict, dict
    for run in told:
        here = {}  # type: dict
        for name, ms, kind in run:
            here[name] = here.get(name, 0.0) + ms
            kinds[name] = kind
        for name, ms in here.items():
            sums.setdefault(name, []).append(ms)
    medians = {name: statistics.median(values + [0.0] * (len(told) - len(values))) for name, values in sums.items()}
    total = math.fsum(medians.values())
    return [
        {
            "layer": name,
            "nodes": list(nodes.get(name, ())),
            "type": kinds[name],
            "ms": ms,
            "share": ms / total if total else 0.0,
            "note": "" if nodes.get(name) else NOT_A_NODE if kinds[name] in PUT_IN else NOT_KNOWN,
        }
        for name, ms in medians.items()
    ]


def tensorrt_layers(runtime, feeds, runs, model_path):
    """([[(layer, ms, type)] of each run], [GPU ms of each run], {layer: [nodes]}) of the last of `runs`, (kept, made).

    Names of layers come from TensorRT's IProfiler; the engine's inspector, which calls them the same, knows their nodes.
    Raises CannotJudge where nothing was reported, TinkitError for a time that is none.
    """
    told, wholes = [], []
    with runtime.profiled() as heard:
        for _ in range(runs[1]):
            del heard[:]
            runtime.run(feeds)
            told.append(list(heard))
            wholes.append(runtime.device_ms)
    told, wholes = told[-runs[0] :], wholes[-runs[0] :]
    if not told[0]:
        raise CannotJudge("TensorRT reported no layers.", next_step="measure without a layer profile")
    graph, known = read_graph(model_path), {layer.name: layer for layer in truth.engine_layers(runtime.inspector)}
    rows, nodes = [], {}
    for run in told:
        rows.append([(name, _checked(name, ms), known[name].kind if name in known else "") for name, ms in run])
        for name, _ in run:
            layer = known.get(name) or truth.engine_layers({"Layers": [name]})[0]
            idle = layer.kind.lower() in truth.IDLE or layer.name.startswith("Reformatting CopyNode")
            nodes[name] = [] if idle else [node for node in layer.nodes if node in graph.by_name]
    return rows, wholes, nodes


def _checked(name, ms):
    if not (isinstance(ms, (int, float)) and 0 <= ms <= LONGEST_MS):
        raise TinkitError("TensorRT reported a time that is none.", where=str(name)[:80], seen=repr(ms))
    return float(ms)


def layers_report(runtime, feeds, manifest, device, power_mode="", batch=1, whole_ms=0.0, model_path=None, runs=20):
    """What `Report.layers` holds: the `TOP` slowest layers with their roofline, the sum of all, and how near that is.

    feeds: {input: array} of `batch` pictures. manifest: the bundle's, with "node_macs" and "node_bytes" (bounds are unknown
    without). device: a `DeviceProfile`; its peaks are a GPU's, so a runtime on a CPU is held against what is measured here
    and now. whole_ms: median of the same runtime and batch, not profiled (on a GPU: of the network alone), 0 where not
    measured. Raises as `profiled` does.
    """
    found, on_gpu = profiled(runtime, feeds, runs, model_path), runtime.name == "tensorrt"
    peaks = roofline.peaks_of(device.to_json() if on_gpu else {"threads": device.threads}, power_mode, not on_gpu)
    graph, precisions = read_graph(model_path or runtime.model_path), _precisions(runtime, manifest)
    macs, moved = manifest.get("node_macs") or {}, manifest.get("node_bytes") or {}
    lines = roofline.lines(found.layers, macs, moved, precisions, peaks, batch, graph)
    total = math.fsum(line["ms"] for line in lines)
    named = math.fsum(line["ms"] for line in lines if line["nodes"])
    return {
        "runtime": runtime.name,
        "runs": found.runs,
        "batch": batch,
        "layers": len(lines),
        "total_ms": total,
        "whole_ms": whole_ms,
        "profiled_ms": found.profiled_ms,
        "named_share": named / total if total else 0.0,
        "top": sorted(lines, key=lambda line: -line["ms"])[:TOP],
        "peaks": peaks.to_json(),
        "note": _apart(total, whole_ms, found) + " " + roofline.MEANING,
    }


def _precisions(runtime, manifest):
    """node -> precision that it is computed in, as far as the runtime tells; of onnxruntime it is what the target asks."""
    if runtime.name == "tensorrt":
        return {node: one.precision for one in truth.engine_layers(runtime.inspector) for node in one.nodes}
    if runtime.name == "openvino":
        told = runtime.node_precisions()
        return {(name[: -len(BIAS_OFF)] if name.endswith(BIAS_OFF) else name): told[name] for name in told}
    precision = manifest.get("target", {}).get("precision", truth.UNKNOWN)
    return dict.fromkeys(manifest.get("node_macs") or {}, precision)


def _apart(total, whole_ms, found):
    """How near the layers are to the whole, with and without the profiler."""
    words = "The layers add up to {:.3f} ms".format(total)
    if found.profiled_ms > 0:
        words += ", {:.1%} of the profiled whole ({})".format(total / found.profiled_ms, found.clock)
    if whole_ms > 0:
        words += ", {:.1%} of the whole without a profiler".format(total / whole_ms)
    return words + "."
