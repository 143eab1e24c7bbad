"""What is measured of a loaded model, one thing after the other, each in a window of its own of the watch.

Idle, the latency of every batch of the profile (with a CUDA graph as well where the runtime has one), several streams at
once, load scenarios, layers. The watch samples clocks, temperatures and power from a process of its own; a window whose
clocks fell, or which other work disturbed, is marked and never averaged away.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List

import numpy as np

from tinkit.device import board
from tinkit.device.latency import measure
from tinkit.device.layers import layers_report
from tinkit.device.scenarios import play
from tinkit.device.sitting import network_input
from tinkit.device.throughput import throughput
from tinkit.device.watch import power
from tinkit.errors import CannotJudge, TinkitError
from tinkit.results import Latency

IDLE = "idle"
IDLE_S = 3.0  # at most: no longer than the profile's min_seconds


@dataclass
class Measured:
    """Everything that `measure_model` found; the lists are in the order of the work."""

    latency: List[Latency] = field(default_factory=list)
    throughput: List[Dict[str, Any]] = field(default_factory=list)
    scenarios: List[Dict[str, Any]] = field(default_factory=list)
    layers: Dict[str, Any] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)
    peak_mb: float = 0.0


class Subject:
    """A loaded bundle: its runtime, the device profile, and arrays to feed it with."""

    def __init__(self, opened, runtime, device, conditions):
        self.opened, self.runtime, self.device = opened, runtime, device
        self.exam = opened.exam()
        self.conditions = dict(conditions, pictures=self._whose_pictures(), measured=_measured(opened.target))

    def feeds(self, batch):
        """The inputs of one run: the exam's pictures in turn, or noise without an exam and as whole frames."""
        opened = self.opened
        if opened.target.frame or self.exam is None:
            height, width = opened.target.frame or (opened.preprocessing.size,) * 2
            pixels = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        else:
            pixels = self.exam.pixels[np.arange(batch) % len(self.exam.pixels)]
        return network_input(opened, pixels)

    def fits(self, batch):
        limits = self.opened.target.batch
        return limits.min <= batch <= limits.max

    def first_run_ms(self):
        """The first run after loading, at the target's smallest batch: what a product waits for after its start."""
        feeds = self.feeds(self.opened.target.batch.min)
        start = time.perf_counter()
        self.runtime.run(feeds)
        return (time.perf_counter() - start) * 1e3

    def _whose_pictures(self):
        if self.opened.target.frame:
            return "noise: frames of {} x {} pixels".format(*self.opened.target.frame)
        return "of the exam" if self.exam is not None else "noise: the bundle has no exam"


def measure_model(subject, watch, steps, scenarios=(), layers=True, power_mode="", say=None):
    """A `Measured`; `watch` is a running Watch, `steps` takes the seconds of each part."""
    found = Measured()
    with steps.of("idle"), watch.window(IDLE):
        time.sleep(min(IDLE_S, subject.device.min_seconds))
    with steps.of("latency"):
        _time_batches(subject, watch, found, say)
    found.peak_mb = board.peak_memory_mb()  # before further contexts, the load's pictures and the profiler
    with steps.of("throughput"):
        _time_streams(subject, watch, found, say)
    with steps.of("scenarios"):
        _play_scenarios(subject, watch, scenarios, found, say)
    if layers:
        with steps.of("layers"):
            found.layers = _layers(subject, power_mode, found, say)
    return found


def _time_batches(subject, watch, found, say):
    limits = subject.opened.target.batch
    for batch in subject.device.batches:
        if not subject.fits(batch):
            found.notes.append(
                "batch {} was not timed: the target takes {} to {}".format(batch, limits.min, limits.max)
            )
            say("latency  " + found.notes[-1])
            continue
        for graph in _graphs(subject.runtime):
            seen = _time_batch(subject, batch, graph, watch)
            found.latency.append(seen)
            told = "latency  {}: p50 {:.3f} ms, p95 {:.3f} ms, p99 {:.3f} ms, {} samples{}"
            end = "".join(", " + mark for mark in seen.marks)
            say(told.format(window_of(seen), seen.p50_ms, seen.p95_ms, seen.p99_ms, seen.samples, end))


def _graphs(runtime):
    """With and without a CUDA graph where there are such; without first, which is what a plain call costs."""
    return (False, True) if hasattr(runtime, "use_cuda_graph") else (None,)


def _time_batch(subject, batch, graph, watch):
    runtime, device, feeds = subject.runtime, subject.device, subject.feeds(batch)
    conditions = dict(subject.conditions)
    if graph is not None:
        runtime.use_cuda_graph(graph)
        conditions["cuda_graph"] = graph
    on_gpu = getattr(runtime, "device_ms", "none") != "none"
    seen = measure(
        lambda: runtime.run(feeds),
        batch=batch,
        # What waits for a GPU may sleep: wall time over processor time says nothing about other work then.
        threads=0 if on_gpu else device.threads,
        warmup_s=device.warmup_s,
        min_samples=device.min_samples,
        min_seconds=device.min_seconds,
        conditions=conditions,
        gpu_ms=(lambda: runtime.device_ms) if on_gpu else None,
        window=watch.window(_window(batch, graph)),
    )
    if graph:
        runtime.use_cuda_graph(False)
    return seen


def window_of(seen):
    """The name of the watch's window in which a `Latency` was taken."""
    return _window(seen.batch, seen.conditions.get("cuda_graph"))


def _window(batch, graph):
    return "batch {}".format(batch) + (", CUDA graph" if graph else "")


def _time_streams(subject, watch, found, say):
    batch = max((batch for batch in subject.device.batches if subject.fits(batch)), default=None)
    if batch is None:
        return
    for streams in subject.device.streams:
        try:
            window = watch.window(_streams(streams))
            seconds = max(subject.device.min_seconds, 0.05)
            seen = throughput(subject.runtime, subject.feeds(batch), batch, streams, seconds, window=window)
        except CannotJudge as error:  # TensorRT 8 with a free batch
            found.notes.append("{} were not timed: {}".format(_streams(streams), error.what))
            say("streams  " + found.notes[-1])
            continue
        found.throughput.append(seen)
        say("streams  {}, batch {}: {:.1f} pictures/s".format(_streams(streams), batch, seen["pictures_per_s"]))


def _play_scenarios(subject, watch, scenarios, found, say):
    limits, ready = subject.opened.target.batch, []  # arrays are made before the clock starts
    if scenarios:
        most = subject.feeds(limits.max)
        ready = [{name: array[: max(n, limits.min)] for name, array in most.items()} for n in range(limits.max + 1)]

    def run(batch):
        subject.runtime.run(ready[batch])

    for scenario in scenarios:
        with watch.window(scenario.name):
            played = play(scenario, run, limits.max)
        found.scenarios.append(played)
        end = "" if played["valid"] else ", not valid: " + played["reason"]
        p99 = "" if played["p99_ms"] is None else "p99 {:.3f} ms, ".format(played["p99_ms"])
        say("scenario {}: {}{:.1f} pictures/s{}".format(scenario.name, p99, played["per_s"], end))


def _layers(subject, power_mode, found, say):
    """Too little memory or disk for a second, profiled session costs the layers, not the report."""
    opened, batch = subject.opened, subject.opened.target.batch.min
    whole = next((run for run in found.latency if run.batch == batch and not run.conditions.get("cuda_graph")), None)
    whole_ms = 0.0 if whole is None else whole.gpu.get("p50_ms", whole.p50_ms)
    try:
        report = layers_report(
            subject.runtime, subject.feeds(batch), opened.manifest, subject.device, power_mode, batch, whole_ms,
            opened.model_path,
        )  # fmt: skip
    except TinkitError as error:
        found.notes.append("the layers were not timed: {} {}".format(error.what, error.seen or "").rstrip())
        say("layers   " + found.notes[-1])
        return {}
    told = "layers   the slowest is {layer}: {ms:.3f} ms, {share:.0%} of them all"
    say(told.format(**report["top"][0]) if report["top"] else "layers   the runtime names none")
    return report


def energy(found, summary):
    """Power and energy of batch 1 under load, of the watch's windows."""
    single = next((run for run in found.latency if run.batch == 1), None)
    window = next((one for one in summary["windows"] if single and one["name"] == window_of(single)), None)
    if window is None:
        return {"source": "", "note": "batch 1 was not timed"}
    return power(summary, IDLE, window["name"], single.warmup_runs + single.samples, window["seconds"])


def marked(found, watch):
    """`found` with the watch's reasons among the marks and the notes; every number stays all the same."""
    latency = [replace(run, marks=run.marks + watch.marks(window_of(run))) for run in found.latency]
    told = [(window_of(run), mark) for run in latency for mark in run.marks]
    others = [_streams(run["streams"]) for run in found.throughput] + [run["scenario"] for run in found.scenarios]
    told += [(name, mark) for name in others for mark in watch.marks(name)]
    return replace(found, latency=latency, notes=found.notes + ["{}: {}".format(*pair) for pair in told])


def _streams(count):
    return "{} stream{}".format(count, "" if count == 1 else "s")


def _measured(target):
    """What one run takes in and what it leaves out, in words."""
    if target.frame:
        return "the network with cropping, resizing and normalising inside; decoding is not included"
    if target.input == "uint8-nhwc":
        return "the network with normalising inside; decoding is not included"
    return "the network alone; decoding and normalising are not included"
