"""`tinkit profile`: a bundle on this machine: it sits its exam, is timed, and the report says under which conditions.

Bundle (hashes checked) -> facts of the board -> runtime -> precision truth -> exam -> everything that is timed
(tinkit/device/measuring.py) -> trtexec beside it -> budgets -> report.json. Where the target asks for another runtime than the
device profile has, or the board is only played back, this is a rehearsal: all evidence is kept, nothing of it is judged,
and title and JSON say so.
"""

import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from typing import Any, Dict, List, Tuple

import numpy as np

import tinkit
from tinkit import files, recipes, workspace
from tinkit.budget import check_budget
from tinkit.bundle import MODEL, Bundle, open_bundle
from tinkit.device import board, trtexec
from tinkit.device.commands import Commands
from tinkit.device.engine import find_tensorrt, gpu_present
from tinkit.device.engine_cache import EngineCache
from tinkit.device.jetson import board_facts
from tinkit.device.judging import judge_budgets, judge_report, measured_of, told_budget
from tinkit.device.measuring import Measured, Subject, energy, marked, measure_model
from tinkit.device.runtime import open_runtime
from tinkit.device.scenarios import Scenario, parse_scenario
from tinkit.device.sitting import sit_exam
from tinkit.device.steps import Steps
from tinkit.device.watch import Watch
from tinkit.device_profile import DeviceProfile
from tinkit.errors import CannotJudge
from tinkit.fidelity import Fidelity
from tinkit.results import Report
from tinkit.truth import Truth, engine_truth, openvino_truth

REPORT = "report.json"
REHEARSAL = "onnxruntime-cpu, not the target runtime"
PLAYED_BACK = "played back from {}, timed on this machine"
MEMORY = (
    "peak memory is of the process after exam and latency, {:.0f} MB before the model came; a GPU's own is not in it"
)


def profile(
    bundle=None,
    device=None,
    out=None,
    budget=None,
    require_target_runtime=False,
    warmup_s=None,
    min_seconds=None,
    scenarios=(),
    layers=True,
    backend="",
    say=None,
    root="/",
    engines=None,
):
    """Examine and time a bundle here; write `report.json` into `out` and return the `Report` (`path` is that file).

    bundle: a path or an opened `Bundle`, the newest one when None. device: a name, a path or a `DeviceProfile`,
    detected when None. budget: {name (tinkit/budget.py): limit}; latencies are those of batch 1. warmup_s
    and min_seconds replace the device profile's. scenarios: `Scenario`s or their text ("server:rate=50"). backend:
    "trtexec" has NVIDIA's tool time the same engine as well. root: where the board's files and tools are looked up,
    engines: the folder of the engine cache, the user's own when None. A failed gate or budget is in the verdict, not
    raised. `say` gets a line of text for every step.
    Raises TinkitError for a damaged bundle, CannotJudge where there is nothing to judge with.
    """
    say, steps, budget = say or (lambda text: None), Steps(), dict(budget or {})
    check_budget(budget, "budget")
    scenarios = [one if isinstance(one, Scenario) else parse_scenario(one) for one in scenarios]
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle or workspace.newest_bundle())
    place = _place(opened.target, device, require_target_runtime, root)
    trtexec.refuse_backend(backend, opened.target, place.commands)
    changes = {"warmup_s": warmup_s, "min_seconds": min_seconds}
    chosen = replace(place.device, **{key: value for key, value in changes.items() if value is not None})
    place = replace(place, device=chosen)
    if not isinstance(device, DeviceProfile):  # else the caller knows
        say("device   {}{}".format(chosen.name, ", rehearsal: " + place.rehearsal if place.rehearsal else ""))

    seen = _evidence(opened, place, scenarios, layers, engines, steps, say)
    beside = {}
    if backend == trtexec.BACKEND:
        with steps.of("trtexec"):
            beside = trtexec.beside(place.commands, opened, seen.inputs, seen.machine, seen.found.latency, say)
    path = os.path.join(os.fspath(out or default_out(opened, chosen)), REPORT)
    report = _report(opened, place, seen, budget, beside, steps, path)
    for entry in report.budgets:
        say("budget   {}".format(told_budget(entry)))
    files.write_json(path, report.to_json())
    return report


@dataclass(frozen=True)
class Place:
    """Where it runs: the board's tools and facts, its device profile, the runtime's kind; rehearsal: why it is only one."""

    commands: Commands
    facts: Dict[str, Any]
    device: DeviceProfile
    kind: str
    rehearsal: str


@dataclass
class Evidence:
    """What the runtime was asked, before anything is judged. inputs: the engine's tensors; watched: the watch's summary."""

    machine: Dict[str, Any]
    truth: Any
    hops: List[Fidelity]
    found: Measured
    watched: Dict[str, Any]
    first_ms: float
    load_ms: float
    versions: Dict[str, str]
    inputs: Tuple[Any, ...]


def _place(target, device, require_target_runtime, root):
    commands = Commands(root)
    facts = board_facts(root, commands)
    rehearsal, chosen = _device(target, device, require_target_runtime, facts, root)
    kind = "onnxruntime" if rehearsal else target.runtime
    if facts["played_back"] and not rehearsal:
        rehearsal = PLAYED_BACK.format(facts["played_back"])
    return Place(commands, facts, chosen, kind, rehearsal)


def _evidence(opened, place, scenarios, layers, engines, steps, say):
    root, device = place.commands.root, place.device
    machine = board.machine(root)
    machine.update(load_before=board.load_average(), peak_before_mb=board.peak_memory_mb())
    cache = EngineCache(engines, say=say) if engines and place.kind == "tensorrt" else None
    fp32_nodes = opened.manifest.get("fp32_nodes", ())
    with steps.of("open"):
        loaded = open_runtime(place.kind, opened.model_path, device.threads, opened.target, fp32_nodes, say, cache)
    with loaded as runtime:
        conditions = dict(runtime.conditions, runtime=runtime.name, device=device.name)
        subject = Subject(opened, runtime, device, conditions)
        first_ms = subject.first_run_ms()
        truth = runtime_truth(opened, runtime) if place.kind == opened.target.runtime else None
        if truth is not None:
            say("truth    {}; {}".format(truth.verdict, truth.reason))
        with steps.of("exam"):
            hops = sit_exam(opened, runtime, conditions, place.rehearsal)
        for hop in hops:
            say("exam     {} ({}): {}; {}".format(hop.hop, hop.output, hop.verdict, hop.reason))
        with Watch(root, place.commands, say=say) as watch:
            watch.uses = "gpu" if runtime.name == "tensorrt" else "cpu"
            found = measure_model(subject, watch, steps, scenarios, layers, place.facts["power_mode"], say)
        found = marked(found, watch)
        machine.update(load_after=board.load_average())
        if getattr(runtime, "facts", None):  # of an engine: how long it took to build, the power mode, where it is kept
            machine.update(engine=runtime.facts)
        return Evidence(
            machine, truth, hops, found, watch.summary(), first_ms, runtime.load_ms, runtime.versions(), runtime.inputs
        )


def _report(opened, place, seen, budget, beside, steps, path):
    found, machine, spent = seen.found, seen.machine, energy(seen.found, seen.watched)
    file_mb = os.path.getsize(opened.model_path) / 1e6
    report = Report(
        title="{} on {}".format(opened.name, place.device.name)
        + (" (rehearsal: {})".format(place.rehearsal) if place.rehearsal else ""),
        verdict="",
        rehearsal=place.rehearsal,
        bundle=bundle_facts(opened, file_mb),
        device=place.device.to_json(),
        chain=opened.chain + seen.hops,
        latency=found.latency,
        budgets=[],
        load_ms=seen.load_ms,
        peak_mb=found.peak_mb,
        machine=machine,
        versions=dict(seen.versions, tinkit=tinkit.__version__, numpy=np.__version__, python=machine["python"]),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        path=os.path.abspath(path),
        notes=found.notes + [MEMORY.format(machine["peak_before_mb"])],
        truth=seen.truth.to_json() if seen.truth is not None else {},
        first_ms=seen.first_ms,
        throughput=found.throughput,
        scenarios=found.scenarios,
        board=dict(place.facts, after=board_facts(place.commands.root, place.commands)),
        watch=seen.watched,
        power=spent,
        layers=found.layers,
        trtexec=beside,
        steps=steps.seconds,
    )
    return judged(report, opened, budget)


def judged(report, opened, budget):
    """The report with its budgets and its verdict, worked out from its own numbers and from what the bundle says."""
    host_hops = opened.chain
    measured = measured_of(report, os.path.getsize(opened.model_path) / 1e6)
    budgets = judge_budgets(budget, measured, report.latency, report.rehearsal, report.scenarios)
    truth = Truth.from_json(report.truth) if report.truth else None
    host_verdict = opened.manifest.get("host_gate", {}).get("verdict")
    verdict = judge_report(host_hops, report.chain[len(host_hops) :], budgets, truth, host_verdict)
    return replace(report, budgets=budgets, verdict=verdict)


def _device(target, device, require_target_runtime, facts, root):
    """(why this is only a rehearsal or "", device profile). Raises CannotJudge where a rehearsal is not wanted."""
    chosen, here = device, board.architecture(root)
    if not isinstance(chosen, DeviceProfile):
        runtime = target.runtime if runtime_present(target.runtime) else "onnxruntime"
        chosen = recipes.load_device(device or recipes.match_device(facts, runtime, here))
    chosen.refuse_unsupported()
    if recipes.ARCHITECTURES.get(chosen.arch.lower(), chosen.arch) != here:
        raise CannotJudge(
            "The device profile is of another processor than this machine's.",
            where=chosen.path or None,
            seen="{} for {}, this is {}".format(chosen.name, chosen.arch, here),
            next_step="run it on that device, or leave --device out",
        )
    if chosen.has(target.runtime):
        return "", chosen
    if require_target_runtime:
        raise CannotJudge(
            "The target's runtime is not one of this device, and a rehearsal was not wanted.",
            seen="target {} wants {}, {} has {}".format(
                target.name, target.runtime, chosen.name, " and ".join(chosen.runtimes)
            ),
            next_step="profile on a device with {}, or drop --require-target-runtime".format(target.runtime),
        )
    if target.precision == "bf16":
        raise CannotJudge(
            "A bf16 bundle cannot be rehearsed: onnxruntime has no bf16 convolution.",
            seen="target {}".format(target.name),
            next_step="profile on a device with {}".format(target.runtime),
        )
    return REHEARSAL, chosen


def runtime_present(runtime):
    """Whether this machine could run it; the answer costs nothing and loads no model."""
    if runtime == "tensorrt":
        return gpu_present() and find_tensorrt() is not None
    return runtime == "onnxruntime" or find_spec(runtime) is not None


def runtime_truth(opened, runtime):
    """The `Truth` of what this runtime really computes in; None where it does not tell or the manifest has no MACs."""
    macs = opened.manifest.get("node_macs")
    if not macs:
        return None
    if runtime.name == "tensorrt":
        return engine_truth(runtime.inspector, opened.target, macs)
    if runtime.name == "openvino":
        return openvino_truth(runtime.node_precisions(), opened.target, macs, runtime.layer_precisions())
    return None


def bundle_facts(opened, file_mb):
    """What the report says about the bundle; `path` leads to the rest, its manifest."""
    manifest = opened.manifest
    return {
        "name": opened.name,
        "path": os.path.abspath(opened.path),
        "target": opened.target.to_json(),
        "created": manifest.get("created", ""),
        "host_gate": manifest.get("host_gate", {}),
        "model_sha256": manifest["files"][MODEL]["sha256"],
        "file_mb": file_mb,
    }


def default_out(opened, device_profile):
    """The report's folder, beside the bundle."""
    parent = os.path.dirname(os.path.abspath(opened.path))
    return os.path.join(parent, "report-{}-{}".format(opened.target.name, device_profile.name))
