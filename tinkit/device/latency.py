"""The stopwatch: one function for every runtime, because two ways of timing are two different numbers.

Protocol tinkit-latency-2. Warm up in windows of 10 runs until the medians of the last two windows are within 5 % of
each other, at most `warmup_s`; then run until there are `min_samples` samples and `min_seconds` have passed, with
Python's collector of garbage at rest. Every sample is kept. Wall time is what a product waits for; the thread's processor
time tells whether other work had the core: with one thread and more than 1.1 times as much wall time, the numbers are marked
contended. How sure a percentile is: tinkit/device/bootstrap.py. Against protocol 1: the collector rests, p99.9,
intervals, drift, and the GPU's own times where there are any; how the wall clock is read is the same.
"""

import contextlib
import gc
import time

import numpy as np

from tinkit.device.bootstrap import SEED, intervals
from tinkit.results import LATENCY_PROTOCOL, Latency

WINDOW = 10
STABLE = 0.05
CONTENDED = 1.1
DRIFT = 0.05
PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p95_ms": 95, "p99_ms": 99, "p999_ms": 99.9}


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
    gpu_ms=None,
    window=None,
):
    """Time `run()`, which computes one batch and returns when its answers are in host memory. Clocks in seconds.

    threads: 0 where the runtime sleeps while another processor works, so that nothing can be said about contention.
    gpu_ms: a function that tells the GPU's own milliseconds of the last run, or None where it has none. window: a context
    manager that is entered for warm-up and sampling alone, not for the statistics, in which the processor idles. intervals
    and percentiles go by the names of `PERCENTILES`.
    """
    if min_samples < 1:
        raise ValueError("at least one sample is taken")
    with window or contextlib.nullcontext():
        warmup_runs, stable = _warm_up(run, warmup_s, wall_clock)
        with _no_collection():
            wall, cpu, gpu, seconds = _sample(run, min_samples, min_seconds, wall_clock, cpu_clock, gpu_ms)
    times = summary(np.array(wall) * 1e3)
    wall_per_cpu = sum(wall) / max(sum(cpu), 1e-9)
    contended = threads == 1 and wall_per_cpu > CONTENDED
    drift = drift_of(wall)
    block = times.pop("block")
    return Latency(
        batch=batch,
        threads=threads,
        samples=len(wall),
        seconds=seconds,
        warmup_runs=warmup_runs,
        stable=stable,
        contended=contended,
        wall_per_cpu=wall_per_cpu,
        drift=drift,
        gpu={} if not gpu or None in gpu else summary(gpu),
        marks=_marks(stable, warmup_s, contended, wall_per_cpu, drift),
        conditions=dict(
            conditions or {},
            protocol=LATENCY_PROTOCOL,
            clock="wall clock around each run; percentiles by linear interpolation",
            copies="included: arrays in host memory in, arrays in host memory out",
            warmup="until medians of two windows of {} runs are within {:.0%}, at most {:g} s".format(
                WINDOW, STABLE, warmup_s
            ),
            sampling="at least {} samples and {:g} s, Python's garbage collection at rest".format(
                min_samples, min_seconds
            ),
            intervals="95 % by circular block bootstrap, blocks of {} samples, seed {}".format(block, SEED),
            # Of the calling thread: hardly moved by other work, so the number to compare when contended (one thread).
            thread_cpu_p50_ms=float(np.percentile(cpu, 50)) * 1e3,
        ),
        **times,
    )


def summary(samples_ms):
    """mean, min, percentiles, intervals and the samples themselves (rounded to a nanosecond) as plain data."""
    samples = np.round(np.asarray(samples_ms, dtype=np.float64), 6)
    sure, block = intervals(samples, tuple(PERCENTILES.values()))
    found = {name: float(np.percentile(samples, percent)) for name, percent in PERCENTILES.items()}
    found.update(mean_ms=float(np.mean(samples)), min_ms=float(np.min(samples)), block=block)
    found["intervals"] = {name: list(sure[percent]) for name, percent in PERCENTILES.items() if percent in sure}
    found["samples_ms"] = samples.tolist()
    return found


def drift_of(samples):
    """The median of the last fifth over that of the first, minus 1: 0.1 is 10 % slower at the end."""
    fifth = max(1, len(samples) // 5)
    first, last = np.median(samples[:fifth]), np.median(samples[-fifth:])
    return float(last / first - 1) if first > 0 else 0.0


def _marks(stable, warmup_s, contended, wall_per_cpu, drift):
    marks = []
    if not stable:
        marks.append("not settled: the run times still changed after {:g} s of warm-up".format(warmup_s))
    if contended:
        marks.append("contended: other work had the core, {:.2f} s of wall time to 1 s of work".format(wall_per_cpu))
    if abs(drift) > DRIFT:
        word = "slower" if drift > 0 else "faster"
        marks.append("drifted: the last fifth of the runs was {:.0%} {} than the first".format(abs(drift), word))
    return marks


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


def _sample(run, min_samples, min_seconds, wall_clock, cpu_clock, gpu_ms):
    """(wall seconds of each run, processor seconds of each, GPU ms of each or [], seconds altogether).

    What this loop does between two runs is a few microseconds (benchmarks/timing.py), so it is written without calls that
    can be done afterwards. Processor time is read once a run, and so counts the loop's own.
    """
    wall, cpu, gpu, runs = [], [], [], 0
    start = wall_clock()
    cpu_before = cpu_clock()
    while True:
        begin = wall_clock()
        run()
        end = wall_clock()
        cpu_now = cpu_clock()
        wall.append(end - begin)
        cpu.append(cpu_now - cpu_before)
        cpu_before = cpu_now
        if gpu_ms is not None:
            gpu.append(gpu_ms())
        runs += 1
        if runs >= min_samples and end - start >= min_seconds:
            return wall, cpu, gpu, end - start


@contextlib.contextmanager
def _no_collection():
    """A collection in the middle would be some run's milliseconds; it is done before and then switched off."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
