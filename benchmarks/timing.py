"""Whether our stopwatch tells the time: against a plain loop around the same session, and against nothing at all.

    python benchmarks/timing.py [--rounds 80] [--seconds 0.1] [--processor] [--bundle DIR]

The plain loop is what onnxruntime_perf_test does: one run to warm up, the clock around each run until the time is over, the
median by rank. Both time one session in turn, each first in every other round; a short round gives a ratio of medians, and
the table the median of those with its 95 % interval, so that other work on the machine weighs on both alike. Where there
is too much of it, --processor lets all read the thread's processor time instead of the wall's. Without a bundle a small
convolutional network is made. The aims: within 2 %, and less than 5 microseconds a sample.
"""

import argparse
import os
import statistics
import tempfile
import time

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from tinkit.bundle import open_bundle
from tinkit.device.bootstrap import intervals
from tinkit.device.latency import measure
from tinkit.device.runtime import OnnxRuntime

EMPTY_RUNS = 20000


def small_network(path, size=96, width=48):
    """image (batch, 3, 96, 96) -> three convolutions -> embedding (batch, 48): some milliseconds on one core."""
    rng, nodes, weights, data = np.random.default_rng(0), [], [], "image"
    for number, channels in enumerate((3, width, width)):
        weight = rng.normal(size=(width, channels, 3, 3)).astype(np.float32) / channels
        weights.append(numpy_helper.from_array(weight, f"weight{number}"))
        nodes.append(helper.make_node("Conv", [data, f"weight{number}"], [f"conv{number}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]))
        data = f"relu{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [data], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["embedding"]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, size, size])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", width])
    graph = helper.make_graph(nodes, "small", [image], [embedding], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def plain_median(session, feeds, seconds, clock):
    """Milliseconds, as onnxruntime_perf_test counts them: time is over when the runs themselves add up to it."""
    session.run(None, feeds)
    times = []
    while sum(times) < seconds:
        begin = clock()
        session.run(None, feeds)
        times.append(clock() - begin)
    return sorted(times)[len(times) // 2] * 1e3


def our_median(run, seconds, clock):
    return measure(run, 1, 1, warmup_s=0.0, min_samples=1, min_seconds=seconds, wall_clock=clock).p50_ms


def compared(runtime, feeds, rounds, seconds, clock):
    """name -> [median of each round]: the plain loop, ours around the same call, ours around the Runtime protocol."""
    session = runtime._session  # the same one for all: two sessions differ by more than two loops
    ways = {
        "plain loop, session.run": lambda: plain_median(session, feeds, seconds, clock),
        "measure(), session.run": lambda: our_median(lambda: session.run(None, feeds), seconds, clock),
        "measure(), runtime.run": lambda: our_median(lambda: runtime.run(feeds), seconds, clock),
    }
    found = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in names:
            found[name].append(ways[name]())
    return found


def overhead(rounds):
    """(microseconds a sample of a loop around nothing, those of them inside the sample): medians of the rounds."""
    whole, inside = [], []
    for _ in range(rounds):
        seen = measure(lambda: None, 1, 1, 0.0, EMPTY_RUNS, 0.0, gpu_ms=lambda: 1.0)
        whole.append(seen.seconds / seen.samples * 1e6)
        inside.append(seen.p50_ms * 1e3)
    return statistics.median(whole), statistics.median(inside)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each loop in each round")
    parser.add_argument("--bundle", help="a bundle whose model is timed")
    parser.add_argument("--processor", action="store_true", help="processor time, where other work disturbs")
    asked = parser.parse_args()
    clock = time.thread_time if asked.processor else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        made = None if asked.bundle else small_network(os.path.join(folder, "small.onnx"))
        with OnnxRuntime(made or open_bundle(asked.bundle).model_path, threads=1) as runtime:
            feeds = {one.name: np.zeros((1, *one.shape[1:]), one.dtype) for one in runtime.inputs}
            found = compared(runtime, feeds, asked.rounds, asked.seconds, clock)
    plain = found["plain loop, session.run"]
    told = f"{asked.rounds} rounds of {asked.seconds:g} s by {clock.__name__}"
    print(f"{told}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("| way | median of medians, ms | lowest | highest | to the plain loop | 95 % |")
    print("|---|---|---|---|---|---|")
    for name, medians in found.items():
        ratios = [ours / theirs - 1 for ours, theirs in zip(medians, plain)]
        times = [f"{one:.3f}" for one in (statistics.median(medians), min(medians), max(medians))]
        sure = intervals(ratios, (50,))[0].get(50)
        sure = "{:+.2%} to {:+.2%}".format(*sure) if sure else "too few rounds"
        print("| " + " | ".join((name, *times, f"{statistics.median(ratios):+.2%}", sure)) + " |")
    whole, inside = overhead(min(asked.rounds, 5))
    print(f"a sample of nothing: {whole:.2f} us altogether, {inside:.2f} us of it inside the sample")


if __name__ == "__main__":
    main()
