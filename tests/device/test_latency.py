"""The stopwatch under clocks that only the test moves: every number is known beforehand."""

import gc
import json
import time
from dataclasses import asdict

import numpy as np
import pytest

from tinkit.device.latency import PERCENTILES, drift_of, measure
from tinkit.results import Latency


class Machine:
    """Runs take the seconds of a list, in turn; processor time passes at `cpu_share` of wall time."""

    def __init__(self, seconds, cpu_share=1.0):
        self.seconds, self.cpu_share, self.runs, self.now = seconds, cpu_share, 0, 0.0

    def run(self):
        self.now += self.seconds(self.runs)
        self.runs += 1

    def wall(self):
        return self.now

    def cpu(self):
        return self.now * self.cpu_share


def timed(machine, threads=1, warmup_s=10.0, min_samples=200, min_seconds=0.0, **more):
    return measure(machine.run, 1, threads, warmup_s, min_samples, min_seconds, machine.wall, machine.cpu, **more)


def jittering():
    """A machine that settles at once and then takes 1 to 1.5 ms by chance."""
    more = np.random.default_rng(8).random(1000)
    return Machine(lambda run: 0.001 if run < 20 else 0.001 + 0.0005 * float(more[run]))


def test_percentiles_are_exact_under_a_fake_clock():
    machine = Machine(lambda run: 0.001 if run < 20 else (run - 19) * 0.001)  # 20 to warm up, then 1, 2, ... 201 ms
    seen = timed(machine, min_samples=201)
    assert (seen.warmup_runs, seen.stable, seen.samples) == (20, True, 201)
    assert seen.samples_ms == pytest.approx(list(range(1, 202)), abs=1e-6)
    found = (seen.p50_ms, seen.p90_ms, seen.p95_ms, seen.p99_ms, seen.p999_ms)
    assert found == pytest.approx((101, 181, 191, 199, 200.8), abs=1e-6)
    assert (seen.min_ms, seen.mean_ms) == pytest.approx((1, 101), abs=1e-6)
    assert seen.seconds == pytest.approx(201 * 202 / 2 / 1e3)


def test_percentiles_are_of_the_samples_that_are_kept():
    machine = Machine(lambda run: 0.001 + (run * 7919 % 1000) / 1e5)
    seen = timed(machine)
    assert np.percentile(seen.samples_ms, 95) == seen.p95_ms


def test_sampling_goes_on_until_both_limits_are_reached():
    assert timed(Machine(lambda run: 0.001), min_seconds=3.0).samples == pytest.approx(3000, abs=1)
    assert timed(Machine(lambda run: 0.1), min_seconds=3.0).samples == 200


def test_warm_up_ends_with_two_windows_that_agree():
    machine = Machine(lambda run: 0.010 if run < 30 else 0.005)  # slow for three windows: the first two agree already
    assert timed(machine).warmup_runs == 20
    halving = Machine(lambda run: 0.1 / 2 ** (run // 10) if run < 50 else 0.001)
    seen = timed(halving)
    assert (seen.warmup_runs, seen.stable) == (70, True)


@pytest.mark.parametrize(("second", "runs"), [(1.05, 20), (1.06, 30)])
def test_windows_agree_within_five_per_cent_of_the_larger(second, runs):
    machine = Machine(lambda run: 0.001 if run < 10 else 0.001 * second)
    assert timed(machine).warmup_runs == runs


def test_warm_up_gives_up_after_its_time_and_says_so():
    machine = Machine(lambda run: 0.02 * (1 + run // 10))  # never settles
    seen = timed(machine, warmup_s=1.0)
    assert not seen.stable
    assert seen.warmup_runs < 50
    assert timed(Machine(lambda run: 2.0), warmup_s=1.0).warmup_runs == 1


@pytest.mark.parametrize(
    ("cpu_share", "threads", "contended"),
    [(1.0, 1, False), (1 / 1.09, 1, False), (1 / 1.11, 1, True), (1 / 3, 1, True), (1 / 3, 2, False)],
)
def test_contended_when_one_thread_waits_for_its_core(cpu_share, threads, contended):
    seen = timed(Machine(lambda run: 0.002, cpu_share), threads=threads)
    assert seen.wall_per_cpu == pytest.approx(1 / cpu_share)
    assert seen.contended is contended
    assert seen.conditions["thread_cpu_p50_ms"] == pytest.approx(2 * cpu_share)


def test_a_clock_that_stands_still_gives_numbers_all_the_same():
    seen = measure(lambda: None, 1, 1, 0.0, 200, 0.0, lambda: 1.0, lambda: 1.0)
    assert seen.p99_ms == 0
    assert np.isfinite(seen.wall_per_cpu)


def test_it_agrees_with_a_plain_loop_around_the_same_runs():
    """A clock around the call, as onnxruntime_perf_test has it, inside of ours: the same numbers where only the runs take time.

    What our own loop adds on a real machine is measured by benchmarks/timing.py (docs/boards.md)."""
    machine, plain = Machine(lambda run: 0.001 * (1 + run % 7)), []
    run = machine.run

    def clocked():
        begin = machine.wall()
        run()
        plain.append((machine.wall() - begin) * 1e3)

    machine.run = clocked
    seen = timed(machine, min_samples=300)
    for name, percent in (("p50_ms", 50), ("p90_ms", 90)):
        assert getattr(seen, name) == pytest.approx(np.percentile(plain[-seen.samples :], percent))


def test_sleeping_is_not_work_on_the_real_clocks():
    seen = measure(lambda: time.sleep(0.001), 1, 1, 0.0, 20, 0.0)
    assert seen.min_ms >= 1
    assert seen.contended


def test_conditions_state_the_protocol():
    seen = timed(Machine(lambda run: 0.001), conditions={"device": "here"})
    assert seen.protocol == seen.conditions["protocol"] == "tinkit-latency-2"
    assert "included" in seen.conditions["copies"]
    assert "collection at rest" in seen.conditions["sampling"]
    assert "bootstrap" in seen.conditions["intervals"]
    assert {"clock", "warmup", "device"} <= set(seen.conditions)


@pytest.mark.parametrize("was_on", [True, False])
def test_nothing_is_collected_between_the_samples(was_on):
    seen = []

    def run():
        seen.append(gc.isenabled())
        if len(seen) == 15:
            raise KeyboardInterrupt

    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(KeyboardInterrupt):
            measure(run, 1, 1, 0.0, 200, 0.0)
        assert gc.isenabled() is was_on
        assert seen[1:] == [False] * 14
    finally:
        gc.enable()


def test_intervals_are_of_what_the_samples_carry():
    seen = timed(jittering(), min_samples=500)
    assert set(seen.intervals) == {"p50_ms", "p90_ms", "p95_ms"}
    for name, (low, high) in seen.intervals.items():
        assert low < getattr(seen, name) < high


@pytest.mark.parametrize(("last", "drift", "marked"), [(1.0, 0.0, 0), (1.04, 0.04, 0), (1.06, 0.06, 1), (0.9, -0.1, 1)])
def test_drift_is_told_and_marked_above_a_twentieth(last, drift, marked):
    machine = Machine(lambda run: 0.001 if run < 20 + 160 else 0.001 * last)
    seen = timed(machine)
    assert seen.drift == pytest.approx(drift)
    assert len(seen.marks) == marked
    assert all("drifted: the last fifth" in mark and ("faster" in mark) is (last < 1) for mark in seen.marks)


def test_drift_of_few_samples():
    assert drift_of([1.0]) == 0.0
    assert drift_of([1.0, 2.0]) == 1.0
    assert drift_of([0.0, 2.0]) == 0.0


def test_marks_say_what_was_wrong_and_a_quiet_run_has_none():
    assert timed(Machine(lambda run: 0.001)).marks == []
    contended = timed(Machine(lambda run: 0.002, 0.5)).marks
    assert [mark.split(":")[0] for mark in contended] == ["contended"]
    assert "2.00 s" in contended[0]
    unsettled = timed(Machine(lambda run: 0.02 * (1 + run // 10)), warmup_s=1.0).marks
    assert [mark.split(":")[0] for mark in unsettled] == ["not settled", "drifted"]


def test_the_gpus_own_times_are_of_the_same_runs():
    machine = Machine(lambda run: 0.002)
    seen = timed(machine, gpu_ms=lambda: float(machine.runs))
    assert seen.gpu["samples_ms"] == [float(run) for run in range(21, 221)]  # after 20 to warm up
    assert seen.gpu["p50_ms"] == 120.5
    assert seen.gpu["min_ms"] == 21.0
    assert set(PERCENTILES) | {"mean_ms", "intervals"} <= set(seen.gpu)
    assert seen.p50_ms == pytest.approx(2)
    assert timed(Machine(lambda run: 0.002)).gpu == {}
    assert timed(Machine(lambda run: 0.002), gpu_ms=lambda: None).gpu == {}


def test_it_survives_json():
    seen = timed(jittering(), gpu_ms=lambda: 1.5)
    assert Latency.from_json(json.loads(json.dumps(seen.to_json(), allow_nan=False))) == seen
    assert asdict(seen)["intervals"]


def test_no_samples_are_a_programmers_error():
    with pytest.raises(ValueError, match="at least one"):
        timed(Machine(lambda run: 0.001), min_samples=0)
