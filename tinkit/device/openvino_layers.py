"""The layers of a model in OpenVINO: a second compilation that counts, its layers told by the names of ONNX nodes.

OpenVINO keeps "original names" of what it fused into a layer, but not all [ran, 2026.4]: of Conv, BatchNormalization, Relu the
last two, of MatMul + Add the Add, of a node that writes an output the output's name. So the names found are the ends, and what
lies between them and the layers before is theirs too. What it put in itself (Reorder) has no original name.
"""

import time

from tinkit.device.fused_nodes import nodes_up_to
from tinkit.device.onnx_nodes import read_graph
from tinkit.errors import TinkitError

TAKEN_OFF = "/WithoutBiases"  # what a product's name ends in where its bias was split off
OPTIONS = ("inference_precision_hint", "inference_num_threads", "num_streams", "performance_hint",
           "dynamic_quantization_group_size")  # fmt: skip


def openvino_layers(runtime, feeds, runs, model_path):
    """([[(layer, ms, type)] of each run], [wall ms of each run], {layer: [nodes]}) of the last of `runs`, (kept, made).

    Compiled with the options that the `runtime` says it was given. Raises TinkitError where OpenVINO does not do it.
    """
    from tinkit.device.openvino_runtime import find_openvino

    openvino, told, wholes = find_openvino(), [], []
    options = {name.upper(): runtime.conditions[name] for name in OPTIONS}
    try:
        compiled = openvino.Core().compile_model(str(model_path), "CPU", dict(options, PERF_COUNT=True, CACHE_DIR=""))
        request = compiled.create_infer_request()
        for _ in range(runs[1]):
            start = time.perf_counter()
            request.infer(feeds)
            wholes.append((time.perf_counter() - start) * 1e3)
            told.append([row for row in map(_row, request.profiling_info) if row is not None])
        kept_names = {node.get_friendly_name(): _original(node) for node in compiled.get_runtime_model().get_ops()}
    except Exception as error:  # noqa: BLE001 - OpenVINO's own errors have no other parent
        raise TinkitError("OpenVINO does not profile the model.", where=str(model_path), seen=str(error)) from None
    ran = {row[0] for run in told for row in run}
    nodes = _nodes(read_graph(model_path), {name: kept for name, kept in kept_names.items() if name in ran})
    return told[-runs[0] :], wholes[-runs[0] :], nodes


def _row(info):
    """(layer, ms, type) of what was executed; None for what was not."""
    if not str(info.status).endswith(".EXECUTED"):
        return None
    return info.node_name, info.real_time.total_seconds() * 1e3, info.node_type


def _original(node):
    told = node.rt_info["originalLayersNames"]
    return [name for name in str(getattr(told, "value", told)).split(",") if name]


def _nodes(graph, kept_names):
    """{layer: [nodes]} from {layer: [original names]}."""
    ends = {}
    for layer, names in kept_names.items():
        plain = [name[: -len(TAKEN_OFF)] if name.endswith(TAKEN_OFF) else name for name in names]
        known = [graph.by_name.get(name) or graph.writer.get(name) for name in plain]
        ends[layer] = [node.name for node in known if node is not None]
    return nodes_up_to(graph, ends)
