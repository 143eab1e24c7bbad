"""Q/DQ nodes into an fp32 graph, by onnxruntime's QDQQuantizer, and the tidying that makes the file small and readable.

`int8` says which nodes compute in int8, between which ends their tensors are rounded, and what the runtime wants.
Kept out of the library's hands: who else reads a rounded tensor (nobody, unless wanted), names, and equal constants.
"""

import dataclasses

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinkit.errors import TinkitError
from tinkit.host.export.graphs import MAC_NODES, copied, replace_nodes

OPERATORS = ("Conv", "Gemm", "MatMul")
LOWEST = "int8/lowest"


@dataclasses.dataclass(frozen=True)
class Form:
    """How one runtime wants int8."""

    symmetric: bool  # int8 activations with zero point 0; else uint8 with any zero point
    float_weights: bool  # weights stay float behind Q/DQ; else stored as int8
    int32_bias: bool
    results: bool  # round what a Conv gives out, too, and the Add of two such tensors
    least_range: float  # no range is narrower: a constant tensor must not get a scale of 0
    shares_with_concat: bool = True  # a node may read rounded what a Concat reads as it is


def with_qdq(model, chosen, results, ranges, form: Form):
    """`model` with Q/DQ pairs on the inputs and weights of the nodes named `chosen`, and on the tensors `results`.

    A tensor of `results` is rounded for all its readers, an input of a chosen node for that node alone. `ranges` is
    {tensor: (low, high)}. `model` is not changed. Raises TinkitError when a range is not finite or the result not valid.
    """
    prepared = copied(model)
    nodes = [node for node in prepared.graph.node if node.name in chosen]
    _own_constants(prepared, nodes)
    aliases = _alias_inputs(prepared, nodes, results)
    _shield_float_nodes(prepared, chosen, results)
    wanted = {**{name: ranges[name] for name in results}, **{alias: ranges[name] for alias, name in aliases.items()}}
    written = _write(prepared, wanted, form, [node.name for node in nodes], results)
    _tidy(written, model, aliases)
    _check(written)
    return written


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


def _shield_float_nodes(model, chosen, results) -> None:
    """Put a Clip without effect between a tensor of `results` and a multiplying node that stays float.

    Between DequantizeLinear and QuantizeLinear onnxruntime rounds float weights to int8 by itself, and per tensor
    (WeightBiasQuantization, seen in 1.31): what is kept would be worse off than what is not.
    """
    shields = []
    for node in model.graph.node:
        if node.op_type in MAC_NODES and node.name not in chosen:
            for index, name in enumerate(node.input[:2]):
                if name in results:
                    node.input[index] = f"{node.name}/{index}/shield"
                    shields.append(helper.make_node("Clip", [name, LOWEST], node.input[index : index + 1]))
    for number, shield in enumerate(shields):
        shield.name = f"int8/shield{number}"
    if shields:
        model.graph.node.extend(shields)
        model.graph.initializer.append(numpy_helper.from_array(np.float32(np.finfo(np.float32).min), LOWEST))


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
    replace_nodes(graph, nodes)
    for one in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(one)
    del graph.value_info[:]
    written.CopyFrom(_sorted(written))
    del written.metadata_props[:]
    written.metadata_props.extend(model.metadata_props)
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


def _check(model) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise TinkitError(
            "The graph cannot be written in int8.",
            seen=str(error).strip().splitlines()[0],
            next_step="use an fp16 or fp32 target",
        ) from None
