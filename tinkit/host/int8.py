"""int8 written into the graph: an fp32 model and the ranges of its tensors -> the same model with Q/DQ nodes.

Runtimes want opposite things of int8, so there is a form for each and never one file for two: TensorRT takes symmetric
int8 and float weights behind Q/DQ, the x86 kernels of onnxruntime and OpenVINO take uint8 and stored int8 weights.
Only Conv, Gemm and MatMul with a constant weight compute in int8, per channel; products of two activations (attention),
Softmax, norms, GELU and their like stay float. onnxruntime's QDQQuantizer writes the nodes; which tensors are rounded,
and between which ends, is decided here and in `calibration`.
"""

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinkit.errors import TinkitError
from tinkit.host.calibration import CALIBRATIONS

__all__ = ["CALIBRATIONS", "FORMS", "quantisable", "to_int8"]


@dataclasses.dataclass(frozen=True)
class Form:
    """How one runtime wants int8."""

    symmetric: bool  # int8 activations with zero point 0; else uint8 with any zero point
    float_weights: bool  # weights stay float behind Q/DQ; else stored as int8
    int32_bias: bool
    results: bool  # round what a Conv gives out, too, and the Add of two such tensors
    least_range: float  # no range is narrower: a constant tensor must not get a scale of 0


FORMS = {
    # fp16 has nothing below 6e-8, and the rest may be fp16: a range of 1e-4 is a scale of 8e-7
    "tensorrt": Form(symmetric=True, float_weights=True, int32_bias=False, results=False, least_range=1e-4),
    # onnxruntime computes a Conv in int8 only between int8 tensors
    "onnxruntime": Form(symmetric=False, float_weights=False, int32_bias=True, results=True, least_range=1e-8),
    "openvino": Form(symmetric=False, float_weights=False, int32_bias=False, results=False, least_range=1e-8),
}
OPERATORS = ("Conv", "Gemm", "MatMul")
CLAMPS = ("Relu", "Clip")  # onnxruntime folds them into the rounding behind them
KEPT = ("normalise/", "resize/")  # what prepares the picture is never rounded
SHOWN = 3  # names in a note


def quantisable(model) -> list[str]:
    """Names of the nodes that `to_int8` can turn to int8: those that multiply with a constant weight."""
    constants = _float_constants(model)
    return [node.name for node in model.graph.node if _obstacle(node, constants) == ""]


def to_int8(model, ranges, form: str, keep=()):
    """(int8 model, notes). `model` is fp32 with named nodes and is not changed; `form` is one of FORMS.

    `ranges` is {tensor: (low, high)} of `Histograms.ranges`; `keep` are names of nodes that stay as they are.
    Every node of `model` is still there under its name, and so is every tensor that a node computes: a Q/DQ pair is
    a new tensor beside it, so the two graphs can be compared tensor by tensor. New nodes and tensors have short names
    ("int8/12"), because the file is small and the names are many; a stored weight is called "NAME/int8".
    Nodes that stay float are counted in the notes with the reason. Raises ValueError for unknown names.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: one of {', '.join(FORMS)}")
    names = [node.name for node in model.graph.node]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError("every node needs a name of its own")
    if unknown := sorted(set(keep) - set(names)):
        raise ValueError(f"keep: no such nodes: {_some(unknown)}")
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    _constants_as_initializers(prepared)
    chosen, notes = _choose(prepared, ranges, FORMS[form], frozenset(keep))
    if not chosen:
        return prepared, notes
    _own_constants(prepared, chosen)
    results = _results(prepared, chosen, ranges, frozenset(keep)) if FORMS[form].results else []
    aliases = _alias_inputs(prepared, chosen, results)
    wanted = {**{name: ranges[name] for name in results}, **{alias: ranges[name] for alias, name in aliases.items()}}
    written = _write(prepared, wanted, FORMS[form], [node.name for node in chosen], results)
    _tidy(written, model, aliases)
    _check(written)
    return written, notes


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
    chosen, left_out = [], {}
    for node in model.graph.node:
        reason = _obstacle(node, constants)
        if reason is None:
            continue
        if not reason and node.name in keep:
            reason = "kept as asked"
        elif not reason and form.results and node.output[0] in outputs & (read if node.op_type != "Conv" else outputs):
            reason = "its output is one of the model's, and would be rounded for an int8 kernel"
        elif not reason and not _known(ranges, node, form):
            reason = "no range was calibrated"
        if reason:
            left_out.setdefault(reason, []).append(node.name)
        else:
            chosen.append(node)
    notes = [f"int8: {len(names)} nodes stay float: {reason} ({_some(names)})" for reason, names in left_out.items()]
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
        elif name in roundable and node.op_type == "Add" and all(source in results for source in node.input):
            results[name] = None
        elif name in roundable & inputs and node.op_type in OPERATORS:
            results[name] = None
    return list(results)


def _alias_inputs(model, chosen, results) -> dict[str, str]:
    """Let the chosen nodes read every other tensor through an Identity of their own: {its output: the tensor}.

    Only what it leads to is rounded: other readers, a residual Add or the model's own outputs, get the exact tensor.
    """
    aliases: dict[str, str] = {}
    for node in chosen:
        name = node.input[0]
        if name not in results:
            aliases[f"{name}/int8-alias"] = name
            node.input[0] = f"{name}/int8-alias"
    model.graph.node.extend(
        helper.make_node("Identity", [name], [alias], name=alias) for alias, name in aliases.items()
    )
    return aliases


def _write(model, ranges, form, nodes, results):
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    ends = {name: (np.float32(min(low, 0.0)), np.float32(max(high, 0.0))) for name, (low, high) in ranges.items()}
    for name, (low, high) in ends.items():
        if not np.isfinite(low) or not np.isfinite(high):
            raise TinkitError("The range of a tensor is not finite.", where=name, seen=f"{low} to {high}")
    quantizer = QDQQuantizer(
        model=_sorted(model),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if form.symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ends),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options={
            "ActivationSymmetric": form.symmetric,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": form.float_weights,
            "QuantizeBias": form.int32_bias,
            "OpTypesToExcludeOutputQuantization": list(OPERATORS),
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": -1},  # its own default is wrong for weights of rank 3
            "MinimumRealRange": form.least_range,
        },
    )
    for name in results:
        quantizer.quantize_activation_tensor(name)
    quantizer.quantize_model()
    return quantizer.model.model


def _sorted(model):
    from onnxruntime.quantization.onnx_model import ONNXModel

    wrapped = ONNXModel(model)
    wrapped.topological_sort()
    return wrapped.model


def _tidy(written, model, aliases) -> None:
    """Take the aliases out, merge equal constants, give new things short names and sort; changes `written`."""
    graph = written.graph
    nodes = [node for node in graph.node if node.name not in aliases]
    int32 = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT32}
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in int32:
            del node.input[2:]  # the zero point of an int32 bias is 0, and may be left out
    old = _tensor_names(model.graph)
    merged = {**aliases, **_merged_constants(graph, old)}
    for node in nodes:
        node.input[:] = [merged.get(name, name) for name in node.input]
    names: dict[str, str] = {}
    for name in (name for node in nodes for name in (*node.input, *node.output)):
        if name and name not in old and name not in names:
            weight = name.removesuffix("_quantized")
            names[name] = f"{weight}/int8" if weight in old else f"int8/{len(names)}"
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = node.output[0]
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    for one in graph.initializer:
        one.name = names.get(one.name, one.name)
    _replace(graph.node, nodes)
    _replace(graph.initializer, [one for one in graph.initializer if one.name in used])
    del graph.value_info[:]
    written.CopyFrom(_sorted(written))
    _replace(written.metadata_props, model.metadata_props)
    written.producer_name, written.producer_version = model.producer_name, model.producer_version


def _merged_constants(graph, old) -> dict[str, str]:
    """{new constant: the first new one that is equal to it}: scales and zero points are many and alike."""
    first: dict[tuple, str] = {}
    merged = {}
    for tensor in graph.initializer:
        if tensor.name not in old:
            key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
            known = first.setdefault(key, tensor.name)
            if known != tensor.name:
                merged[tensor.name] = known
    return merged


def _tensor_names(graph) -> set[str]:
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return names | {one.name for one in (*graph.input, *graph.output, *graph.initializer)}


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
    _replace(model.graph.node, nodes)


def _own_constants(model, chosen) -> None:
    """A weight or bias that somebody else reads, too, is copied: whoever stays float keeps its exact values."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in chosen:
        for index, name in enumerate(node.input):
            if index and readers.get(name, 0) > 1:
                copy = model.graph.initializer.add()
                copy.CopyFrom(initializers[name])
                copy.name = node.input[index] = f"{name}/{node.name}"


def _float_constants(model) -> dict:
    """{name: tensor} of the float initialisers and Constant nodes."""
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return {name: one for name, one in constants.items() if one.data_type == TensorProto.FLOAT}


def _check(model) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TinkitError(
            "The graph cannot be written in int8.",
            seen=str(error).strip().splitlines()[0],
            next_step="use an fp16 or fp32 target",
        ) from None


def _replace(repeated, items) -> None:
    """Put copies of `items` in the place of what a repeated protobuf field holds."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del repeated[:]
    repeated.extend(copies)


def _some(names) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
