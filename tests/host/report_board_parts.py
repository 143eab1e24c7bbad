"""What a board may tell in a report, every field filled: numbers are made up, shapes are those of tinkit/device."""

import copy
from dataclasses import replace

import numpy as np
from report_parts import latency, small_bundle, small_report

from tinkit.device.latency import summary

NEW_FIELDS = ("board", "watch", "power", "layers", "throughput", "scenarios", "trtexec", "steps", "transfer")


def window(name, mhz, celsius, watts, events=0):
    return {
        "name": name, "seconds": 3.0, "samples": 15,
        "gpu_mhz": {"median": mhz, "min": mhz - 20, "max": mhz + 1}, "cpu_mhz": {"median": 1510.4, "min": 1510.4, "max": 1510.4},
        "temperature_c": {"gpu": {"first": celsius, "last": celsius + 1.5, "max": celsius + 2.25},
                          "soc0": {"first": 40.0, "last": 40.0, "max": 40.0}},
        "power_w": {"VDD_IN": {"mean": watts, "median": watts, "max": watts + 1, "samples": 15, "source": "tegrastats"},
                    "VDD_SOC": {"mean": 1.25, "median": 1.25, "max": 1.5, "samples": 15, "source": "tegrastats"}},
        "throttle_events": events,
    }  # fmt: skip


BOARD = {
    "model": "NVIDIA Jetson Orin Nano of note", "compatible": ["nvidia,tegra234"], "module": "p3767-0003", "soc": "tegra234",
    "sm": "8.7", "l4t": "36.4.7", "jetpack": "6.2.1", "memory_mb": 7990, "tensorrt": "10.3.0.30", "cuda": "12.6",
    "power_mode": "25W", "power_modes": {"15W": 0, "25W": 1}, "clocks_pinned": True,
    "gpu_mhz": {"now": 918.0, "min": 918.0, "max": 918.0}, "cpu_mhz": {"now": 1344.0}, "emc_mhz": {},
    "fan": {"pwm": 128, "rpm": 2300}, "temperatures_c": {"gpu": 44.5, "cpu": 45.25}, "played_back": "",
}  # fmt: skip
BOARD["after"] = dict(BOARD, temperatures_c={"gpu": 51.5, "tj": 52.0})
WATCH = {
    "sources": ["devfreq", "tegrastats"], "interval_s": 0.2, "missing": ["energy: no counters"],
    "windows": [window("idle", 306.0, 44.0, 4.5), window("batch 1", 918.0, 47.0, 7.5), window("batch 8", 880.0, 50.0, 8.5, 3)],
}  # fmt: skip
POWER = {"source": "tegrastats", "rail": "VDD_IN", "idle_w": 4.5, "load_w": 7.5, "energy_mj": 23.25,
         "energy_above_idle_mj": 9.125, "note": "the rail before all others; mean of 15 samples"}  # fmt: skip
LAYERS = {
    "runtime": "tensorrt", "runs": 20, "batch": 1, "layers": 31, "total_ms": 2.5, "whole_ms": 2.4, "profiled_ms": 2.6,
    "named_share": 0.987,
    "top": [
        {"layer": "fused 1", "nodes": ["stem/Conv", "stem/Relu", "stem/Add", "stem/Mul"], "type": "CaskConvolution", "ms": 1.5,
         "share": 0.6, "note": "", "macs": 10, "bytes": 20, "least_ms": 0.5, "bound": "memory", "times_the_bound": 3.0},
        {"layer": "Reformat 2", "nodes": [], "type": "Reformat", "ms": 0.75, "share": 0.3,
         "note": "not an ONNX node of this graph",
         "macs": 0, "bytes": 0, "least_ms": 0.0, "bound": "unknown", "times_the_bound": None},
    ],
    "peaks": {"ops_per_s": {"fp16": 15.0e12, "int8": 30.1e12}, "bytes_per_s": 102.4e9, "source": "device profile of note"},
    "note": "The layers add up to 2.500 ms.",
}  # fmt: skip
THROUGHPUT = [
    {"streams": streams, "batch": 8, "pictures_per_s": 333.25 * streams, "runs": 240, "seconds": 3.01,
     "p50_ms": 4.1, "p99_ms": 5.2}
    for streams in (1, 2)
]  # fmt: skip
SERVER = {
    "scenario": "server", "duration_s": 10.0, "min_samples": 500, "rate_per_s": 123.5, "samples_per_query": 8, "seed": 4,
    "max_batch": 16,
    "queries": 1240, "samples": 1240, "seconds": 10.02, "p50_ms": 4.0, "p90_ms": 6.0, "p95_ms": 7.0, "p99_ms": 9.0,
    "p999_ms": 11.5,
    "mean_ms": 4.25, "per_s": 123.75, "valid": True, "reason": "",
}  # fmt: skip
OFFLINE = dict(SERVER, scenario="offline", rate_per_s=0.0, valid=False, reason="only 3 samples of 500 in 100 s",
               **dict.fromkeys(("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "mean_ms")))  # fmt: skip
SPREAD = {
    "p50_ms": 1.5,
    "p90_ms": 1.6,
    "p95_ms": 1.7,
    "p99_ms": 1.8,
    "p999_ms": 1.9,
    "mean_ms": 1.55,
    "min_ms": 1.4,
    "max_ms": 2.0,
}
TRTEXEC = {
    "version": "10.3.0", "path": "/usr/src/tensorrt/bin/trtexec", "command": ["trtexec", "--onnx=a b.onnx"], "engine": "tinkit's",
    "batch": 1, "cuda_graph": True, "transfers": False, "compute": SPREAD, "latency": SPREAD, "h2d": {}, "d2h": {}, "enqueue": {},
    "samples": 2000, "throughput_qps": 600.0, "device": "Orin", "settings": {"cuda_graph": True}, "as_asked": True, "layers": [],
    "marks": [], "agreement": {"ours_ms": 1.53, "trtexec_ms": 1.5, "apart": 0.02, "within": 0.03, "verdict": "agrees",
                               "note": "tinkit's median GPU compute time is +2.0% of trtexec's"},
}  # fmt: skip
STEPS = {"connect": 0.4, "hello": 0.2, "copy": 1.5, "run": 80.0, "work": 78.0, "exam": 2.0, "latency": 20.0, "bye": 0.1}
TRANSFER = {"sent_bytes": 1_234_567, "received_bytes": 76_543, "files_sent": 4, "files_there": 0}


def board_latencies():
    """Batch 1 without and with a CUDA graph, with intervals and GPU times."""
    of_gpu = dict(summary(np.linspace(1.45, 1.61, 60)), intervals={"p50_ms": [1.5, 1.56]})
    plain = latency(
        threads=0, intervals={"p50_ms": [2.91, 3.11], "p999_ms": [4.0, 50.0]}, gpu=of_gpu, drift=0.012,
        conditions={"runtime": "tensorrt", "cuda_graph": False, "copies": "included"},
    )  # fmt: skip
    return [plain, replace(plain, conditions=dict(plain.conditions, cuda_graph=True))]


def board_report(folder, **changes):
    """A whole report of a board beside a small bundle, written as report/report.json."""
    told = {
        "board": BOARD, "watch": WATCH, "power": POWER, "layers": LAYERS, "throughput": THROUGHPUT,
        "scenarios": [SERVER, OFFLINE],
        "trtexec": TRTEXEC, "steps": STEPS, "transfer": TRANSFER, "first_ms": 8.25, "latency": board_latencies(),
    }  # fmt: skip
    return small_report(folder, small_bundle(folder), **{**told, **changes})


def planted(value, path, seen):
    """A copy of plain data with `seen` at `path`, a sequence of keys."""
    whole = copy.deepcopy(value)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = seen
    return whole
