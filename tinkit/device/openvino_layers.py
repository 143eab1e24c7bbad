"""The layers of a model in OpenVINO: a second compilation that counts, its layers told by the names of ONNX nodes.

OpenVINO keeps "original names" of what it fused into a layer, but not all [ran, 2026.4]: of Conv, BatchNormalization, Relu the
last two, of MatMul + Add the Add, of a node that writes an output the output's name. A layer that multiplies and names no
product is the nearest one before what it names; what lies between two of its nodes is its own. Nothing else is added: a
LayerNormalization that it rewrote stays without a name. Its times are averages since the compilation [ran, 2026.4], so here a
layer's ms is the mean of the runs, not their median; what takes less than a microsecond is not told.
"""

import time

from tinkit.device.fused_nodes import nodes_between
from tinkit.device.onnx_nodes import read_graph
from tinkit.device.signal_stack import own_signal_stack
from tinkit.errors import TinkitError

TAKEN_OFF = "/WithoutBiases"  # what a product's name ends in where its bias was split off
PRODUCTS = {
    "Convolution": ("Conv",),
    "GroupConvolution": ("Conv",),
    "FullyConnected": ("MatMul", "Gemm"),
    "MatMul": ("MatMul", "Gemm"),
}  # OpenVINO's type of a layer -> ONNX operators
OPTIONS = ("inference_precision_hint", "inference_num_threads", "num_streams", "performance_hint",
           "dynamic_quantization_group_size")  # fmt: skip


def openvino_layers(runtime, feeds, runs, model_path):
    """([[(layer, ms, type)]], [wall ms], {layer: [nodes]}): one run each, the mean of the last of `runs`, (kept, made).

    Compiled with the options that the `runtime` says it was given. Raises TinkitError where OpenVINO does not do it.
    """
    from tinkit.device.openvino_runtime import find_openvino

    openvino, (kept, made) = find_openvino(), runs
    options = {name.upper(): runtime.conditions[name] for name in OPTIONS}
    try:
        with own_signal_stack():
            compiled = openvino.Core().compile_model(
                str(model_path), "CPU", dict(options, PERF_COUNT=True, CACHE_DIR="")
            )
        request = compiled.create_infer_request()
        for _ in range(made - kept):
            request.infer(feeds)
        before = request.profiling_info
        start = time.perf_counter()
        for _ in range(kept):
            request.infer(feeds)
        whole = (time.perf_counter() - start) * 1e3 / kept
        run = mean_times(before, request.profiling_info, kept, made)
        names = {node.get_friendly_name(): _original(node) for node in compiled.get_runtime_model().get_ops()}
    except Exception as error:  # noqa: BLE001 - OpenVINO's own errors have no other parent
        raise TinkitError("OpenVINO does not profile the model.", where=str(model_path), seen=str(error)) from None
    kinds = {name: kind for name, _, kind in run}
    nodes = nodes_of_names(read_graph(model_path), {name: names.get(name, []) for name in kinds}, kinds)
    return [run], [whole], nodes


def mean_times(before, after, kept, made):
    """[(layer, ms, type)] of what was executed: the mean of the last `kept` of `made` runs, from the averages of all runs
    `before` them and of all runs `after` them. A microsecond lost in the averages may make it up to 0.002 ms too low."""
    earlier = {info.node_name: info.real_time.total_seconds() for info in before}
    found = []
    for info in after:
        if str(info.status).endswith(".EXECUTED"):
            seconds = info.real_time.total_seconds() * made - earlier.get(info.node_name, 0.0) * (made - kept)
            found.append((info.node_name, max(seconds, 0.0) * 1e3 / kept, info.node_type))
    return found


def _original(node):
    told = node.rt_info["originalLayersNames"]
    return [name for name in str(getattr(told, "value", told)).split(",") if name]


def nodes_of_names(graph, kept_names, kinds):
    """{layer: [nodes]} from {layer: [original names]} and {layer: type}."""
    held = {}
    for layer, names in kept_names.items():
        plain = [name[: -len(TAKEN_OFF)] if name.endswith(TAKEN_OFF) else name for name in names]
        known = [graph.by_name.get(name) or graph.writer.get(name) for name in plain]
        held[layer] = {node.name for node in known if node is not None}
    for layer in list(held):
        others = {name for other, names in held.items() if other != layer for name in names}
        held[layer] |= _product(graph, held[layer], others, PRODUCTS.get(kinds[layer], ()))
        held[layer] |= _inside(graph, held[layer], others)
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    return {layer: sorted(names, key=lambda name: order[name]) for layer, names in held.items()}


def _product(graph, names, others, operators):
    """The one product before the nodes `names` with what lies between, {} where they hold one, or none or several are."""
    if not names or any(graph.by_name[name].op_type in operators for name in names):
        return set()
    before = nodes_between(graph, {tensor for name in names for tensor in graph.by_name[name].outputs}, set(), others)
    products = [name for name in before if graph.by_name[name].op_type in operators]
    if len(products) != 1:
        return set()
    return before - nodes_between(graph, set(graph.by_name[products[0]].inputs), set(), others)


def _inside(graph, names, others):
    """Nodes on a way from one of the nodes `names` to another, which no other layer names."""
    before = nodes_between(graph, {tensor for name in names for tensor in graph.by_name[name].outputs}, set(), others)
    return {name for name in before if names & nodes_between(graph, set(graph.by_name[name].inputs), set(), others)}
