"""Small questions to an ONNX graph that several steps ask: dtypes, constants, weights, multiply-accumulates.

A weight is found behind what stands between an initialiser and its node in reduced graphs (Q/DQ, Cast, Transpose, ...).
Products of two activations (attention) have no weight: they are never counted here, which is why these MACs are fewer
than those of torch's flop counter for a transformer.
"""

import math

import numpy as np
import onnx
from onnx import TensorProto

from tinkit.errors import TinkitError

NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
MAC_NODES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# between an initialiser and the node that multiplies with it; the first input carries the values
CARRIERS = (
    "Cast",
    "DequantizeLinear",
    "Flatten",
    "Identity",
    "QuantizeLinear",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
SHOWN = 3  # names in a note


def copied(model):
    """A copy of a ModelProto, to be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def replace_nodes(graph, nodes) -> None:
    """`nodes` (which may be of this graph, changed) become the graph's nodes, in this order."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def has_subgraph(node) -> bool:
    """Whether a node holds graphs of its own (If, Loop, Scan)."""
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def some(names) -> str:
    """The first names of a list, for a note."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def tensor_types(model) -> dict[str, int]:
    """Name -> ONNX element type of every tensor in the main graph. Raises TinkitError where inference finds none."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    unknown = [name for node in inferred.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise TinkitError("The dtype of a tensor in the graph is not known.", seen=some(unknown))
    return types


def constant_names(model) -> set[str]:
    """Names of all tensors that are the same for every picture: initialisers, and what is computed from them alone."""
    known = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
    for node in model.graph.node:
        read = [name for name in node.input if name]
        if not has_subgraph(node) and all(name in known for name in read) and not node.op_type.startswith("Random"):
            known.update(name for name in node.output if name)
    return known


def weight_sources(model) -> dict[str, str]:
    """Tensor -> the initialiser (or output of a Constant) whose values it carries, for every tensor that carries one."""
    sources = {tensor.name: tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            sources[node.output[0]] = node.output[0]
        elif node.op_type in CARRIERS and node.input[0] in sources:
            sources[node.output[0]] = sources[node.input[0]]
    return sources


def weight_of(node, sources: dict[str, str]) -> tuple[int, str]:
    """(input number, initialiser) of a node's constant weight, (-1, "") without one. `sources`: weight_sources(model).

    Of two constant inputs (a folded graph has none) the second counts. Other operators than MAC_NODES have no weight.
    """
    if node.op_type in MAC_NODES:
        for index in (1, 0) if node.op_type in ("Gemm", "MatMul") else (1,):
            if node.input[index] in sources:
                return index, sources[node.input[index]]
    return -1, ""


def node_macs(model, size) -> dict[str, int]:
    """Node -> multiply-accumulates of one picture, for the nodes with a constant weight, in the graph's order.

    `size`: the side of the picture in pixels or (height, width), used where the model leaves them free. A fixed batch is
    divided out. Shapes that ONNX's inference does not find (the legacy exporter computes some) are seen by running it once.
    """
    shapes, batch = _shapes(model, size)
    sources = weight_sources(model)
    weighed = [(node, *weight_of(node, sources)) for node in model.graph.node]
    counted = [(node, index) for node, index, weight in weighed if weight]
    needed = {name for node, index in counted for name in (node.input[0], node.input[index], node.output[0])}
    unknown = sorted(needed - set(shapes))
    if unknown:
        shapes.update(_shapes_seen(model, shapes, unknown))
    return {node.name: _macs(node, index, shapes) // batch for node, index in counted}


def _shapes_seen(model, shapes, names) -> dict[str, tuple]:
    """The shapes of `names` when the model is run on zeros. Raises as `tinkit.host.export.activations` does."""
    from tinkit.host.export.activations import activations  # it needs what is here

    feed = {
        value.name: np.zeros(shapes[value.name], onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in model.graph.input
    }
    return {name: seen.shape for name, seen in next(activations(model, [feed], names)).items()}


def _macs(node, index, shapes) -> int:
    weight, result = shapes[node.input[index]], math.prod(shapes[node.output[0]])
    if node.op_type == "Conv":  # weight: out, in / groups, kernel
        return result * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":  # weight: in, out / groups, kernel
        return math.prod(shapes[node.input[0]]) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        turned = any(a.name == ("transB" if index else "transA") and a.i for a in node.attribute)
        return result * weight[1 if turned == bool(index) else 0]
    inner = -2 if index and len(weight) > 1 else -1
    return result * weight[inner]


def _shapes(model, size) -> tuple[dict[str, tuple], int]:
    """(tensor -> shape, the batch that they are for): 1 where the batch is free."""
    height, width = (size, size) if isinstance(size, int) else size
    fixed, batch = copied(model), 1
    for value in fixed.graph.input:
        dims = value.type.tensor_type.shape.dim
        free = [index for index, dim in enumerate(dims) if not dim.HasField("dim_value")]
        if dims and 0 not in free:
            batch = dims[0].dim_value
        spatial = iter((height, width))
        for index in free:
            dims[index].dim_value = 1 if index == 0 else next(spatial, 1)
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes, batch
