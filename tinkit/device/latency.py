"""The stopwatch: one function for every runtime, because two ways of timing are two different numbers.

Protocol tinkit-latency-1. Warm up in windows of 10 runs until the medians of the last two windows are within 5 % of
each other, at most `warmup_s`; then run until there are `min_samples` samples and `min_seconds` have passed. Every
sample is kept. Wall time is what a product waits for; the thread's processor time tells whether other work had the
core: with one thread and more than 1.1 times as much wall time, the numbers are marked contended.
"""

import time

import numpy as np

from tinkit.results import LATENCY_PROTOCOL, Latency

WINDOW = 10
STABLE = 0.05
CONTENDED = 1.1


def measure(
    run,
    batch,
    threads,
    warmup_s,
    min_samples,
    min_seconds,
    wall_clock=time.perf_counter,
    cpu_clock=time.thread_time,
    conditions=None,
):
    """Time `run()`, which computes one batch and returns when its answers are in host memory. Clocks in seconds."""
    warmup_runs, stable = _warm_up(run, warmup_s, wall_clock)
    wall, cpu, seconds = _sample(run, min_samples, min_seconds, wall_clock, cpu_clock)
    samples_ms = [round(sample * 1e3, 6) for sample in wall]
    p50, p90, p95, p99 = (float(value) for value in np.percentile(samples_ms, (50, 90, 95, 99)))
    wall_per_cpu = sum(wall) / max(sum(cpu), 1e-9)
    return Latency(
        batch=batch,
        threads=threads,
        samples=len(samples_ms),
        seconds=seconds,
        mean_ms=float(np.mean(samples_ms)),
        min_ms=min(samples_ms),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        warmup_runs=warmup_runs,
        stable=stable,
        contended=threads == 1 and wall_per_cpu > CONTENDED,
        wall_per_cpu=wall_per_cpu,
        samples_ms=samples_ms,
        conditions=dict(
            conditions or {},
            protocol=LATENCY_PROTOCOL,
            clock="wall clock around each run; percentiles by linear interpolation",
            copies="included: arrays in host memory in, arrays in host memory out",
            warmup="until medians of two windows of {} runs are within {:.0%}, at most {:g} s".format(
                WINDOW, STABLE, warmup_s
            ),
            sampling="at least {} samples and {:g} s".format(min_samples, min_seconds),
            # Of the calling thread: hardly moved by other work, so the number to compare when contended (one thread).
            thread_cpu_p50_ms=float(np.percentile(cpu, 50)) * 1e3,
        ),
    )


def _warm_up(run, warmup_s, clock):
    """(runs, stable): run until two neighbouring windows agree or the time is over, at least once."""
    start = clock()
    runs, window, before = 0, [], None
    while True:
        begin = clock()
        run()
        now = clock()
        runs += 1
        window.append(now - begin)
        if len(window) == WINDOW:
            median = float(np.median(window))
            if before is not None and abs(median - before) <= STABLE * max(median, before):
                return runs, True
            window, before = [], median
        if now - start >= warmup_s:
            return runs, False


def _sample(run, min_samples, min_seconds, wall_clock, cpu_clock):
    """(wall seconds of each run, processor seconds of each run, seconds altogether)."""
    wall, cpu = [], []
    start = wall_clock()
    while True:
        cpu_begin = cpu_clock()
        begin = wall_clock()
        run()
        end = wall_clock()
        cpu.append(cpu_clock() - cpu_begin)
        wall.append(end - begin)
        if len(wall) >= min_samples and end - start >= min_seconds:
            return wall, cpu, end - start
