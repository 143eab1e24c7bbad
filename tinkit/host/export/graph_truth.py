"""Precision truth of an ONNX graph: what it says each multiplying node computes in, and what its weights are stored as.

The host's half of `tinkit.truth`. It reads the graph and nothing else, so it is as true as the runtime is obedient: a
strongly typed TensorRT builds what is written; OpenVINO computes in what it is asked for, onnxruntime computes fp16 on
a CPU as it likes, and TensorRT 8 decides while it builds. What was really built is judged on the machine that built it.
"""

import numpy as np
from onnx import TensorProto

from tinkit.fidelity import NOT_JUDGED
from tinkit.host.export import graphs
from tinkit.truth import UNKNOWN, Truth, judge_truth, shares

NAMES: dict[int, str] = {**graphs.NAMES, TensorProto.INT8: "int8", TensorProto.UINT8: "int8"}
MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # the same values, elsewhere


def graph_truth(model, target, node_macs=None) -> Truth:
    """The `Truth` of a graph against its target.

    node_macs: node name -> MACs of one picture of the nodes with constant weights; counted here where not given, from a
    graph that fixes all but its batch (ValueError otherwise). A node counts as int8 where its data and its weight both
    come from DequantizeLinear of 8-bit values (moved at most, not cast), otherwise as the dtype of its output, which in
    ONNX is that of its inputs. Layers are all multiplying nodes, products of two activations included. An OpenVINO fp16
    target is judged by its stored weights, with the arithmetic that it asks for in `computed`. A weakly typed graph is
    not judged.
    """
    macs = _macs(model) if node_macs is None else node_macs
    computed, stored = _computed(model), _stored(model)
    lost = [name for name in macs if name not in computed]
    notes = (f"{len(lost)} nodes with MACs are not in the graph ({graphs.some(lost)})",) if lost else ()
    found = shares(_sums((computed.get(name, UNKNOWN), count) for name, count in macs.items()))
    weights = shares(_sums(stored[name] for name in macs if name in stored))
    layers = shares(_sums((name, 1) for name in computed.values()))
    storage = target.runtime == "openvino" and target.precision == "fp16"
    judged, what = (weights, "of the stored weights") if storage else (found, "of the MACs")
    verdict, reason = judge_truth(judged, target.precision, target.floor, what)
    if target.weakly_typed:
        verdict, reason = NOT_JUDGED, _weak(target, reason)
    return Truth(
        subject="graph",
        precision=target.precision,
        layers=layers,
        macs=found,
        floor=target.floor,
        verdict=verdict,
        reason=reason,
        notes=notes,
        weights=weights,
        computed=target.compute,
    )


def _weak(target, reason) -> str:
    said = "not judged on the host: TensorRT 8 decides at build time"
    return f"{said}; the graph offers {reason}" if target.precision == "int8" else said


def _computed(model) -> dict[str, str]:
    """Name -> precision of every multiplying node."""
    types = graphs.tensor_types(model)
    writers = {name: node for node in model.graph.node for name in node.output}

    def is_8_bit(tensor) -> bool:
        while tensor in writers and writers[tensor].op_type in MOVES:
            tensor = writers[tensor].input[0]
        writer = writers.get(tensor)
        return writer is not None and writer.op_type == "DequantizeLinear" and _name(types[writer.input[0]]) == "int8"

    return {
        node.name: "int8" if all(is_8_bit(name) for name in node.input[:2]) else _name(types[node.output[0]])
        for node in model.graph.node
        if node.op_type in graphs.MAC_NODES
    }


def _stored(model) -> dict[str, tuple[str, int]]:
    """Name -> (stored dtype, elements) of the weight of every node that has one."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    sources, found = graphs.weight_sources(model), {}
    for node in model.graph.node:
        _, weight = graphs.weight_of(node, sources)
        if weight in constants:
            found[node.name] = (_name(constants[weight].data_type), int(np.prod(constants[weight].dims)))
    return found


def _macs(model) -> dict[str, int]:
    dims = model.graph.input[0].type.tensor_type.shape.dim[1:]
    if not all(dim.HasField("dim_value") for dim in dims):
        raise ValueError("node_macs must be given: the graph leaves the size of its input free")
    return graphs.node_macs(model, 1)  # a size that is not asked for


def _sums(pairs) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for name, amount in pairs:
        amounts[name] = amounts.get(name, 0) + amount
    return amounts


def _name(kind: int) -> str:
    return NAMES.get(kind, "other")
