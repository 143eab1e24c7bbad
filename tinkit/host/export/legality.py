"""What the runtime of a target can read: a graph against the limits of TensorRT 8.5, 8.6 and 10, and of onnxruntime.

No parser of TensorRT 8 runs on a workstation, so its limits are tables here. Certain, from onnx-tensorrt's own
docs/operators.md and Changelog.md: the operators of 8.5; that 8.6 added LayerNormalization, GroupNormalization and IsInf;
the operators of 10.15; that no version takes an antialiased or cubic Resize; uint8 inputs since 8.5. Certain, from the
parsers' sources: 8.5 and 8.6 read the axes of ReduceMean, Max, Min and Prod from the attribute alone and silently reduce
over everything when they come as an input. A reading: that 8.6 lost no operator of 8.5, and that Gelu is the only one of
10.15's list that our exporters write beyond 8.6's (10.0 has it). Not checked: shapes, and what the builder refuses.
"""

from dataclasses import dataclass

import onnx
from onnx import TensorProto, numpy_helper

from tinkit.host.export.graphs import constant_names, tensor_types
from tinkit.target import Target

_LISTED_85 = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip
Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout
Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool
GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GRU HardSwish HardSigmoid Identity If
InstanceNormalization IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool
MatMul Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad
Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
Reshape Resize ReverseSequence RNN RoiAlign Round Scan Scatter ScatterElements ScatterND Selu Shape Shrink
Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS_85 = frozenset(_LISTED_85.split())
OPERATORS_86 = OPERATORS_85 | {"LayerNormalization", "GroupNormalization", "IsInf"}
OPERATORS_10 = OPERATORS_86 | {"CastLike", "Gelu", "Hardmax", "Mish"}


@dataclass(frozen=True)
class Generation:
    """What one generation of TensorRT reads: the highest opset, and the operators."""

    name: str
    opset: int
    operators: frozenset


GENERATIONS = {
    "8.5": Generation("TensorRT 8.5", 16, OPERATORS_85),  # its list says 17, whose one new operator here it lacks
    "8.6": Generation("TensorRT 8.6", 17, OPERATORS_86),
    "10": Generation("TensorRT 10", 20, OPERATORS_10),
    "10.13": Generation("TensorRT 10.13", 22, OPERATORS_10),  # bf16 targets
}
AXES_BY_ATTRIBUTE = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")  # in TensorRT 8
AXES_INPUT = {"Pad": 3, "Squeeze": 1, "Unsqueeze": 1, "Slice": 3}  # operator -> the input that holds its axes
RESIZE_MODES = ("nearest", "linear")
RESIZE_ATTRIBUTES = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": b"stretch"}


def generation_of(target: Target) -> Generation:
    """The oldest TensorRT that a target is for."""
    if target.weakly_typed:
        return GENERATIONS["8.5" if target.opset <= 16 else "8.6"]
    return GENERATIONS["10.13" if target.precision == "bf16" else "10"]


def problems(model, target: Target) -> list[str]:
    """What the target's runtime cannot read in `model` (a ModelProto), one sentence each; empty when it reads all."""
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    found = _foreign(model)
    if target.runtime == "onnxruntime":
        return found + _onnxruntime_problems(model)
    if target.runtime == "tensorrt":
        generation = generation_of(target)
        if opset > generation.opset:
            found.append(f"the graph has opset {opset}, {generation.name} reads up to {generation.opset}")
        found += _operator_problems(model, generation)
        found += _axes_problems(model, generation, opset)
        found += _resize_problems(model)
        found += _quantisation_problems(model)
    return found


def _foreign(model) -> list[str]:
    return [
        f"{_told(node)} is of the domain {node.domain}, not ONNX's own"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx")
    ]


def _operator_problems(model, generation) -> list[str]:
    return [
        f"{_told(node)} is an operator that {generation.name} does not have"
        for node in model.graph.node
        if node.domain in ("", "ai.onnx") and node.op_type not in generation.operators
    ]


def _axes_problems(model, generation, opset) -> list[str]:
    """Axes as an input: not for four reductions in TensorRT 8, and a constant everywhere."""
    old, constants, found = generation.opset < 18, constant_names(model), []
    for node in model.graph.node:
        if old and node.op_type in AXES_BY_ATTRIBUTE and len(node.input) > 1 and node.input[1]:
            found.append(
                f"{_told(node)} has its axes as an input, which {generation.name} does not read (opset {opset})"
            )
            continue
        place = 1 if node.op_type.startswith("Reduce") else AXES_INPUT.get(node.op_type, len(node.input))
        if len(node.input) > place and node.input[place] and node.input[place] not in constants:
            found.append(f"{_told(node)} computes its axes ({node.input[place]}); TensorRT wants a constant")
    return found


def _resize_problems(model) -> list[str]:
    found = []
    for node in model.graph.node:
        if node.op_type != "Resize":
            continue
        seen = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        mode = seen.get("mode", b"nearest").decode()
        if mode not in RESIZE_MODES:
            found.append(f"{_told(node)} has mode {mode}; TensorRT has {' and '.join(RESIZE_MODES)}")
        for name, plain in RESIZE_ATTRIBUTES.items():
            if seen.get(name, plain) != plain:
                found.append(f"{_told(node)} asks for {name}, which TensorRT does not have")
    return found


def _quantisation_problems(model) -> list[str]:
    """Q/DQ for TensorRT: int8, zero point 0, no int32 (a quantised bias)."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types = tensor_types(model) if any(_is_qdq(node) for node in model.graph.node) else {}
    found = []
    for node in filter(_is_qdq, model.graph.node):
        kind = types[node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]]
        if kind != TensorProto.INT8:
            name = TensorProto.DataType.Name(kind).lower()
            found.append(f"{_told(node)} is of {name}; TensorRT quantises to int8 alone")
        zero = node.input[2] if len(node.input) > 2 else ""
        if zero and zero not in constants:
            found.append(f"{_told(node)} computes its zero point ({zero}); TensorRT wants the constant 0")
        elif zero and numpy_helper.to_array(constants[zero]).any():
            found.append(f"{_told(node)} has a zero point that is not 0")
    return found


def _onnxruntime_problems(model) -> list[str]:
    """bf16 convolutions and products: onnxruntime has no kernel for them on a CPU."""
    types = tensor_types(model) if _mentions_bf16(model) else {}
    return [
        f"{_told(node)} computes in bf16, for which onnxruntime has no kernel"
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose") and types.get(node.output[0]) == TensorProto.BFLOAT16
    ]


def _mentions_bf16(model) -> bool:
    casts = (attribute.i for node in model.graph.node for attribute in node.attribute if attribute.name == "to")
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    kinds = [*(tensor.data_type for tensor in model.graph.initializer), *casts]
    return TensorProto.BFLOAT16 in [*kinds, *(value.type.tensor_type.elem_type for value in values)]


def _is_qdq(node) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _told(node) -> str:
    """ "blocks.0/Gelu (Gelu)", for a sentence."""
    return f"{node.name or node.output[0]} ({node.op_type})"
