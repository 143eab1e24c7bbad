"""Half precision written into the graph: fp32 (or Q/DQ) model -> the same model computing in fp16 or bf16.

One pass decides for every input and output of every node whether it is half or fp32, and casts a tensor once where both
meet. A node stays in fp32 when it is named to be kept, when ONNX does not define it in half at the model's opset, or when
it counts or sorts. Every tensor keeps its name where it is made, so the graphs before and after can be compared node by
node. Why this is not a library's work: docs/decisions/0007-which-converter.md.
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinkit.errors import TinkitError
from tinkit.host.export.graphs import MAC_NODES, NAMES, copied, has_subgraph, replace_nodes, some, tensor_types
from tinkit.host.export.half_constants import (
    HALVES,
    Half,
    constant_name,
    constant_notes,
    lift_constants,
    rounded,
    write_constants,
)

FLOAT = TensorProto.FLOAT
IO = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
ALWAYS_FP32 = (  # positions, orders, sums over a whole axis; the list of onnxconverter-common
    *("CumSum", "Max", "Min", "NonMaxSuppression", "Range", "Resize", "RoiAlign", "TopK", "Upsample"),
    *("Bernoulli", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
)
REFUSED = {"fp16": (), "bf16": ("HardSwish",)}  # by TensorRT's parser, whatever ONNX allows [ran: TensorRT-RTX 1.7]
FIXED = ("normalise/", "resize/")  # nodes that turn pixels into the network's input
OWN_DOMAINS = ("", "ai.onnx")
TYPED_BY_ATTRIBUTE = ("Cast", "ConstantOfShape")  # make floats of what is none; others say so in their own ways
TYPE_ATTRIBUTES = ("to", "dtype")  # of Cast, EyeLike and their like


def to_half(model, precision: str, io: str = "float32", keep=()):
    """(model computing in "fp16" or "bf16", notes). `model` is not changed.

    `keep`: names of nodes that stay in fp32. `io`: "float32" or "float16", the dtype of inputs and outputs that are
    float32 now. Constants are rounded to nearest even: what is too large becomes infinite and what is too small 0, both
    told in the notes; nodes that stay in fp32 read constants unrounded. The notes also name the operators that ONNX does
    not define in this precision at the model's opset (bf16 convolutions begin at opset 22). A DequantizeLinear of int32
    stays in fp32: its scale is a product of two and too small for fp16.
    Raises TinkitError for graphs with control flow and where the result is not valid, ValueError for an unknown name.
    """
    if precision not in HALVES or io not in IO:
        raise ValueError(f"no half precision {precision!r} with {io!r} inputs")
    unknown = set(keep) - {node.name for node in model.graph.node}
    if unknown:
        raise ValueError(f"no node of the model is called {some(sorted(unknown))}")
    branching = [node.name or node.op_type for node in model.graph.node if has_subgraph(node)]
    if branching:
        raise TinkitError(f"A graph with control flow cannot be written in {precision}.", seen=some(branching))
    wanted, half = copied(model), HALVES[precision]
    lift_constants(wanted.graph)
    types = tensor_types(wanted)
    ports, undefined = _all_ports(wanted, types, half, set(keep))
    writer = _Writer(wanted.graph, types, ports, IO[io])
    notes = constant_notes(wanted, writer.uses, half) + _undefined_notes(undefined, half, _opset(wanted))
    writer.write()
    write_constants(wanted.graph, writer.uses, half)
    try:
        onnx.checker.check_model(wanted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TinkitError(
            f"The graph cannot be written in {precision}.",
            seen=str(error).strip().splitlines()[0],
            next_step="use an fp32 target",
        ) from None
    return wanted, notes


class _Writer:
    """The graph in the making. `native`: the type in which each float tensor is made; `uses`: types a constant is read
    in; `copies`: the name of a tensor in another type than its native one, cast once and before its first reader."""

    def __init__(self, graph, types, ports, outside):
        self.graph, self.ports, self.outside = graph, ports, outside
        self.constants = {tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT}
        self.native = {value.name: outside for value in graph.input if types[value.name] == FLOAT}
        self.uses = defaultdict(set)
        for node, (inputs, outputs) in zip(graph.node, ports):
            for name, kind in zip(node.input, inputs):
                if name in self.constants and kind:
                    self.uses[name].add(kind)
            self.native.update({name: kind for name, kind in zip(node.output, outputs) if kind})
        self.renamed, self.copies, self.nodes = {}, {}, []
        for value in graph.output:
            native = self.native.get(value.name, outside)
            if types[value.name] == FLOAT and native != outside:
                self.renamed[value.name] = f"{value.name}/{NAMES[native]}"
                self.copies[value.name, outside] = value.name

    def write(self) -> None:
        """Nodes, inputs, outputs and value_info of the graph; constants are left as they are."""
        for node, (inputs, outputs) in zip(self.graph.node, self.ports):
            for index, kind in enumerate(inputs):
                if kind:
                    node.input[index] = self._read(node.input[index], kind)
            names = list(node.output)
            node.output[:] = [self.renamed.get(name, name) for name in names]
            _retype(node, outputs)
            self.nodes.append(node)
            for name in names:
                if name in self.renamed:  # an output of the graph; readers in the graph take what is before the cast
                    self._cast(self.renamed[name], name, self.outside)
        replace_nodes(self.graph, self.nodes)
        for value in (*self.graph.input, *self.graph.output):
            if value.type.tensor_type.elem_type == FLOAT:
                value.type.tensor_type.elem_type = self.outside
        del self.graph.value_info[:]  # tells the types that were, of constants too; shape inference knows better

    def _read(self, name, kind) -> str:
        if name in self.constants:
            return constant_name(name, kind, self.uses)
        if self.native.get(name, kind) == kind:
            return self.renamed.get(name, name)
        if (name, kind) not in self.copies:
            self.copies[name, kind] = f"{name}/{NAMES[kind]}"
            self._cast(self.renamed.get(name, name), self.copies[name, kind], kind)
        return self.copies[name, kind]

    def _cast(self, source, result, kind) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [result], name=f"{result}/cast", to=kind))


def _all_ports(model, types, half: Half, keep):
    """([(types of the inputs, types of the outputs)] for each node with 0 for what is not float, nodes without half)."""
    opset, ports, undefined = _opset(model), [], []
    for node in model.graph.node:
        inputs = [FLOAT if types.get(name) == FLOAT else 0 for name in node.input]
        outputs = [FLOAT if types.get(name) == FLOAT else 0 for name in node.output]
        if not _stays(node, inputs, types, keep) and node.op_type not in REFUSED[half.name]:
            schema = _schema(node, opset)
            halved = [
                [kind and _half_or_float(formal, index, half) for index, kind in enumerate(kinds)]
                for kinds, formal in ((inputs, schema and schema.inputs), (outputs, schema and schema.outputs))
            ]
            if any((*inputs, *outputs)) and half.onnx not in (*halved[0], *halved[1]):
                undefined.append(node)
            inputs, outputs = halved
        ports.append((inputs, outputs))
    return ports, undefined


def _stays(node, inputs, types, keep) -> bool:
    if node.name in keep or node.name.startswith(FIXED) or node.op_type in ALWAYS_FP32:
        return True
    if node.op_type == "DequantizeLinear":
        return types[node.input[0]] == TensorProto.INT32
    return not any(inputs) and node.op_type not in TYPED_BY_ATTRIBUTE


def _opset(model) -> int:
    return next(opset.version for opset in model.opset_import if opset.domain in OWN_DOMAINS)


def _schema(node, opset):
    if node.domain not in OWN_DOMAINS:
        return None
    return onnx.defs.get_schema(node.op_type, opset)


def _half_or_float(formal, index, half: Half) -> int:
    """The type of one input or output: half where ONNX allows it there. The last parameter may stand for many."""
    if not formal:
        return FLOAT
    allowed = formal[min(index, len(formal) - 1)].types
    return half.onnx if f"tensor({'float16' if half.name == 'fp16' else 'bfloat16'})" in allowed else FLOAT


def _retype(node, outputs) -> None:
    """What a node says about its own output's type, when that is half."""
    kind = outputs[0] if outputs else 0
    if kind in (0, FLOAT):
        return
    for attribute in node.attribute:
        if attribute.name in TYPE_ATTRIBUTES and attribute.i == FLOAT:
            attribute.i = kind
    if node.op_type == "ConstantOfShape":
        value = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, np.float32)
        del node.attribute[:]
        half = next(half for half in HALVES.values() if half.onnx == kind)
        node.attribute.append(helper.make_attribute("value", rounded("value", value, half)))


def _undefined_notes(nodes, half: Half, opset) -> list[str]:
    """A note about operators that ONNX does not define in half; those that multiply come first in it."""
    if not nodes:
        return []
    counts: dict[str, int] = defaultdict(int)
    for node in sorted(nodes, key=lambda node: node.op_type not in MAC_NODES):
        counts[node.op_type] += 1
    named = ", ".join(f"{count} {op}" for op, count in counts.items())
    return [
        f"{half.name}: {len(nodes)} nodes stay in fp32, ONNX has no {half.name} for them at opset {opset} ({named})"
    ]
