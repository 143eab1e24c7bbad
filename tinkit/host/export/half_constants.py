"""The constants of a graph in half precision: rounded exactly as fp16 and bf16 round, and what is lost is told.

A constant that nodes of two precisions read is there twice, so a node that stays in fp32 reads what the fp32 model holds.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tinkit.host.export.graphs import NAMES, replace_nodes, some

FLOAT = TensorProto.FLOAT
COARSE_SCALE = 0.01  # relative error of a rounded quantisation scale that is told


@dataclass(frozen=True)
class Half:
    """A half precision: its ONNX and numpy type, and its limits in words."""

    name: str
    onnx: int
    numpy: type
    largest: str
    smallest: str


HALVES = {
    "fp16": Half("fp16", TensorProto.FLOAT16, np.float16, "65504", "6e-8"),
    "bf16": Half("bf16", TensorProto.BFLOAT16, ml_dtypes.bfloat16, "3.4e38", "9e-41"),
}


def lift_constants(graph) -> None:
    """Float Constant nodes become initialisers, which are written in each type that is read."""
    left = []
    for node in graph.node:
        attribute = node.attribute[0] if node.op_type == "Constant" else None
        if attribute is not None and attribute.name == "value" and attribute.t.data_type == FLOAT:
            graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(attribute.t), node.output[0]))
        elif attribute is not None and attribute.name in ("value_float", "value_floats"):
            value = np.asarray(helper.get_attribute_value(attribute), np.float32)
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        else:
            left.append(node)
    replace_nodes(graph, left)


def constant_name(name, kind, uses) -> str:
    """The name under which a constant is read in a type: its own, unless it is read in two."""
    return name if kind == FLOAT or len(uses[name]) == 1 else f"{name}/{NAMES[kind]}"


def write_constants(graph, uses, half: Half) -> None:
    """Each float constant in the types that it is read in. `uses`: name -> set of ONNX types."""
    for tensor in list(graph.initializer):
        if half.onnx in uses.get(tensor.name, ()):
            name = constant_name(tensor.name, half.onnx, uses)
            written = rounded(name, numpy_helper.to_array(tensor), half)
            if name != tensor.name:
                graph.initializer.append(written)
            else:
                tensor.CopyFrom(written)


def rounded(name, values, half: Half):
    """A TensorProto of float32 `values` in half, rounded to nearest even."""
    with np.errstate(over="ignore", under="ignore"):
        raw = values.astype(half.numpy).tobytes()
    return helper.make_tensor(name, half.onnx, values.shape, raw, raw=True)


def constant_notes(model, uses, half: Half) -> list[str]:
    """What rounding takes from the constants of an fp32 model that are read in half."""
    scales = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    huge, tiny, coarse, tiny_values = [], [], [], 0
    for tensor in model.graph.initializer:
        if half.onnx not in uses.get(tensor.name, ()):
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore", under="ignore"):
            short = values.astype(half.numpy).astype(np.float32)
        if (np.isinf(short) & np.isfinite(values)).any():
            huge.append(tensor.name)
        lost = int(((short == 0) & (values != 0)).sum())
        if lost:
            tiny.append(tensor.name)
            tiny_values += lost
        if tensor.name in scales and (np.abs(short - values) > COARSE_SCALE * np.abs(values)).any():
            coarse.append(tensor.name)
    notes = []
    if huge:
        notes.append(
            f"{half.name}: {len(huge)} constants hold values above {half.largest}, which become infinite ({some(huge)})"
        )
    if tiny:
        notes.append(
            f"{half.name}: {tiny_values} values below {half.smallest} in {len(tiny)} constants become 0 ({some(tiny)})"
        )
    if coarse:
        notes.append(f"{half.name}: {len(coarse)} quantisation scales are off by more than 1 % ({some(coarse)})")
    return notes
