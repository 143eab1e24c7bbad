"""How many bytes each node of a graph reads and writes for one picture: what a layer's least time on a board needs.

Sizes are those of the tensors as they stand in the graph; of a weight, of its smallest form on the way to its node (int8
behind a DequantizeLinear, also where the file holds fp32 and a QuantizeLinear): that is what a runtime keeps. Nothing is
said about caches, padding or layouts. The board subtracts what stays inside a fused layer.
"""

import math

import numpy as np
import onnx

from tinkit.host.export.graphs import CARRIERS, _shapes, _shapes_seen, constant_names, tensor_types

SELECTING = ("Gather", "GatherElements", "GatherND", "Slice", "Split")  # they need not read what they do not give


def node_bytes(model, size) -> dict[str, list[int]]:
    """Node -> [bytes read, bytes written, how many of the read ones are constants] of one picture, in the graph's order.

    A node without a name is called by its first output. Constants are read once for any batch, activations once a picture;
    a fixed batch is divided out. A node that computes from constants alone runs once, before any picture: [0, 0, 0]. `size`:
    the side of the picture in pixels or (height, width), used where the model leaves them free. Raises TinkitError where a
    dtype is not known.
    """
    sizes, batch = _tensor_bytes(model, size)
    constants, writers = constant_names(model), {node.output[0]: node for node in model.graph.node}
    found = {}
    for node in model.graph.node:
        name = node.name or node.output[0]
        if all(tensor in constants for tensor in node.output if tensor):
            found[name] = [0, 0, 0]
            continue
        weights = sum(_smallest_form(tensor, sizes, writers) for tensor in _inputs(node) if tensor in constants)
        read = sum(sizes[tensor] // batch for tensor in _inputs(node) if tensor not in constants)
        written = sum(sizes[tensor] // batch for tensor in node.output if tensor)
        found[name] = [weights + (min(read, written) if node.op_type in SELECTING else read), written, weights]
    return found


def _smallest_form(tensor, sizes, writers) -> int:
    """Bytes of a constant in its smallest form between the initialiser and the node that reads `tensor`."""
    least = sizes[tensor]
    while tensor in writers and writers[tensor].op_type in CARRIERS:
        tensor = writers[tensor].input[0]
        least = min(least, sizes[tensor])
    return least


def _inputs(node) -> list[str]:
    """Tensors that a node reads, each once."""
    return [name for name in dict.fromkeys(node.input) if name]


def _tensor_bytes(model, size) -> tuple[dict[str, int], int]:
    """(tensor -> bytes, the batch that they are for). Shapes that inference does not find are seen by running the model."""
    shapes, batch = _shapes(model, size)
    types = tensor_types(model)
    needed = {name for node in model.graph.node for name in (*node.input, *node.output) if name}
    unknown = sorted(needed - set(shapes))
    if unknown:
        shapes.update(_shapes_seen(model, shapes, unknown))
    return {name: math.prod(shapes[name]) * _item_bytes(types[name]) for name in needed}, batch


def _item_bytes(element_type: int) -> int:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element_type)).itemsize
