"""Verdicts of a report: each budget against what was measured, and all of them together with the exam and the truth.

Exactly at a limit passes; nothing is rounded. What was not measured, or only in a rehearsal, is not judged.
"""

import numpy as np

from tinkit.budget import is_lower_limit, percentile_of, split_name
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED, verdict_of

BUDGET_BATCH = 1  # latency budgets are of one picture


def measured_of(report, file_mb):
    """name -> value of the budgets that are neither a latency nor of a scenario; None for what could not be measured."""
    return {
        "load_ms": report.load_ms,
        "first_ms": report.first_ms,
        "peak_mb": report.peak_mb,
        "file_mb": file_mb,
        "energy_mj": report.power.get("energy_mj"),
        "power_w": report.power.get("load_w"),
        "per_s": max((run["pictures_per_s"] for run in report.throughput), default=None),
    }


def judge_budgets(budget, measured, latency, rehearsal="", scenarios=()):
    """[{"name", "limit", "sign", "measured", "verdict", "reason"}].

    measured: name -> value of what is neither a latency nor of a scenario (None: could not be measured). Latencies are of
    batch 1 without a CUDA graph, at any percentile of their samples; scenarios are what `scenarios.play` returned.
    """
    plain = (run for run in latency if not run.conditions.get("cuda_graph"))
    single = next((run for run in plain if run.batch == BUDGET_BATCH), None)
    return [_judge(name, limit, measured, single, rehearsal, scenarios) for name, limit in budget.items()]


def _judge(name, limit, measured, single, rehearsal, scenarios):
    scope, measure = split_name(name)
    if name in measured:
        value, reason = measured[name], "" if measured[name] is not None else "it could not be measured"
    elif scope in ("", "gpu"):
        value, reason = _of_latency(scope, measure, single)
    else:
        value, reason = _of_scenario(scope, measure, scenarios)
    sign = ">" if is_lower_limit(name) else "<"
    if value is None:
        verdict = NOT_JUDGED
    elif rehearsal and name != "file_mb":  # the file is the same everywhere
        verdict, reason = NOT_JUDGED, "rehearsal: {}".format(rehearsal)
    else:
        verdict = PASSED if (value >= limit if sign == ">" else value <= limit) else FAILED
    if verdict == FAILED and single is not None and scope in ("", "gpu") and name not in measured:
        reason += _excuse(single)
    return {"name": name, "limit": limit, "sign": sign, "measured": value, "verdict": verdict, "reason": reason}


def _of_latency(scope, measure, single):
    if single is None:
        return None, "batch {} was not timed".format(BUDGET_BATCH)
    samples_ms = single.gpu.get("samples_ms") if scope else single.samples_ms
    if not samples_ms:
        return None, "this runtime tells no times of the GPU alone"
    return _statistic(measure, samples_ms, "batch {}".format(BUDGET_BATCH))


def _of_scenario(scope, measure, scenarios):
    played = next((run for run in scenarios if run["scenario"] == scope), None)
    if played is None:
        return None, "this scenario was not played: --scenario {}".format(scope)
    if not played["valid"]:
        return None, "the scenario is not valid: {}".format(played["reason"])
    if measure == "per_s":
        return played["per_s"], ""
    if not played["samples_ms"]:
        return None, "it is one query: it has a rate and no latency"
    return _statistic(measure, played["samples_ms"], "")


def _statistic(measure, samples_ms, reason):
    """(value, reason); None for a percentile beyond which not even one of so many samples is expected."""
    if measure == "mean_ms":
        return float(np.mean(samples_ms)), reason
    if measure == "min_ms":
        return float(np.min(samples_ms)), reason
    percent = percentile_of(measure)
    needed = int(np.ceil(100 / (100 - percent) - 1e-9))
    if len(samples_ms) < needed:
        told = "{} samples say nothing about p{:g}: it takes {} or more (min_samples of the device profile)"
        return None, told.format(len(samples_ms), percent, needed)
    return float(np.percentile(samples_ms, percent)), reason


def _excuse(single):
    if single.contended:
        return ", while other work had the core: try again on a quiet machine"
    return "".join(", " + mark for mark in single.marks)


def told_budget(entry):
    """`p95_ms 3.92, < 5: passed; batch 1` of an entry of `judge_budgets`."""
    measured = "not measured" if entry["measured"] is None else "{:.5g}".format(entry["measured"])
    told = "{} {}, {} {:g}: {}".format(entry["name"], measured, entry["sign"], entry["limit"], entry["verdict"])
    return told + ("; " + entry["reason"] if entry["reason"] else "")


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
