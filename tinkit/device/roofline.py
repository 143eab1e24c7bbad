"""How long a layer must take at least on a machine, from the bytes that it moves and the arithmetic that it does.

Williams, Waterman, Patterson, "Roofline", CACM 2009: least time = the larger of bytes / bandwidth and operations / peak. A
multiply-accumulate is 2 operations. Bytes are those of the graph's tensors as they are stored; what stays inside a fused layer
is not moved, and a tensor that a layer reads twice is moved once. Peaks are dense and of the GPU alone (advertised TOPS count
sparsity and other units): cores x MHz x operations of a core in a cycle. A processor's are measured here, with numpy.
"""

import functools
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Dict

import numpy as np

import tinkit
from tinkit.device.onnx_nodes import VIEWS

PRECISIONS = ("fp32", "fp16", "int8")
SAME_RATE = {"bf16": "fp16", "f32": "fp32"}  # tensor cores: bf16 at fp16's rate
MEMORY, ARITHMETIC, UNKNOWN = "memory", "arithmetic", "unknown"
MATRIX = 512  # side of the matrices whose product is timed: 2 x 512^3 operations
COPIED_BYTES = 64 << 20  # more than caches hold
MEASURE_S = 0.25  # of each of the two
MEASURE_TIMEOUT_S = 30.0
LARGEST = 1e18  # operations or bytes in a second: what is more is damaged
MEANING = (
    "Least times count every tensor as moved from and to memory once, with dense peak rates; a tensor that stays in a cache "
    "may move faster, so a layer can be below its bound."
)


@dataclass(frozen=True)
class Peaks:
    """Dense peak rates: ops_per_s by precision (a multiply-add is 2), bytes_per_s to memory; what is not known is left out
    or 0. source: where they come from, in words."""

    ops_per_s: Dict[str, float] = field(default_factory=dict)
    bytes_per_s: float = 0.0
    source: str = ""

    def to_json(self):
        return {"ops_per_s": dict(self.ops_per_s), "bytes_per_s": self.bytes_per_s, "source": self.source}


def peaks_of(device_profile_json, power_mode, measure=True):
    """The `Peaks` of a device profile (JSON) at a power mode (name), else measured here where `measure` allows, else empty.

    A mode that the profile does not know stands for its fastest one: the bound is then too low, never too high, and the
    source says so. Measuring takes about a second, on as many threads as the profile has.
    """
    gpu, modes = _dict(device_profile_json.get("gpu")), _dict(device_profile_json.get("modes"))
    mode, words = _dict(modes.get(power_mode)), "power mode {}".format(power_mode)
    if not mode:
        known = [_dict(value) for value in modes.values()]
        mode = {key: max([_number(one.get(key)) for one in known] or [0.0]) for key in ("gpu_mhz", "bandwidth_gb_s")}
        words = "no power modes" if not modes else "power mode {!r} is not in it, so its fastest one".format(power_mode)
    cores = _number(mode.get("cores")) or _number(gpu.get("cores"))  # a low mode switches some off
    cores_hz = cores * (_number(mode.get("gpu_mhz")) or _number(gpu.get("mhz"))) * 1e6
    rates = {name: cores_hz * _number(gpu.get("ops_per_core_cycle_" + name)) for name in PRECISIONS}
    rates = {name: rate for name, rate in rates.items() if 0 < rate <= LARGEST}
    bandwidth = (_number(mode.get("bandwidth_gb_s")) or _number(device_profile_json.get("bandwidth_gb_s"))) * 1e9
    if rates:
        named = "device profile {}: {}".format(device_profile_json.get("name") or "without a name", words)
        return Peaks(rates, bandwidth if bandwidth <= LARGEST else 0.0, named)
    if measure:
        return measured_peaks(int(_number(device_profile_json.get("threads")) or 1))
    return Peaks(source="the device profile has no peak rates")


@functools.lru_cache(maxsize=None)  # once a process: it takes a second
def measured_peaks(threads=1):
    """`Peaks` of this processor on `threads` threads: numpy's float32 product and copy, the best of some, in a process of
    its own because the number of threads is fixed when numpy is imported. int8 and half floats are not measured."""
    place = os.path.dirname(os.path.dirname(os.path.abspath(tinkit.__file__)))
    environment = dict(
        os.environ, PYTHONPATH=os.pathsep.join([place] + os.environ.get("PYTHONPATH", "").split(os.pathsep))
    )
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(threads)
    command = [sys.executable, "-m", "tinkit.device.roofline"]
    try:
        ran = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=MEASURE_TIMEOUT_S
        )
        told = json.loads(ran.stdout.decode("utf-8"))
        rates, bandwidth = {"fp32": float(told["ops_per_s"])}, float(told["bytes_per_s"])
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        return Peaks(source="numpy's product and copy could not be measured here: {}".format(str(error)[:200]))
    words = "measured here with numpy: a float32 product of {0} x {0} and a copy of {1} MB, {2} thread{3}"
    return Peaks(rates, bandwidth, words.format(MATRIX, COPIED_BYTES // 10**6, threads, "s" if threads > 1 else ""))


def lines(layers, node_macs, node_bytes, precision_of_node, peaks, batch, graph=None):
    """The layers (tinkit.device.layers) with "macs", "bytes", "least_ms", "bound" and "times_the_bound" added.

    node_macs: node -> MACs of one picture; node_bytes: node -> [read, written, weights of what is read] of one picture. graph:
    the `Graph` of the ONNX file, which tells what stays inside a fused layer; without it every node moves its own. A node
    without a precision has that of the others in its layer.
    bound: "memory", "arithmetic", or "unknown" where the peak of one of them is (then least_ms is what the other one says).
    least_ms is 0, and times_the_bound None, where nothing is known to be moved or computed.
    """
    found = []
    for layer in layers:
        nodes = [name for name in layer["nodes"] if name in node_bytes or name in node_macs]
        moved = _moved_bytes(nodes, node_bytes, batch, graph)
        seconds, known = 0.0, bool(nodes)
        shared = next((precision_of_node[name] for name in nodes if name in precision_of_node), UNKNOWN)
        for name in nodes:
            macs, rate = node_macs.get(name, 0), _rate(precision_of_node.get(name, shared), peaks)
            known = known and (not macs or rate > 0)
            seconds += 2.0 * macs * batch / rate if rate else 0.0
        moving = moved / peaks.bytes_per_s if peaks.bytes_per_s else 0.0
        known = known and (not moved or peaks.bytes_per_s > 0)
        least = max(moving, seconds) * 1e3
        bound = (ARITHMETIC if seconds > moving else MEMORY) if known and least else UNKNOWN
        found.append(
            dict(
                layer,
                macs=sum(node_macs.get(name, 0) for name in nodes) * batch,
                bytes=moved,
                least_ms=least,
                bound=bound,
                times_the_bound=layer["ms"] / least if least else None,
            )
        )
    return found


def _rate(precision, peaks):
    return peaks.ops_per_s.get(SAME_RATE.get(precision, precision), 0.0)


def _moved_bytes(nodes, node_bytes, batch, graph):
    """What the nodes of one layer move for `batch` pictures: weights once, and no tensor between two of them."""
    moved = 0
    for name in nodes:
        read, written, weights = node_bytes.get(name, (0, 0, 0))
        moved += weights + batch * (read - weights + written)
    if graph is None:
        return moved
    here = [graph.by_name[name] for name in nodes if name in graph.by_name]
    if here and all(node.op_type in VIEWS for node in here):
        return 0
    names = {node.name for node in here}
    for tensor in {tensor for node in here for tensor in node.inputs + node.outputs if tensor}:
        writer = graph.writer.get(tensor)
        if writer is None or len(writer.outputs) != 1 or writer.name not in node_bytes or tensor in graph.constants:
            continue
        size, inside = batch * node_bytes[writer.name][1], writer.name in names
        readers = [node.name for node in graph.readers.get(tensor, ())]
        reads = sum(name in names for name in readers)
        moved -= size * (reads if inside else max(reads - 1, 0))
        if inside and reads == len(readers) and tensor not in graph.outputs:
            moved -= size
    return max(moved, 0)


def _dict(value):
    return value if isinstance(value, dict) else {}


def _number(value):
    """A positive finite number, else 0."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return float(value) if fine else 0.0


def _best_seconds(work):
    work()
    best, end = math.inf, time.perf_counter() + MEASURE_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _measure():
    matrix = np.ones((MATRIX, MATRIX), np.float32)
    product = np.empty_like(matrix)
    operations = 2.0 * MATRIX**3 / _best_seconds(lambda: np.dot(matrix, matrix, out=product))
    source = np.ones(COPIED_BYTES, np.uint8)
    copy = np.empty_like(source)
    moved = 2.0 * COPIED_BYTES / _best_seconds(lambda: np.copyto(copy, source))
    print(json.dumps({"ops_per_s": operations, "bytes_per_s": moved}))


if __name__ == "__main__":
    _measure()
