"""The nodes of an ONNX file, read without the onnx package: a board has none, and layers must be told by ONNX names.

An ONNX file is a protobuf message; of it only names are read: nodes with what they read and write, initialisers, inputs and
outputs. Field numbers are those of onnx.proto (ModelProto.graph 7; GraphProto.node 1, initializer 5, input 11, output 12;
NodeProto.input 1, output 2, name 3, op_type 4; TensorProto.name 8; ValueInfoProto.name 1). Left out: graphs inside nodes.
"""

import mmap
from collections import namedtuple

from tinkit.errors import TinkitError

Node = namedtuple("Node", ["name", "op_type", "inputs", "outputs"])
VIEWS = (
    "Flatten",
    "Identity",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
)  # the same values in the same order, under another shape
MOVERS = VIEWS + ("Transpose", "Cast", "ReorderInput", "ReorderOutput")  # they move values and compute nothing
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types
LONGEST_VARINT = 10  # bytes


class Graph:
    """nodes: [Node] in the file's order, where a node without a name is called by its first output; outputs: names.

    by_name: name -> Node. writer: tensor -> Node that writes it. readers: tensor -> [Node]. constants: tensors that are
    the same for every picture (initialisers and what is computed from them alone).
    """

    def __init__(self, nodes, initialisers=(), outputs=()):
        self.nodes, self.outputs = list(nodes), set(outputs)
        self.by_name = {node.name: node for node in self.nodes}
        self.writer = {name: node for node in self.nodes for name in node.outputs if name}
        self.readers = {}  # type: dict
        for node in self.nodes:
            for name in set(node.inputs) - {""}:
                self.readers.setdefault(name, []).append(node)
        self.constants = set(initialisers)
        for node in self.nodes:
            if all(name in self.constants for name in node.inputs if name) and not node.op_type.startswith("Random"):
                self.constants.update(name for name in node.outputs if name)


def read_graph(path):
    """The `Graph` of an ONNX file. Raises TinkitError for a file that is missing, damaged or no ONNX file."""
    try:
        with open(str(path), "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return graph_of(data)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise TinkitError("The nodes of the model cannot be read.", where=str(path), seen=str(error)) from None


def graph_of(data):
    """The `Graph` in the bytes of a ModelProto. Raises ValueError for bytes that are none."""
    spans = [value for number, value in _fields(data, 0, len(data)) if number == 7]
    if len(spans) != 1 or not isinstance(spans[0], tuple):
        raise ValueError("it has {} graphs, not one".format(len(spans)))
    nodes, initialisers, inputs, outputs = [], set(), set(), set()
    for number, span in _fields(data, *spans[0]):
        if number == 1:
            nodes.append(_node(data, span))
        elif number == 5:
            initialisers.update(_texts(data, span, 8))
        elif number == 11:
            inputs.update(_texts(data, span, 1))
        elif number == 12:
            outputs.update(_texts(data, span, 1))
    return Graph(nodes, initialisers - inputs, outputs)


def _node(data, span):
    found = {1: [], 2: [], 3: [], 4: []}  # type: dict
    for number, value in _fields(data, *_span(span)):
        if number in found:
            found[number].append(_text(data, value))
    inputs, outputs = tuple(found[1]), tuple(found[2])
    name = found[3][-1] if found[3] else ""
    return Node(name or (outputs[0] if outputs else ""), found[4][-1] if found[4] else "", inputs, outputs)


def _texts(data, span, wanted):
    return [_text(data, value) for number, value in _fields(data, *_span(span)) if number == wanted]


def _text(data, span):
    start, end = _span(span)
    return data[start:end].decode("utf-8")  # UnicodeDecodeError is a ValueError


def _span(value):
    if not isinstance(value, tuple):
        raise ValueError("a field is a number where a text or a message belongs")
    return value


def _fields(data, start, end):
    """(field number, value) in a message: a number, or (start, end) of what has a length. ValueError where it is damaged."""
    while start < end:
        key, start = _varint(data, start, end)
        kind, value = key & 7, None
        if kind == VARINT:
            value, start = _varint(data, start, end)
        elif kind == LENGTH:
            size, start = _varint(data, start, end)
            value, start = (start, start + size), start + size
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            start += 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError("no protobuf field begins at byte {}".format(start))
        if start > end:
            raise ValueError("a field ends after its message")
        yield key >> 3, value


def _varint(data, start, end):
    value = 0
    for shift in range(LONGEST_VARINT):
        if start >= end:
            break
        byte = data[start]
        start += 1
        value |= (byte & 127) << (7 * shift)
        if byte < 128:
            return value, start
    raise ValueError("a number does not end, at byte {}".format(start))
