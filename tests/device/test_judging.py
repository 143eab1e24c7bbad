"""Budgets against what was measured: any percentile, the GPU alone, scenarios, rates; what was not measured is not judged."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from tinkit.device.judging import judge_budgets, judge_report
from tinkit.device.latency import measure
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED, compare_answers


@functools.cache
def measured(batch):
    clock = iter(range(10**6))
    return measure(
        lambda: None,
        batch=batch,
        threads=1,
        warmup_s=0,
        min_samples=200,
        min_seconds=0,
        wall_clock=lambda: next(clock) * 1e-3,
        cpu_clock=lambda: 0.0,
    )


def timed(batch=1, samples=tuple(range(1, 1001)), **changes):
    """A `Latency` of these milliseconds."""
    return replace(measured(batch), samples_ms=list(map(float, samples)), contended=False, marks=[], **changes)


def judged(name, limit, measured=None, latency=(), **more):
    (entry,) = judge_budgets({name: limit}, measured or {}, list(latency), **more)
    return entry


@pytest.mark.parametrize(("limit", "verdict"), [(2.0, PASSED), (1.999999, FAILED)])
def test_a_budget_passes_at_its_limit_and_fails_above(limit, verdict):
    entry = judged("file_mb", limit, {"file_mb": 2.0})
    assert (entry["verdict"], entry["measured"], entry["limit"], entry["sign"]) == (verdict, 2.0, limit, "<")


@pytest.mark.parametrize(("limit", "verdict"), [(50.0, PASSED), (50.000001, FAILED)])
def test_a_rate_passes_at_its_limit_and_fails_below(limit, verdict):
    entry = judged("per_s", limit, {"per_s": 50.0})
    assert (entry["verdict"], entry["sign"]) == (verdict, ">")


@pytest.mark.parametrize("percent", [5, 50, 97.5, 99.9])
def test_any_percentile_is_that_of_the_samples(percent):
    entry = judged(f"p{percent:g}_ms", 1e6, latency=[timed(batch=8, samples=[7] * 200), timed()])
    assert entry["measured"] == pytest.approx(np.percentile(np.arange(1, 1001), percent))
    assert entry["reason"] == "batch 1"


@pytest.mark.parametrize(("samples", "verdict"), [(999, NOT_JUDGED), (1000, PASSED)])
def test_a_percentile_that_so_few_samples_say_nothing_about_is_not_judged(samples, verdict):
    entry = judged("p99.9_ms", 1e6, latency=[timed(samples=range(1, samples + 1))])
    assert entry["verdict"] == verdict
    assert ("takes 1000" in entry["reason"]) == (verdict == NOT_JUDGED)


def test_mean_and_minimum_are_those_of_the_samples():
    assert judged("mean_ms", 1e6, latency=[timed()])["measured"] == pytest.approx(500.5)
    assert judged("min_ms", 1e6, latency=[timed()])["measured"] == 1.0


def test_the_gpu_alone_is_judged_by_its_own_samples():
    run = timed(gpu={"samples_ms": [3.0] * 200})
    assert judged("gpu.p99_ms", 3.0, latency=[run])["verdict"] == PASSED
    assert judged("gpu.p99_ms", 2.9, latency=[run])["verdict"] == FAILED
    entry = judged("gpu.p99_ms", 3.0, latency=[timed()])
    assert (entry["verdict"], entry["measured"]) == (NOT_JUDGED, None)
    assert "no times of the GPU" in entry["reason"]


def played(**changes):
    return dict(
        {"scenario": "server", "valid": True, "reason": "", "samples_ms": [1.0, 2.0, 3.0] * 40, "per_s": 40.0},
        **changes,
    )


def test_a_scenario_is_judged_where_it_was_played_and_valid():
    assert judged("server.p50_ms", 2.0, scenarios=[played()])["verdict"] == PASSED
    assert judged("server.p50_ms", 1.9, scenarios=[played()])["verdict"] == FAILED
    assert judged("server.per_s", 40.1, scenarios=[played()])["verdict"] == FAILED
    offline = played(scenario="offline", samples_ms=[])
    assert judged("offline.p50_ms", 2.0, scenarios=[offline])["verdict"] == NOT_JUDGED
    assert judged("offline.per_s", 40.0, scenarios=[offline])["verdict"] == PASSED
    assert "--scenario offline" in judged("offline.per_s", 1.0, scenarios=[played()])["reason"]
    entry = judged("server.p50_ms", 2.0, scenarios=[played(valid=False, reason="the queue grew")])
    assert (entry["verdict"], entry["measured"]) == (NOT_JUDGED, None)
    assert "the queue grew" in entry["reason"]


def test_what_could_not_be_measured_is_not_judged():
    entry = judged("energy_mj", 3.0, {"energy_mj": None})
    assert (entry["verdict"], entry["reason"]) == (NOT_JUDGED, "it could not be measured")


def test_a_rehearsal_judges_the_file_only():
    both = judge_budgets({"p95_ms": 1e-9, "file_mb": 1.0}, {"file_mb": 2.0}, [timed()], "onnxruntime-cpu")
    assert [entry["verdict"] for entry in both] == [NOT_JUDGED, FAILED]


def test_a_miss_on_a_disturbed_machine_says_so():
    assert "quiet machine" in judged("p95_ms", 1e-9, latency=[replace(timed(), contended=True)])["reason"]
    marked = replace(timed(), marks=["throttled: the clock fell"])
    assert "the clock fell" in judged("p95_ms", 1e-9, latency=[marked])["reason"]
    assert judged("p95_ms", 1e9, latency=[marked])["reason"] == "batch 1"  # what passes needs no excuse


def hop_of(verdict):
    hop = compare_answers("student -> ONNX", "embedding", np.ones((1, 2)), np.ones((1, 2)), ["a"])
    return replace(hop, verdict=verdict)


@pytest.mark.parametrize(
    ("host", "device", "budget", "verdict"),
    [
        (PASSED, NOT_JUDGED, NOT_JUDGED, NOT_JUDGED),  # a rehearsal does not pass by what the host has judged
        (NOT_JUDGED, PASSED, NOT_JUDGED, PASSED),
        (NOT_JUDGED, NOT_JUDGED, PASSED, PASSED),
        (FAILED, PASSED, PASSED, FAILED),
        (PASSED, FAILED, PASSED, FAILED),
        (PASSED, PASSED, FAILED, FAILED),
    ],
)
def test_verdict_of_the_report(host, device, budget, verdict):
    assert judge_report([hop_of(host)], [hop_of(device)], [{"verdict": budget}]) == verdict
