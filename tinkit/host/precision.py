"""Precision written into the graph: fp32 model -> fp16 model, and the rehearsal that shows on a CPU what fp16 does.

onnxruntime on a CPU leaves out the rounding between fp16 nodes, so a convolution that must overflow comes out clean
from the very file that ships. `rehearsal_graph` is that file in fp32 arithmetic with a cast to fp16 and back after
every fp16 node: it rounds and overflows where fp16 does. It rehearses the results of nodes, not sums inside of them:
what a board accumulates in fp16 is examined on the board only.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinkit.errors import TinkitError

NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
MAC_NODES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
TYPE_ATTRIBUTES = ("to", "dtype")  # of Cast, EyeLike and their like
SHOWN = 3  # names in a note


def to_fp16(model, io: str = "float32"):
    """(fp16 model, notes). Inputs and outputs keep float32, or become float16, as `io` says. `model` is not changed.

    Constants are rounded exactly as fp16 rounds: what is above 65504 becomes infinite and what is below 6e-8 becomes 0,
    both told in the notes; the converter's own habit of moving them to 1e4 and 1e-7 is switched off, because it would
    hide an overflow from the gate. Operators on the converter's list (Resize, Min, Max, TopK, ...) stay in fp32.
    """
    from onnxconverter_common import float16

    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    notes = _constant_notes(wanted)
    _part_outputs(wanted.graph)
    casts = {
        node.name for node in wanted.graph.node if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT
    }
    with np.errstate(over="ignore"):
        half = float16.convert_float_to_float16(
            wanted, min_positive_val=0.0, max_finite_val=float("inf"), keep_io_types=io == "float32"
        )
    for node in half.graph.node:  # the converter leaves the graph's own casts to fp32 alone, and they no longer fit
        if node.name in casts:
            node.attribute[0].i = TensorProto.FLOAT16
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TinkitError(
            "The graph cannot be written in fp16.",
            seen=str(error).strip().splitlines()[0],
            next_step="use an fp32 target",
        ) from None
    return half, notes


def _part_outputs(graph) -> None:
    """An output that the graph itself reads on (the embedding, by a head) gets a node of its own: the converter casts
    outputs back to fp32 and would hand that to the reader."""
    read = {name for node in graph.node for name in node.input}
    for output in graph.output:
        if output.name in read:
            inner = output.name + "/inner"
            for node in graph.node:
                for names in (node.input, node.output):
                    names[:] = [inner if name == output.name else name for name in names]
            graph.node.append(helper.make_node("Identity", [inner], [output.name], name=output.name + "/out"))


def _constant_notes(model) -> list[str]:
    huge, tiny, tiny_values = [], [], 0
    for name, values in _float_constants(model):
        with np.errstate(over="ignore", under="ignore"):
            half = values.astype(np.float16)
        if (np.isinf(half) & np.isfinite(values)).any():
            huge.append(name)
        if ((half == 0) & (values != 0)).any():
            tiny.append(name)
            tiny_values += int(((half == 0) & (values != 0)).sum())
    notes = []
    if huge:
        notes.append(f"fp16: {len(huge)} constants hold values above 65504, which become infinite ({_some(huge)})")
    if tiny:
        notes.append(f"fp16: {tiny_values} values below 6e-8 in {len(tiny)} constants become 0 ({_some(tiny)})")
    return notes


def _float_constants(model):
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            yield tensor.name, numpy_helper.to_array(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                yield node.name, numpy_helper.to_array(attribute.t)


def rehearsal_graph(fp16_model):
    """The fp16 model in fp32 arithmetic, rounded to fp16 after every node whose output is fp16.

    Every fp16 tensor keeps its name and dtype (inputs and outputs too); what computes with it takes "NAME/rounded", the
    same values in fp32. Raises TinkitError for graphs with control flow.
    """
    types = tensor_types(fp16_model)
    model = onnx.ModelProto()
    model.CopyFrom(fp16_model)
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_widened(tensor))
    constants = {tensor.name for tensor in graph.initializer}
    rounded = {name for name, kind in types.items() if kind == TensorProto.FLOAT16 and name not in constants}
    nodes = [
        _cast(value.name, f"{value.name}/rounded", TensorProto.FLOAT) for value in graph.input if value.name in rounded
    ]
    for node in graph.node:
        _widen_attributes(node)
        for index, name in enumerate(node.input):
            if name in rounded:
                node.input[index] = f"{name}/rounded"
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in rounded:
                node.output[index] = f"{name}/exact"
                nodes.append(_cast(f"{name}/exact", name, TensorProto.FLOAT16))
                nodes.append(_cast(name, f"{name}/rounded", TensorProto.FLOAT))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def probed(rehearsal):
    """(model, tensor -> node): a rehearsal graph that also gives out every fp16 tensor, and the node each comes from."""
    model = onnx.ModelProto()
    model.CopyFrom(rehearsal)
    sources = {
        out[: -len("/exact")]: node.name for node in model.graph.node for out in node.output if out.endswith("/exact")
    }
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in sources if name not in known
    )
    return model, sources


def tensor_types(model) -> dict[str, int]:
    """Name -> ONNX element type of every tensor in the main graph."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    unknown = [name for node in inferred.node for name in node.output if name and not types.get(name)]
    if unknown:
        raise TinkitError("The dtype of a tensor in the graph is not known.", seen=_some(unknown))
    return types


def precision_shares(model) -> dict:
    """What share of the weights that multiply is in fp16 and in fp32, by the dtype that each node computes in.

    Counted are the elements of constant weights of Conv, ConvTranspose, Gemm and MatMul; products of two activations
    (attention) have none and appear in `nodes` only.
    """
    types = tensor_types(model)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    nodes, weights = dict.fromkeys(NAMES.values(), 0), dict.fromkeys(NAMES.values(), 0)
    for node in model.graph.node:
        if node.op_type in MAC_NODES:
            name = NAMES.get(types[node.output[0]], "other")
            nodes[name] = nodes.get(name, 0) + 1
            weights[name] = weights.get(name, 0) + max(sizes.get(source, 0) for source in node.input[:2])
    total = max(sum(weights.values()), 1)
    shares = {name: count / total for name, count in weights.items()}
    return {**shares, "nodes": nodes, "unit": f"share of the weight elements of {', '.join(MAC_NODES)}"}


def _widened(tensor):
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _widen_attributes(node) -> None:
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise TinkitError(
                "A graph with control flow cannot be rehearsed in fp16.", seen=f"{node.op_type} {node.name}"
            )
        if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(_widened(attribute.t))
        if attribute.name in TYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT


def _cast(source, result, to):
    return helper.make_node("Cast", [source], [result], name=f"{result}/cast", to=to)


def _some(names) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
