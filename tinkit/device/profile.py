"""`tinkit profile`: a bundle on this machine: it sits its exam, is timed, and the report says under which conditions.

Bundle (hashes checked) -> runtime -> precision truth -> exam -> stopwatch -> budgets -> report.json. Where the target asks
for another runtime than the device profile has, this is a rehearsal: all evidence is kept, nothing of it is judged, and
title and JSON say so.
"""

import os
from dataclasses import replace
from datetime import datetime, timezone
from importlib.util import find_spec

import numpy as np

import tinkit
from tinkit import files, recipes, workspace
from tinkit.budget import check_budget
from tinkit.bundle import MODEL, Bundle, open_bundle
from tinkit.device import board
from tinkit.device.engine import find_tensorrt, gpu_present
from tinkit.device.latency import measure
from tinkit.device.runtime import open_runtime
from tinkit.device.sitting import network_input, sit_exam
from tinkit.errors import CannotJudge
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED, Fidelity, verdict_of
from tinkit.results import Report
from tinkit.truth import engine_truth, openvino_truth

REPORT = "report.json"
REHEARSAL = "onnxruntime-cpu, not the target runtime"
BUDGET_BATCH = 1  # latency budgets are of one picture


def profile(
    bundle=None,
    device=None,
    out=None,
    budget=None,
    require_target_runtime=False,
    warmup_s=None,
    min_seconds=None,
    say=None,
):
    """Examine and time a bundle here; write `report.json` into `out` and return the `Report` (`path` is that file).

    bundle: a path or an opened `Bundle`, the newest one when None. device: a name, a path or a `DeviceProfile`,
    detected when None. budget: {name of tinkit.budget.BUDGETS: upper limit}; latencies are those of batch 1. warmup_s
    and min_seconds replace the device profile's. A failed gate or budget is in the verdict, not raised. `say` gets a
    line of text for every step.
    Raises TinkitError for a damaged bundle, CannotJudge where there is nothing to judge with.
    """
    say = say or (lambda text: None)
    budget = dict(budget or {})
    check_budget(budget, "budget")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle or workspace.newest_bundle())
    say("bundle   {}".format(opened.path))
    rehearsal, device_profile = _device(opened.target, device, require_target_runtime)
    changes = {"warmup_s": warmup_s, "min_seconds": min_seconds}
    device_profile = replace(device_profile, **{key: value for key, value in changes.items() if value is not None})
    say("device   {}{}".format(device_profile.name, ", rehearsal: " + rehearsal if rehearsal else ""))

    machine = board.machine()
    load_before, peak_before = board.load_average(), board.peak_memory_mb()
    fp32_nodes = opened.manifest.get("fp32_nodes", ())
    with open_runtime(
        device_profile.runtime, opened.model_path, device_profile.threads, opened.target, fp32_nodes, say
    ) as runtime:
        truth = None if rehearsal else runtime_truth(opened, runtime)
        if truth is not None:
            say("truth    {}; {}".format(truth.verdict, truth.reason))
        conditions = dict(runtime.conditions, runtime=runtime.name, device=device_profile.name)
        hops = sit_exam(opened, runtime, conditions, rehearsal)
        for hop in hops:
            say("exam     {} ({}): {}; {}".format(hop.hop, hop.output, hop.verdict, hop.reason))
        latency, notes = _time_batches(opened, runtime, device_profile, conditions, say)
        load_ms, versions = runtime.load_ms, runtime.versions()
        if getattr(runtime, "facts", None):  # of an engine: how long it took to build, the power mode, where it is kept
            machine.update(engine=runtime.facts)
    peak_mb = board.peak_memory_mb()
    machine.update(load_before=load_before, load_after=board.load_average(), peak_before_mb=peak_before)
    notes.append(
        "peak memory is of the whole process, exam included; it was {:.0f} MB before the model came".format(peak_before)
    )

    file_mb = os.path.getsize(opened.model_path) / 1e6
    measured = {"load_ms": load_ms, "peak_mb": peak_mb, "file_mb": file_mb}
    budgets = judge_budgets(budget, measured, latency, rehearsal)
    for entry in budgets:
        say("budget   {name} < {limit:g}: {verdict} ({measured}) {reason}".format(**entry))
    host_hops = [Fidelity.from_json(hop) for hop in opened.manifest.get("chain", [])]
    title = "{} on {}".format(opened.name, device_profile.name)
    if rehearsal:
        title += " (rehearsal: {})".format(rehearsal)
    path = os.path.join(os.fspath(out or _default_out(opened, device_profile)), REPORT)
    report = Report(
        title=title,
        verdict=judge_report(host_hops, hops, budgets, truth, opened.manifest.get("host_gate", {}).get("verdict")),
        rehearsal=rehearsal,
        bundle=_bundle_facts(opened, file_mb),
        device=dict(device_profile.to_json(), batches=list(device_profile.batches)),
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
    )
    files.write_json(path, report.to_json())
    say("verdict  {}; {}".format(report.verdict, path))
    return report


def _device(target, device, require_target_runtime):
    """(why this is only a rehearsal or "", device profile). Raises CannotJudge where a rehearsal is not wanted."""
    chosen = device
    if not isinstance(chosen, recipes.DeviceProfile):
        there = runtime_present(target.runtime)
        chosen = recipes.load_device(device or board.detect_device(target.runtime if there else "onnxruntime"))
    here = board.architecture()
    if board.ARCHITECTURES.get(chosen.arch.lower(), chosen.arch) != here:
        raise CannotJudge(
            "The device profile is of another processor than this machine's.",
            where=chosen.path or None,
            seen="{} for {}, this is {}".format(chosen.name, chosen.arch, here),
            next_step="run it on that device, or leave --device out",
        )
    if chosen.runtime == target.runtime:
        return "", chosen
    if require_target_runtime:
        raise CannotJudge(
            "The target's runtime is not the one of this device, and a rehearsal was not wanted.",
            seen="target {} wants {}, {} has {}".format(target.name, target.runtime, chosen.name, chosen.runtime),
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


def _time_batches(opened, runtime, device_profile, conditions, say):
    """(latencies, notes): every batch size of the profile that the target was built for; the others are named."""
    latency, notes, limits = [], [], opened.target.batch
    exam = opened.exam()
    for batch in device_profile.batches:
        if not limits.min <= batch <= limits.max:
            notes.append("batch {} was not timed: the target takes {} to {}".format(batch, limits.min, limits.max))
            say("latency  " + notes[-1])
            continue
        feeds = network_input(opened, _pictures(opened, exam, batch))
        seen = measure(
            lambda feeds=feeds: runtime.run(feeds),
            batch=batch,
            # What waits for a GPU may sleep: wall time over processor time says nothing about other work then.
            threads=0 if runtime.name == "tensorrt" else device_profile.threads,
            warmup_s=device_profile.warmup_s,
            min_samples=device_profile.min_samples,
            min_seconds=device_profile.min_seconds,
            conditions=dict(
                conditions,
                pictures=_whose_pictures(opened.target, exam),
                measured=_measured(opened.target),
            ),
        )
        latency.append(seen)
        if seen.contended:
            notes.append("batch {} was timed while other work had the core: compare its processor time".format(batch))
        if not seen.stable:
            notes.append("batch {} had not settled after {:g} s of warm-up".format(batch, device_profile.warmup_s))
        told = "latency  batch {}: p50 {:.3f} ms, p95 {:.3f} ms, {} samples{}"
        say(told.format(batch, seen.p50_ms, seen.p95_ms, seen.samples, ", contended" if seen.contended else ""))
    return latency, notes


def _pictures(opened, exam, batch):
    """`batch` uint8 pictures: the exam's in turn, or noise without one and as whole frames."""
    if opened.target.frame or exam is None:
        height, width = opened.target.frame or (opened.preprocessing.size,) * 2
        return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return exam.pixels[np.arange(batch) % len(exam.pixels)]


def _whose_pictures(target, exam):
    if target.frame:
        return "noise: frames of {} x {} pixels".format(*target.frame)
    return "of the exam" if exam is not None else "noise: the bundle has no exam"


def _measured(target):
    """What one run takes in and what it leaves out, in words."""
    if target.frame:
        return "the network with cropping, resizing and normalising inside; decoding is not included"
    if target.input == "uint8-nhwc":
        return "the network with normalising inside; decoding is not included"
    return "the network alone; decoding and normalising are not included"


def judge_budgets(budget, measured, latency, rehearsal=""):
    """[{"name", "limit", "measured", "verdict", "reason"}]; exactly at the limit passes. Latencies: batch 1."""
    single = next((run for run in latency if run.batch == BUDGET_BATCH), None)
    return [_judge_budget(name, limit, measured, single, rehearsal) for name, limit in budget.items()]


def _judge_budget(name, limit, measured, single, rehearsal):
    is_latency = name not in measured
    value = measured.get(name, getattr(single, name, None))
    reason = "batch {}".format(BUDGET_BATCH) if is_latency else ""
    if value is None:
        verdict, reason = NOT_JUDGED, "batch {} was not timed".format(BUDGET_BATCH)
    elif rehearsal and name != "file_mb":  # the file is the same everywhere
        verdict, reason = NOT_JUDGED, "rehearsal: {}".format(rehearsal)
    else:
        verdict = PASSED if value <= limit else FAILED
    if verdict == FAILED and is_latency and single.contended:
        reason += ", while other work had the core: try again on a quiet machine"
    return {"name": name, "limit": limit, "measured": value, "verdict": verdict, "reason": reason}


def judge_report(host_hops, device_hops, budgets, truth=None, host_verdict=None):
    """Failed if anything failed, on the host too; passed only by what was judged on this device.

    truth: of the runtime here; host_verdict: of the whole host gate, which the precision of the graph is part of.
    """
    here = [hop.verdict for hop in device_hops] + [entry["verdict"] for entry in budgets]
    if host_verdict == FAILED or (truth is not None and truth.verdict == FAILED):
        return FAILED
    if FAILED in here or verdict_of(host_hops) == FAILED:
        return FAILED
    return PASSED if PASSED in here else NOT_JUDGED


def _bundle_facts(opened, file_mb):
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


def _default_out(opened, device_profile):
    parent = os.path.dirname(os.path.abspath(opened.path))
    return os.path.join(parent, "report-{}-{}".format(opened.target.name, device_profile.name))
