"""int8 written into the graph: an fp32 model and the ranges of its tensors -> the same model with Q/DQ nodes.

Runtimes want opposite things of int8, so there is a form for each and never one file for two: TensorRT takes symmetric
int8 and float weights behind Q/DQ, the x86 kernels of onnxruntime and OpenVINO take uint8 and stored int8 weights.
Only Conv, Gemm and MatMul with a constant weight compute in int8, per channel; products of two activations (attention),
Softmax, norms, GELU and their like stay float. Which nodes and tensors is decided here, between which ends they are
rounded in `calibration`, and `qdq` writes it.
"""

from onnx import TensorProto, helper

from tinkit.host.export.calibration import CALIBRATIONS
from tinkit.host.export.graphs import copied, replace_nodes, some
from tinkit.host.export.qdq import OPERATORS, Form, with_qdq

__all__ = ["CALIBRATIONS", "FORMS", "quantisable", "to_int8"]


FORMS = {
    # fp16 has nothing below 6e-8, and the rest may be fp16: a range of 1e-4 is a scale of 8e-7
    "tensorrt": Form(symmetric=True, float_weights=True, int32_bias=False, results=False, least_range=1e-4),
    # onnxruntime computes a Conv in int8 only between int8 tensors
    "onnxruntime": Form(symmetric=False, float_weights=False, int32_bias=True, results=True, least_range=1e-8),
    # OpenVINO 2026.4 gives wrong answers where a Concat reads what an int8 node reads, too (efficientvit's attention)
    "openvino": Form(
        symmetric=False,
        float_weights=False,
        int32_bias=False,
        results=False,
        least_range=1e-8,
        shares_with_concat=False,
    ),
}
CLAMPS = ("Relu", "Clip")  # onnxruntime folds them into the rounding behind them
KEPT = ("normalise/", "resize/")  # what prepares the picture is never rounded


def quantisable(model) -> list[str]:
    """Names of the nodes that `to_int8` can turn to int8: those that multiply with a constant weight."""
    constants = _float_constants(model)
    return [node.name for node in model.graph.node if _obstacle(node, constants) == ""]


def to_int8(model, ranges, form: str, keep=()):
    """(int8 model, notes). `model` is fp32 with named nodes and is not changed; `form` is one of FORMS.

    `ranges` is {tensor: (low, high)} of `Histograms.ranges`; `keep` are names of nodes that stay as they are.
    Every node of `model` is still there under its name, and so is every tensor that a node computes: a Q/DQ pair is
    a new tensor beside it, so the two graphs can be compared tensor by tensor. New nodes and tensors have short names
    ("int8/12"), because the file is small and the names are many; a stored weight or bias is called "NAME/int8".
    Nodes that stay float are counted in the notes with the reason. Raises ValueError for unknown names.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: one of {', '.join(FORMS)}")
    names = [node.name for node in model.graph.node]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError("every node needs a name of its own")
    if unknown := sorted(set(keep) - set(names)):
        raise ValueError(f"keep: no such nodes: {some(unknown)}")
    prepared = copied(model)
    _constants_as_initializers(prepared)
    chosen, notes = _choose(prepared, ranges, FORMS[form], frozenset(keep))
    if not chosen:
        return prepared, notes
    results = _results(prepared, chosen, ranges, frozenset(keep)) if FORMS[form].results else []
    return with_qdq(prepared, [node.name for node in chosen], results, ranges, FORMS[form]), notes


def _obstacle(node, constants) -> str | None:
    """Why a multiplying node cannot be int8: "" where it can, None for nodes that do not multiply."""
    if node.op_type not in (*OPERATORS, "ConvTranspose"):
        return None
    if node.op_type == "ConvTranspose":
        return "ConvTranspose is not written in int8"
    if node.name.startswith(KEPT):
        return "it prepares the picture"
    weight = constants.get(node.input[1])
    if weight is None or node.input[0] in constants:
        return "both factors are activations" if node.op_type == "MatMul" else "its weight is not a float constant"
    if node.op_type == "MatMul" and len(weight.dims) < 2:
        return "its weight is a vector"
    if node.op_type == "Gemm":
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if values.get("transA", 0) or values.get("beta", 1.0) != 1.0:
            return "a Gemm with transA or beta"
    if len(node.input) > 2 and node.input[2] and node.input[2] not in constants:
        return "its bias is not a constant"
    return ""


def _choose(model, ranges, form, keep):
    """(the nodes that become int8, notes about the others)."""
    constants = _float_constants(model)
    outputs = {value.name for value in model.graph.output}
    read = {name for node in model.graph.node for name in node.input}
    concats = [node for node in model.graph.node if node.op_type == "Concat" and not form.shares_with_concat]
    joined = {name for node in concats for name in node.input}
    chosen, left_out = [], {}
    for node in model.graph.node:
        reason = _obstacle(node, constants)
        if reason is None:
            continue
        if not reason and node.name in keep:
            reason = "kept as asked"
        elif not reason and form.results and node.output[0] in outputs & (read if node.op_type != "Conv" else outputs):
            reason = "its output is one of the model's, and would be rounded for an int8 kernel"
        elif not reason and node.input[0] in joined:
            reason = "a Concat reads the same tensor, and OpenVINO would hand it the rounded one"
        elif not reason and not _known(ranges, node, form):
            reason = "no range was calibrated"
        if reason:
            left_out.setdefault(reason, []).append(node.name)
        else:
            chosen.append(node)
    notes = [f"int8: {len(names)} nodes stay float: {reason} ({some(names)})" for reason, names in left_out.items()]
    return chosen, notes


def _known(ranges, node, form) -> bool:
    return node.input[0] in ranges and (node.op_type != "Conv" or not form.results or node.output[0] in ranges)


def _results(model, chosen, ranges, keep) -> list[str]:
    """The tensors that int8 convolutions give out, past a clamp, and the sums of two of them.

    onnxruntime rounds what a node gives out for all readers or for none: what goes straight from one Gemm or MatMul to
    the next belongs here, too.
    """
    outputs = {value.name for value in model.graph.output}
    readers: dict[str, list] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    convolutions = {node.name for node in chosen if node.op_type == "Conv"}
    inputs = {node.input[0] for node in chosen}
    roundable = {node.output[0] for node in model.graph.node if node.name not in keep} & ranges.keys() - outputs
    results: dict[str, None] = {}
    for node in model.graph.node:
        name = node.output[0] if node.output else ""
        if node.name in convolutions:
            after = readers.get(name, [])
            if len(after) == 1 and after[0].op_type in CLAMPS and after[0].output[0] in roundable:
                name = after[0].output[0]
            results[name] = None
        elif name in roundable:
            is_sum = node.op_type == "Add" and all(source in results for source in node.input)
            if is_sum or (node.op_type in OPERATORS and name in inputs):
                results[name] = None
    return list(results)


def _constants_as_initializers(model) -> None:
    """Weights that come from Constant nodes become initialisers; changes `model`."""
    read = {name for node in model.graph.node if node.op_type in OPERATORS for name in node.input[1:]}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in read and node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            model.graph.initializer.append(node.attribute[0].t)
        else:
            nodes.append(node)
    replace_nodes(model.graph, nodes)


def _float_constants(model) -> dict:
    """{name: tensor} of the float initialisers and Constant nodes."""
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return {name: one for name, one in constants.items() if one.data_type == TensorProto.FLOAT}
