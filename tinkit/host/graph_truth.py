"""Precision truth of an ONNX graph: what it says each multiplying node computes in, and what its weights are stored as.

The host's half of `tinkit.truth`. It reads the graph and nothing else, so it is as true as the runtime is obedient:
a strongly typed TensorRT builds exactly this and onnxruntime mostly; OpenVINO computes in what it is asked for, and
TensorRT 8 decides while it builds. What was really built is judged on the machine that built it.
"""

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from tinkit.fidelity import NOT_JUDGED
from tinkit.host import graphs
from tinkit.truth import UNKNOWN, Truth, judge_truth, shares

MULTIPLIES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
NAMES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}
MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")  # the same values, elsewhere


def graph_truth(model, target, node_macs=None) -> Truth:
    """The `Truth` of a graph against its target.

    node_macs: node name -> MACs of one picture of the nodes with constant weights; counted from the graph where not
    given. A node counts as int8 where its data and its weight both come from DequantizeLinear of 8-bit values, otherwise
    as the dtype of its output, which in ONNX is the dtype of its inputs. Layers are all multiplying nodes, those of two
    activations included. An OpenVINO fp16 target is judged by its stored weights; a weakly typed graph is not judged.
    """
    reader = _Reader(model)
    macs = graphs.node_macs(model, _size(model, target)) if node_macs is None else node_macs
    nodes = {node.name: node for node in model.graph.node if node.op_type in MULTIPLIES}
    computed = {name: reader.computed(node) for name, node in nodes.items()}
    lost = [name for name in macs if name not in nodes]
    found = shares(_sums((computed.get(name, UNKNOWN), count) for name, count in macs.items()))
    weights = shares(_sums(reader.stored(nodes[name]) for name in macs if name in nodes))
    layers = shares(_sums((name, 1) for name in computed.values()))
    stores = target.runtime == "openvino" and target.precision == "fp16"
    judged, what = (weights, "of the stored weights") if stores else (found, "of the MACs")
    verdict, reason = judge_truth(judged, target.precision, target.floor, what)
    notes = (f"{len(lost)} nodes with MACs are not in the graph ({', '.join(lost[:3])})",) if lost else ()
    truth = Truth("graph", target.precision, layers, found, target.floor, verdict, reason, notes, weights, target.compute)
    if target.weakly_typed:
        reason = f"not judged on the host, TensorRT 8 decides at build time; the graph asks for {reason}"
        return replace(truth, verdict=NOT_JUDGED, reason=reason)
    return truth


class _Reader:
    """Who writes a tensor, its dtype, and the size of a constant."""

    def __init__(self, model):
        self.types = graphs.tensor_types(model)
        self.writers = {name: node for node in model.graph.node for name in node.output}
        self.elements = _elements(model)

    def computed(self, node) -> str:
        if self._from_8_bit(node.input[0]) and self._from_8_bit(node.input[1]):
            return "int8"
        return self._name(node.output[0])

    def _from_8_bit(self, tensor) -> bool:
        writer = self.writers.get(self._source(tensor, MOVES))
        return writer is not None and writer.op_type == "DequantizeLinear" and self._name(writer.input[0]) == "int8"

    def stored(self, node):
        """(stored dtype, elements) of the constant behind a node's weight; unknown where there is none."""
        tensor = self._source(node.input[1], (*MOVES, "Cast", "QuantizeLinear", "DequantizeLinear"))
        return self._name(tensor) if tensor in self.elements else UNKNOWN, self.elements.get(tensor, 0)

    def _source(self, tensor, passed):
        """The tensor that a chain of nodes of the `passed` types starts from, along their first inputs."""
        while tensor in self.writers and self.writers[tensor].op_type in passed:
            tensor = self.writers[tensor].input[0]
        return tensor

    def _name(self, tensor) -> str:
        return NAMES.get(self.types.get(tensor, 0), "other")


def _elements(model) -> dict[str, int]:
    """Name -> number of elements of every constant, initialisers and Constant nodes."""
    found = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            found[node.output[0]] = int(np.prod(node.attribute[0].t.dims))
    return found


def _sums(pairs) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for name, amount in pairs:
        amounts[name] = amounts.get(name, 0) + amount
    return amounts


def _size(model, target) -> int:
    """The side of the network's input in pixels, from the graph's own input."""
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return dims[1] if target.input == "uint8-nhwc" else dims[2]
