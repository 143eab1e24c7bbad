"""The report's section on precision: what was asked for, what is in the graph, what the device really computed in.

Export leaves its side in the manifest (precision, calibration, healing, fp32_nodes), profile leaves its own in the report
(`truth`). Older manifests have less, or shares alone; what is not there is said. Shares are cut off and never rounded up,
so that 100 % means all of it.
"""

from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from tinkit.fidelity import FAILED
from tinkit.host.report.text import NOT_RECORDED, ROUNDING, finite, flat, short, table, texts
from tinkit.results import Report

GRAPH, DEVICE = "the graph", "this device"
SILENT = "{} does not tell in which precision it computes"
ASKED = (  # key of the target, in words
    ("precision", "precision"),
    ("rest", "what is not int8"),
    ("compute", "arithmetic asked of the runtime"),
    ("weakly_typed", "weakly typed (TensorRT 8 is asked by flags, and decides itself)"),
    ("floor", "least share of the MACs in this precision"),
    ("heal", "largest share of the MACs that healing may return"),
    ("unproven", "unproven"),
)
SHARES = ("floor", "heal")


@dataclass(frozen=True)
class Found:
    """One finding of a precision truth, with its shares in words; `reason` alone where nothing was found."""

    place: str
    macs: str = ""
    layers: str = ""
    weights: str = ""
    verdict: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Precision:
    """What the template shows; `older` are the rows of a manifest from before there were truths."""

    asked: list[tuple[str, str]]
    found: list[Found]
    older: list[tuple[str, str]]
    calibration: dict[str, Any]
    healing: dict[str, dict] | None
    fp32_nodes: list[str]
    failures: list[str] = field(default_factory=list)


def precision_of(facts: Report, manifest: dict) -> Precision:
    """The section's contents, from the report and the bundle's manifest ({} where the bundle is gone)."""
    target = table(manifest.get("target") or facts.bundle.get("target"))
    recorded, healing = table(manifest.get("precision")), manifest.get("healing")
    found = [_graph(recorded), _device(facts, manifest)]
    return Precision(
        asked=_asked(target),
        found=found,
        older=flat(recorded) if recorded and "verdict" not in recorded else [],
        calibration=table(manifest.get("calibration")),
        healing=None if healing is None else {step: _step(told) for step, told in table(healing).items()},
        fp32_nodes=list(manifest.get("fp32_nodes") or []),
        failures=[f"precision in {entry.place}: {entry.reason}" for entry in found if entry.verdict == FAILED],
    )


def percent(share) -> str:
    """A share (0..1) in percent with two digits, cut off rather than rounded; "less than" where nothing would be left."""
    if not finite(share):
        return short(share)
    text = f"{(Decimal(repr(float(share) + ROUNDING)) * 100).quantize(Decimal('0.01'), ROUND_FLOOR)} %"
    return "less than 0.01 %" if share > 0 and text == "0.00 %" else text


def signed(gain) -> str:
    """A difference of two cosines with its sign; "not judged" for None."""
    return f"{gain:+.6f}" if finite(gain) else "not judged"


def _asked(target: dict) -> list[tuple[str, str]]:
    """Only what the target says: an empty `rest` or `compute` is not a question."""
    told = [(key, words) for key, words in ASKED if target.get(key) not in (None, "") and target[key] is not False]
    return [(words, percent(target[key]) if key in SHARES else short(target[key])) for key, words in told]


def _graph(recorded: dict) -> Found:
    if "verdict" in recorded:
        return _found(GRAPH, recorded)
    return Found(GRAPH, reason="recorded without a verdict, see below" if recorded else NOT_RECORDED)


def _device(facts: Report, manifest: dict) -> Found:
    if facts.truth:
        return _found(DEVICE, facts.truth)
    if facts.rehearsal:
        return Found(DEVICE, reason="a rehearsal: the target's own runtime was not asked")
    if manifest and not manifest.get("node_macs"):
        return Found(DEVICE, reason="the bundle does not tell the MACs of its nodes, so nothing could be counted")
    runtimes = facts.device.get("runtimes") or ["the runtime"]
    return Found(DEVICE, reason=SILENT.format(runtimes[0]))


def _found(place: str, truth: dict) -> Found:
    computed = truth.get("computed")
    notes = [*texts(truth.get("notes")), *([f"arithmetic asked of the runtime: {computed}"] if computed else [])]
    return Found(
        place,
        _shares(truth.get("macs")),
        _shares(truth.get("layers")),
        _shares(truth.get("weights")),
        str(truth.get("verdict", "")),
        str(truth.get("reason", "")),
        tuple(notes),
    )


def _shares(found) -> str:
    return ", ".join(f"{name} {percent(share)}" for name, share in table(found).items())


def _step(told) -> dict:
    """One step's healing; JSON keeps an overflow, an infinite error, as the text "inf"."""
    told = table(told)
    lists = {key: [_readable(table(node)) for node in told.get(key) or []] for key in ("kept", "ranking")}
    return {**told, **lists}


def _readable(node: dict) -> dict:
    return {**node, "added": "overflows" if str(node.get("added")) == "inf" else node.get("added")}
