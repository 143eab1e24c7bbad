"""The stopwatch under clocks that only the test moves: every number is known beforehand."""

import time

import numpy as np
import pytest

from tinkit.device.latency import measure


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


def timed(machine, threads=1, warmup_s=10.0, min_samples=200, min_seconds=0.0):
    return measure(machine.run, 1, threads, warmup_s, min_samples, min_seconds, machine.wall, machine.cpu)


def test_percentiles_are_exact_under_a_fake_clock():
    machine = Machine(lambda run: 0.001 if run < 20 else (run - 19) * 0.001)  # 20 to warm up, then 1, 2, ... 201 ms
    seen = timed(machine, min_samples=201)
    assert (seen.warmup_runs, seen.stable, seen.samples) == (20, True, 201)
    assert seen.samples_ms == pytest.approx(list(range(1, 202)), abs=1e-6)
    assert (seen.p50_ms, seen.p90_ms, seen.p95_ms, seen.p99_ms) == pytest.approx((101, 181, 191, 199), abs=1e-6)
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


def test_the_stopwatch_itself_takes_little_time():
    seen = measure(lambda: None, 1, 1, 0.05, 500, 0.01)
    assert seen.min_ms < 0.01  # ten microseconds; a student takes a thousand


def test_sleeping_is_not_work_on_the_real_clocks():
    seen = measure(lambda: time.sleep(0.001), 1, 1, 0.0, 20, 0.0)
    assert seen.min_ms >= 1
    assert seen.contended


def test_conditions_state_the_protocol():
    conditions = timed(Machine(lambda run: 0.001)).conditions
    assert conditions["protocol"] == "tinkit-latency-1"
    assert "included" in conditions["copies"]
    assert {"clock", "warmup", "sampling"} <= set(conditions)
