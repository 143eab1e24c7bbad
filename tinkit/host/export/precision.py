"""Precision written into the graph, by target and plan: which converter, in which form, and which graph is judged.

onnxruntime on a CPU leaves out the rounding between fp16 nodes and knows no bf16 convolution, so a half-precision graph
is judged as a rehearsal (tinkit.host.export.rehearsal). int8 is judged as the file that ships where onnxruntime or OpenVINO run
it; TensorRT's form as its Q/DQ graph. TensorRT 8 is weakly typed: fp16 is not in the graph but in the manifest, and what
is judged is what its flags ask for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx

from tinkit.host.export.half import ALWAYS_FP32, to_half
from tinkit.host.export.int8 import to_int8
from tinkit.host.export.rehearsal import rehearsal_graph
from tinkit.target import Target

HALVES = ("fp16", "bf16")


@dataclass(frozen=True)
class Plan:
    """Nodes of the fp32 graph that are spared: `fp32` stay in fp32, `unquantised` are not int8 (but may be fp16)."""

    fp32: frozenset[str] = frozenset()
    unquantised: frozenset[str] = frozenset()

    def sparing(self, step: str, nodes: Iterable[str]) -> "Plan":
        """The plan with more nodes spared the step down to fp16, bf16 or int8."""
        more = frozenset(nodes)
        if step == "int8":
            return replace(self, unquantised=self.unquantised | more)
        return replace(self, fp32=self.fp32 | more)

    @property
    def spared(self) -> frozenset[str]:
        return self.fp32 | self.unquantised


@dataclass(frozen=True)
class Written:
    """`model` ships, `judged` is examined on the host; `how` says in words what the examination shows."""

    model: onnx.ModelProto
    judged: onnx.ModelProto
    how: str
    notes: tuple[str, ...] = ()

    @property
    def rehearsed(self) -> bool:
        return self.judged is not self.model


def steps_of(target: Target) -> tuple[str, ...]:
    """The steps down in the order in which they are healed: ("fp16", "int8") for int8 with fp16 elsewhere, else one."""
    return ("fp16", "int8") if target.rest == "fp16" else (target.precision,)


def fp32_nodes(fp32, target: Target, plan: Plan) -> list[str]:
    """What TensorRT 8 must be told to keep in fp32, because its flags would take all: the plan's, and operators that half
    precision is never written for (tinkit.host.export.half). [] for graphs that say their precision themselves."""
    if not target.weakly_typed:
        return []
    always = {node.name for node in fp32.graph.node if node.op_type in ALWAYS_FP32}
    return sorted(plan.fp32 | always)


def write_precision(fp32, target: Target, plan: Plan = Plan(), ranges=None) -> Written:
    """`fp32` (a ModelProto, not changed) in the target's precision. `ranges`: tensor -> (low, high), for int8."""
    if target.precision == "fp32":
        return Written(fp32, fp32, "fp32, the file that ships")
    if target.precision in HALVES:
        return _half(fp32, target, plan)
    return _int8(fp32, target, plan, ranges)


def _half(fp32, target: Target, plan: Plan) -> Written:
    half, notes = to_half(fp32, target.precision, target.io, plan.fp32)
    if target.runtime == "openvino":  # a storage precision there: what is computed in is asked of the runtime
        return Written(half, half, f"{target.precision} as stored, computed in {target.compute}", tuple(notes))
    how = f"rehearsed: fp32 arithmetic, rounded to {target.precision} after every {target.precision} node"
    if target.weakly_typed:
        return Written(fp32, rehearsal_graph(half), f"{how}; TensorRT 8 decides itself what it computes in fp16")
    return Written(half, rehearsal_graph(half), how, tuple(notes))


def _int8(fp32, target: Target, plan: Plan, ranges) -> Written:
    form = target.runtime
    int8, notes = to_int8(fp32, ranges, form, plan.spared)
    if form != "tensorrt":
        return Written(
            int8, int8, f"int8, the file that ships, in {form} with the options it is deployed with", tuple(notes)
        )
    if target.rest != "fp16":
        return Written(int8, int8, "rehearsed: int8 by Q/DQ in fp32 arithmetic", tuple(notes))
    how = "rehearsed: int8 by Q/DQ, the rest rounded to fp16 after every node"
    if target.weakly_typed:
        fixed = {node.name for node in int8.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
        half, _ = to_half(int8, "fp16", "float32", plan.fp32 | fixed)
        return Written(
            int8, rehearsal_graph(half), f"{how}; TensorRT 8 decides itself what it computes in fp16", tuple(notes)
        )
    half, more = to_half(int8, "fp16", target.io, plan.fp32)
    return Written(half, rehearsal_graph(half), how, (*notes, *more))
