"""Settling the precision of a graph: calibrate, write, judge, and heal until the gates pass.

fp32 graph -> (ranges of real pictures) -> graph in the target's precision -> host gate -> `tinkit.host.export.heal`. A `Plan`
says which nodes are spared; the same plan always gives the same graph. Two steps down are healed one after the other:
first what fp16 breaks goes to fp32, then what int8 breaks goes to fp16 (or to fp32 where the rest is fp32).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tinkit.bundle import Exam
from tinkit.device.sitting import fill
from tinkit.fidelity import FAILED, Fidelity
from tinkit.host.export.activations import compare_activations
from tinkit.host.export.calibration import CALIBRATIONS, Histograms, calibrate
from tinkit.host.export.gate import Draft, judge_hops
from tinkit.host.export.graphs import node_macs
from tinkit.host.export.heal import Healing, Suspect, Trial, heal
from tinkit.host.export.precision import Plan, Written, fp32_nodes, steps_of, write_precision
from tinkit.target import Target

RANKED_PICTURES = 16  # of the exam, for the ranking of the nodes


@dataclass(frozen=True)
class Settled:
    """What ships and why: the graph, its gates, the plan it was written by, and how it was found."""

    written: Written
    hops: list[Fidelity]
    plan: Plan
    macs: dict[str, int]
    fp32_nodes: list[str] = field(default_factory=list)  # for TensorRT 8
    calibration: dict = field(default_factory=dict)
    healings: dict[str, Healing] = field(default_factory=dict)


def settle(fp32, draft: Draft, exam: Exam, feeds: Callable[[], Iterator[dict]], healing=True, say=None) -> Settled:
    """The graph of `draft.target`, judged on `exam` and healed where that is needed and wanted.

    fp32: the exported ModelProto. feeds() gives calibration inputs {name: array} afresh at each call, for int8 only.
    A gate that stays failed is in the hops, not raised.
    """
    say = say or (lambda text: None)
    target, plan = draft.target, Plan()
    macs = node_macs(fp32, draft.preprocessing.size)
    healings: dict[str, Healing] = {}
    told: dict = {}
    steps = steps_of(target)
    for step in steps:
        inner = target if step == steps[-1] else replace(target, precision=step, rest="")
        ranges = None
        if step == "int8":
            histograms = calibrate(fp32, feeds())
            ranges, told = best_ranges(fp32, draft, exam, histograms, plan, say)
        written = write_precision(fp32, inner, plan, ranges)
        hops = judge_hops(draft, written, exam)
        if healing and step != "fp32" and _failed(hops):
            found = _heal(fp32, draft, inner, exam, plan, step, ranges, macs, say)
            healings[step] = found
            say(f"heal     {step}: {found.reason}")
            if found.healed:
                plan = plan.sparing(step, found.nodes)
                written = write_precision(fp32, inner, plan, ranges)
                hops = judge_hops(draft, written, exam)
    return Settled(written, hops, plan, macs, fp32_nodes(fp32, target, plan), told, healings)


def best_ranges(fp32, draft: Draft, exam: Exam, histograms: Histograms, plan: Plan, say) -> tuple[dict, dict]:
    """(the ranges of the calibration with the best worst cosine on the exam, what each of them reached)."""
    tried = {}
    for how in CALIBRATIONS:
        written = write_precision(fp32, draft.target, plan, histograms.ranges(how))
        tried[how] = worst_cosine(judge_hops(draft, written, exam, largest_only=True))
    best = max(CALIBRATIONS, key=lambda how: tried[how])
    say(f"int8     calibrated by {best}; worst cosines: " + ", ".join(f"{how} {tried[how]:.4f}" for how in tried))
    return histograms.ranges(best), {"chosen": best, "worst_cosine": tried, "pictures": histograms.pictures}


def worst_cosine(hops: Sequence[Fidelity]) -> float:
    """The worst cosine of a picture over the judged answers; pixels do not count."""
    return min(hop.cosine_min for hop in hops if hop.gate is not None and hop.output != "pixels")


def _heal(fp32, draft, inner: Target, exam, plan: Plan, step, ranges, macs, say) -> Healing:
    total = max(sum(macs.values()), 1)
    shares = {node: count / total for node, count in macs.items()}
    spent = sum(shares.get(node, 0.0) for node in plan.spared)
    worst: list[int] = []  # of the exam, in the latest trial: a fault may be on few of the pictures

    def judge(kept) -> Trial:
        written = write_precision(fp32, inner, plan.sparing(step, kept), ranges)
        hops = judge_hops(draft, written, exam, largest_only=True)
        failed = [hop for hop in hops if hop.verdict == FAILED]
        worst[:] = list(dict.fromkeys(entry["index"] for hop in failed for entry in hop.worst)) or worst
        return Trial(not failed, worst_cosine(hops), failed[0].reason if failed else "")

    def suspects(kept) -> list[Suspect]:
        in_float32 = replace(inner, io="float32")
        written = write_precision(fp32, in_float32, plan.sparing(step, kept), ranges)
        chosen = list(dict.fromkeys([*worst, *range(len(exam.pixels))]))[:RANKED_PICTURES]
        single = [
            fill(exam.pixels[[index]], inner.batch.min) for index in chosen
        ]  # one at a time: memory is that of one
        return rank(fp32, written, [draft.feed(pixels, fp32) for pixels in single], step)

    return heal(judge, suspects, shares, max(0.0, min(inner.heal, 1 - inner.floor) - spent), say=say)


def rank(fp32, written: Written, feeds, step: str) -> list[Suspect]:
    """The nodes that `step` reduced, by the error that each adds on real pictures, worst first, with their neighbours.

    A node is followed by those that write what it reads: a norm that takes a mean away makes the rounding of its input
    large, and is not helped alone. One that overflows is followed by its readers: a cast between them would overflow.
    """
    writers = {name: node for node in fp32.graph.node for name in node.output}
    readers: dict[str, list] = {}
    for node in fp32.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes = {node.name: node for node in fp32.graph.node}
    reduced = _quantised(written.model) if step == "int8" else set(nodes)
    found: dict[str, Suspect] = {}
    for entry in compare_activations(fp32, written.judged, feeds):
        near = [nodes[entry.node], *(writers[name] for name in nodes[entry.node].input if name in writers)]
        if np.isinf(entry.added):
            near[1:1] = readers.get(entry.tensor, [])
        for node in near:
            if node.name not in found and node.name in reduced:
                found[node.name] = Suspect(node.name, node.op_type, float(entry.added))
    return list(found.values())


def _quantised(model) -> set[str]:
    """Names of the nodes that read what a DequantizeLinear gives."""
    dequantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return {
        node.name for node in model.graph.node if node.op_type != "QuantizeLinear" and dequantised & set(node.input)
    }


def _failed(hops) -> bool:
    return any(hop.verdict == FAILED for hop in hops)
