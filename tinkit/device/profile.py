"""`tinkit profile`: a bundle on this machine: it sits its exam, is timed, and the report says under which conditions.

Bundle (hashes checked) -> facts of the board -> runtime -> precision truth -> exam -> everything that is timed
(tinkit/device/measuring.py) -> budgets -> report.json. Where the target asks for another runtime than the device profile
has, this is a rehearsal: all evidence is kept, nothing of it is judged, and title and JSON say so.
"""

import contextlib
import os
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from importlib.util import find_spec

import numpy as np

import tinkit
from tinkit import files, recipes, workspace
from tinkit.budget import check_budget
from tinkit.bundle import MODEL, Bundle, open_bundle
from tinkit.device import board
from tinkit.device.commands import Commands
from tinkit.device.engine import find_tensorrt, gpu_present
from tinkit.device.engine_cache import EngineCache
from tinkit.device.jetson import board_facts
from tinkit.device.judging import judge_budgets, judge_report, told_budget
from tinkit.device.measuring import Subject, energy, marked, measure_model
from tinkit.device.runtime import open_runtime
from tinkit.device.scenarios import Scenario, parse_scenario
from tinkit.device.sitting import sit_exam
from tinkit.device.steps import Steps
from tinkit.device.trtexec import agreement, run_trtexec
from tinkit.device.watch import Watch
from tinkit.device_profile import DeviceProfile
from tinkit.errors import CannotJudge, TinkitError
from tinkit.fidelity import Fidelity
from tinkit.results import Report
from tinkit.truth import engine_truth, openvino_truth

REPORT = "report.json"
REHEARSAL = "onnxruntime-cpu, not the target runtime"
BACKENDS = ("tensorrt", "trtexec")


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
    "trtexec" has NVIDIA's tool time the same bundle as well. root: where the board's files and tools are looked up, engines: the
    folder of the engine cache, the user's own when None. A failed gate or budget is in the verdict, not raised. `say` gets a
    line of text for every step.
    Raises TinkitError for a damaged bundle, CannotJudge where there is nothing to judge with.
    """
    say, steps = say or (lambda text: None), Steps()
    budget = dict(budget or {})
    check_budget(budget, "budget")
    scenarios = [one if isinstance(one, Scenario) else parse_scenario(one) for one in scenarios]
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle or workspace.newest_bundle())
    _check_backend(backend, opened.target)
    commands = Commands(root)
    facts = board_facts(root, commands)
    rehearsal, device_profile = _device(opened.target, device, require_target_runtime, facts, root)
    changes = {"warmup_s": warmup_s, "min_seconds": min_seconds}
    device_profile = replace(device_profile, **{key: value for key, value in changes.items() if value is not None})
    if not isinstance(device, DeviceProfile):  # else the caller knows
        say("device   {}{}".format(device_profile.name, ", rehearsal: " + rehearsal if rehearsal else ""))

    machine = board.machine(root)
    machine.update(load_before=board.load_average(), peak_before_mb=board.peak_memory_mb())
    kind = "onnxruntime" if rehearsal else opened.target.runtime
    with contextlib.ExitStack() as running:
        with steps.of("open"):
            runtime = running.enter_context(_opened_runtime(kind, opened, device_profile, engines, say))
        conditions = dict(runtime.conditions, runtime=runtime.name, device=device_profile.name)
        subject = Subject(opened, runtime, device_profile, conditions)
        first_ms = subject.first_run_ms()
        with steps.of("exam"):
            truth = None if rehearsal else runtime_truth(opened, runtime)
            if truth is not None:
                say("truth    {}; {}".format(truth.verdict, truth.reason))
            hops = sit_exam(opened, runtime, conditions, rehearsal)
        for hop in hops:
            say("exam     {} ({}): {}; {}".format(hop.hop, hop.output, hop.verdict, hop.reason))
        with Watch(root, commands, say=say) as watch:
            watch.uses = "gpu" if runtime.name == "tensorrt" else "cpu"
            found = measure_model(subject, watch, steps, scenarios, layers, facts["power_mode"], say)
        summary = watch.summary()
        latency, marks = marked(found, watch)
        load_ms, versions, inputs = runtime.load_ms, runtime.versions(), runtime.inputs
        if getattr(runtime, "facts", None):  # of an engine: how long it took to build, the power mode, where it is kept
            machine.update(engine=runtime.facts)
    peak_mb = board.peak_memory_mb()
    machine.update(load_after=board.load_average())
    trtexec = {}
    if backend == "trtexec":
        with steps.of("trtexec"):
            trtexec = _beside_trtexec(commands, opened, inputs, machine.get("engine", {}), latency, say)
    notes = (
        found.notes
        + marks
        + [
            "peak memory is of the whole process, exam included; it was {:.0f} MB before the model came".format(
                machine["peak_before_mb"]
            )
        ]
    )

    spent, file_mb = energy(found, summary), os.path.getsize(opened.model_path) / 1e6
    measured = {"load_ms": load_ms, "first_ms": first_ms, "peak_mb": peak_mb, "file_mb": file_mb}
    measured.update(energy_mj=spent.get("energy_mj"), power_w=spent.get("load_w"))
    measured["per_s"] = max((run["pictures_per_s"] for run in found.throughput), default=None)
    budgets = judge_budgets(budget, measured, latency, rehearsal, found.scenarios)
    for entry in budgets:
        say("budget   {}".format(told_budget(entry)))
    host_hops = [Fidelity.from_json(hop) for hop in opened.manifest.get("chain", [])]
    title = "{} on {}".format(opened.name, device_profile.name)
    if rehearsal:
        title += " (rehearsal: {})".format(rehearsal)
    path = os.path.join(os.fspath(out or default_out(opened, device_profile)), REPORT)
    report = Report(
        title=title,
        verdict=judge_report(host_hops, hops, budgets, truth, opened.manifest.get("host_gate", {}).get("verdict")),
        rehearsal=rehearsal,
        bundle=bundle_facts(opened, file_mb),
        device=device_profile.to_json(),
        chain=host_hops + hops,
        latency=latency,
        budgets=budgets,
        load_ms=load_ms,
        peak_mb=peak_mb,
        machine=machine,
        versions=dict(versions, tinkit=tinkit.__version__, numpy=np.__version__, python=machine["python"]),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        path=os.path.abspath(path),
        notes=notes,
        truth=truth.to_json() if truth is not None else {},
        first_ms=first_ms,
        throughput=found.throughput,
        scenarios=found.scenarios,
        board=dict(facts, after=board_facts(root, commands)),
        watch=summary,
        power=spent,
        layers=found.layers,
        trtexec=trtexec,
        steps=steps.seconds,
    )
    files.write_json(path, report.to_json())
    return report


def _check_backend(backend, target):
    if backend and backend not in BACKENDS:
        raise TinkitError("There is no such backend.", seen=backend, next_step="one of " + ", ".join(BACKENDS))
    if backend and target.runtime != "tensorrt":
        raise TinkitError(
            "Only a target for TensorRT can be timed by trtexec.",
            seen="target {} is for {}".format(target.name, target.runtime),
            next_step="leave --backend out",
        )


def _opened_runtime(kind, opened, device_profile, engines, say):
    cache = EngineCache(engines, say=say) if engines and kind == "tensorrt" else None
    fp32_nodes = opened.manifest.get("fp32_nodes", ())
    return open_runtime(kind, opened.model_path, device_profile.threads, opened.target, fp32_nodes, say, cache)


def _beside_trtexec(commands, opened, inputs, engine, latency, say):
    """What trtexec says about the same engine at batch 1, and how far our time of the GPU alone is from it."""
    ours = next((run for run in latency if run.batch == 1 and run.conditions.get("cuda_graph") and run.gpu), None)
    with tempfile.TemporaryDirectory(prefix="tinkit-") as folder:
        theirs = run_trtexec(
            commands,
            opened.model_path,
            opened.target,
            1,
            folder,
            inputs=inputs,
            engine=engine.get("engine", ""),
            say=say,
        )
    if ours is None:
        return theirs
    apart = agreement(ours.gpu["p50_ms"], theirs)
    say("trtexec  {verdict}: ours {ours_ms} ms, trtexec {trtexec_ms} ms of GPU compute".format(**apart))
    return dict(theirs, agreement=apart)


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
