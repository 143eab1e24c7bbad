"""What a board's report is worth: does it say the same five times, what does it say when disturbed, and what does a run cost?

    python benchmarks/board.py BUNDLE --host HOST [--ssh-config FILE] [--python PYTHON] [--runs 5] [--out board.json]
    python benchmarks/board.py BUNDLE --loopback      a real sshd on this machine, as in the tests, with a bare Python

The runs are `tinkit profile --host HOST --keep`, the first with an empty cache on the board. After them one more, while
which a busy process for every core of this machine starts in the middle of batch 1 (only with a board that is this
machine). Results go to a JSON file that a second call goes on from; the tables are Markdown. `--table` only prints them.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import tinkit
from tinkit import files
from tinkit.device.board import machine
from tinkit.device.bootstrap import intervals

BUSY_AFTER_S, BUSY_S = 2.0, 4.0


@contextlib.contextmanager
def far_side(given):
    """The options of `tinkit.profile` that reach the board."""
    if not given.loopback:
        yield {"host": given.host, "ssh_config": given.ssh_config, "python": given.python}
        return
    sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / place) for place in ("host", "device")]
    from sshd_parts import NAME, Sshd, bare_python

    with tempfile.TemporaryDirectory(prefix="tinkit-board-") as folder:
        python = bare_python(Path(folder) / "bare")
        with Sshd(Path(folder) / "sshd", Path(folder) / "cache") as sshd:
            yield {"host": NAME, "ssh_config": sshd.config, "python": python}


def busy(until):
    while time.time() < until:
        pass


class Disturbance:
    """Listens to the run's lines; when the timing begins, waits a little and then takes every core for some seconds."""

    def __init__(self):
        self.started = False

    def hear(self, line):
        print(line, file=sys.stderr)
        if line.startswith("watching") and not self.started:
            self.started = True
            threading.Timer(BUSY_AFTER_S, self._begin).start()

    def _begin(self):
        for _ in range(os.cpu_count() or 1):
            multiprocessing.get_context("fork").Process(target=busy, args=(time.time() + BUSY_S,), daemon=True).start()


def measured(bundle, reached, folder, say):
    """One run as plain data: what the report says, and what it cost."""
    begin = time.monotonic()
    report = tinkit.profile(bundle, out=folder, keep=True, say=say, wait_s=600, **reached)
    seconds = time.monotonic() - begin
    single = next(run for run in report.latency if run.batch == 1)
    spread = intervals(single.samples_ms, (50,))[0].get(50)
    return {
        "seconds": seconds,
        "p50_ms": single.p50_ms,
        "p95_ms": single.p95_ms,
        "p99_ms": single.p99_ms,
        "interval_ms": list(spread) if spread else [],
        "cpu_p50_ms": single.conditions["thread_cpu_p50_ms"],
        "samples": single.samples,
        "marks": single.marks,
        "steps": report.steps,
        "transfer": report.transfer,
        "verdict": report.verdict,
        "device": report.device["name"],
        "machine": report.machine["cpu"],
        "versions": report.versions,
    }


def print_tables(done):
    runs = done["runs"]
    print("| run | p50 ms | 95 % | p95 ms | processor p50 ms | samples | marks |\n|---|---|---|---|---|---|---|")
    for name, run in [*((str(n), run) for n, run in enumerate(runs, 1)), ("disturbed", done.get("disturbed"))]:
        if run:
            sure = "{:.3f} to {:.3f}".format(*run["interval_ms"]) if run["interval_ms"] else "too few samples"
            print(
                f"| {name} | {run['p50_ms']:.3f} | {sure} | {run['p95_ms']:.3f} | {run['cpu_p50_ms']:.3f} | "
                f"{run['samples']} | {'; '.join(run['marks']) or 'none'} |"
            )
    medians = [run["p50_ms"] for run in runs]
    if len(medians) > 1:
        middle = statistics.median(medians)
        print(f"\nMedian of the medians {middle:.3f} ms, from {min(medians):.3f} to {max(medians):.3f}.")
        print(
            f"Apart: {(max(medians) - min(medians)) / middle:.1%}; deviation: {statistics.stdev(medians) / middle:.1%}."
        )
    print("\n| run | sent, bytes | received | files sent | there already | seconds |\n|---|---|---|---|---|---|")
    for name, run in (("first", runs[0]), ("second", runs[1] if len(runs) > 1 else None)):
        if run:
            moved = run["transfer"]
            print(
                f"| {name} | {moved['sent_bytes']} | {moved['received_bytes']} | {moved['files_sent']} | "
                f"{moved['files_there']} | {run['seconds']:.1f} |"
            )
    names = list(dict.fromkeys(name for run in runs[:2] for name in run["steps"]))
    print("\n| step | first, s | second, s |\n|---|---|---|")
    for name in names:
        print("| " + " | ".join([name, *(f"{run['steps'].get(name, 0.0):.2f}" for run in runs[:2])]) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--host", default="local")
    parser.add_argument("--ssh-config")
    parser.add_argument("--python", default="python3")
    parser.add_argument("--loopback", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", default="board.json")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    done = files.read_json(given.out, "The results") if os.path.exists(given.out) else {"runs": []}
    if not given.table:
        done["here"] = machine()
        with far_side(given) as reached, tempfile.TemporaryDirectory() as folder:
            while len(done["runs"]) < given.runs:
                done["runs"].append(measured(given.bundle, reached, folder, lambda line: print(line, file=sys.stderr)))
                files.write_json(given.out, done)
            if "disturbed" not in done:
                done["disturbed"] = measured(given.bundle, reached, folder, Disturbance().hear)
                files.write_json(given.out, done)
    print_tables(done)


if __name__ == "__main__":
    main()
