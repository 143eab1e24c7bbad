"""The rehearsal of a half-precision graph: what it would answer if every node rounded, shown by fp32 arithmetic.

onnxruntime on a CPU leaves out the rounding between fp16 nodes, so a convolution that must overflow comes out clean
from the very file that ships; bf16 convolutions it does not run at all. `rehearsal_graph` is that file in fp32 arithmetic
with a cast to fp16 or bf16 and back after every such node: it rounds and overflows where they do. It rehearses the
results of nodes, not sums inside of them: what a board accumulates in fp16 is examined on the board only. How close that
comes to a runtime that computes in half is measured in docs/rehearsal.md.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinkit.errors import TinkitError
from tinkit.host.export.graphs import copied, has_subgraph, replace_nodes, tensor_types

FLOAT = TensorProto.FLOAT
HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")  # of Cast, EyeLike, DequantizeLinear and their like
EXACT, ROUNDED = "/exact", "/rounded"


def rehearsal_graph(model):
    """A model that computes in fp16, bf16, fp32 or a mixture, in fp32 arithmetic, rounded after every half node.

    Tensors keep their names: NAME is NAME/exact rounded to half, as float32. Only half inputs and outputs of the graph
    stay half, and what computes with them reads NAME/rounded. Q/DQ nodes stay, with scales of the same values in fp32,
    and what they dequantise to half is rounded. Raises TinkitError for graphs with control flow.
    """
    branching = [f"{node.op_type} {node.name}" for node in model.graph.node if has_subgraph(node)]
    if branching:
        raise TinkitError("A graph with control flow cannot be rehearsed.", seen=branching[0])
    types = tensor_types(model)
    rehearsal = copied(model)
    graph = rehearsal.graph
    for tensor in graph.initializer:
        if tensor.data_type in HALF_TYPES:
            tensor.CopyFrom(_widened(tensor))
    constants = {tensor.name for tensor in graph.initializer}
    rounded = {name: kind for name, kind in types.items() if kind in HALF_TYPES and name not in constants}
    outside = {value.name for value in (*graph.input, *graph.output)}
    readable = {name: name + ROUNDED for name in rounded if name in outside}
    nodes = [_cast(value.name, readable[value.name], FLOAT) for value in graph.input if value.name in readable]
    for node in graph.node:
        _widen_attributes(node)
        results = list(node.output)
        node.input[:] = [readable.get(name, name) for name in node.input]
        node.output[:] = [name + EXACT if name in rounded else name for name in results]
        nodes.append(node)
        for name in results:
            if name in rounded:
                half = name if name in outside else f"{name}/half"
                nodes.append(_cast(name + EXACT, half, rounded[name]))
                nodes.append(_cast(half, readable.get(name, name), FLOAT))
    replace_nodes(graph, nodes)
    del graph.value_info[:]
    onnx.checker.check_model(rehearsal, full_check=True)
    return rehearsal


def probed(rehearsal):
    """(model, tensor -> node): a rehearsal that also gives out every rounded tensor, and the node each comes from, in
    the graph's order. Outputs of the graph keep their type, the others are float32 with half's values."""
    model = copied(rehearsal)
    sources = {out[: -len(EXACT)]: node.name for node in model.graph.node for out in node.output if out.endswith(EXACT)}
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in sources if name not in known)
    return model, sources


def _widened(tensor):
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _widen_attributes(node) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_type in HALF_TYPES:
            attribute.t.CopyFrom(_widened(attribute.t))
        if attribute.name in TYPE_ATTRIBUTES and attribute.i in HALF_TYPES:
            attribute.i = FLOAT


def _cast(source, result, to):
    return helper.make_node("Cast", [source], [result], name=f"{result}/rehearsal", to=to)
