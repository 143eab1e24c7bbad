"""The process beside the measurement: samples sensors on its own time and writes a JSON line for each.

A thread would take the interpreter's lock from what is timed; another process does not. It lives as long as its standard
input is open and its parent is there, so it cannot outlive a measurement that was killed. Times are time.monotonic(), one
clock for all processes. Files come first (they cost less than a millisecond); where the board has tegrastats its lines are
added, read as they come. Needs the standard library only: python -m tinkit.device.sampler --root R --interval S --out FILE.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time

from tinkit.device import tegrastats
from tinkit.device.sensors import Sensors

LONGEST = 1 << 16  # bytes of tegrastats without a line's end, then it is not tegrastats
SHORTEST_INTERVAL_S = 0.005


def main(argv=None):
    """Sample until standard input ends. Returns 0, or 1 when the lines could not be written."""
    parser = argparse.ArgumentParser(prog="sampler", description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="/", help="where /proc and /sys are")
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between two samples")
    parser.add_argument("--out", required=True, help="the file that the lines are added to")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="the process that it must not outlive")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes our standard input
    board_tool = start_tegrastats(options.root, options.interval)
    try:
        with open(options.out, "ab", buffering=0) as out:
            sample_until_end(Sensors(options.root), board_tool, out, options)
    except OSError as error:
        print("the samples could not be written: {}".format(error.strerror or error), file=sys.stderr)
        return 1
    finally:
        _stop(board_tool)
    return 0


def start_tegrastats(root, interval_s):
    """The running tool, or None where there is none. Without a reader it ends by itself (broken pipe)."""
    from tinkit.device.commands import Commands

    return Commands(root).start(["tegrastats", "--interval", str(max(1, int(interval_s * 1000)))])


def sample_until_end(sensors, board_tool, out, options):
    """The loop: a sample of files whenever it is due, a line of tegrastats whenever there is one, nothing else."""
    interval = max(SHORTEST_INTERVAL_S, options.interval)
    sources = sensors.sources + (["tegrastats"] if board_tool else [])
    missing = sensors.missing + ([] if board_tool else ["tegrastats: no such tool here"])
    _write(out, {"head": {"pid": os.getpid(), "sources": sources, "missing": missing}})
    lines, due = Lines(board_tool.stdout.fileno()) if board_tool else None, time.monotonic()
    while os.getppid() == options.parent:
        if time.monotonic() >= due:
            _write(out, {"files": sensors.read()})
            due = max(due + interval, time.monotonic())  # late is not made up for
        watched = [sys.stdin.fileno()] + ([lines.descriptor] if lines else [])
        ready = select.select(watched, [], [], max(0.0, due - time.monotonic()))[0]
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            return
        if lines and lines.descriptor in ready:
            for line in lines.read():
                _write(out, {"tegrastats": told(line)})
            lines = lines if lines.open else None


def told(line):
    """What a line of tegrastats adds to a sample, in the words of sensors.read."""
    reading = tegrastats.parse_line(line)
    clocks = [mhz for mhz in reading.gpu_mhz if mhz]
    cores = [core[1] for core in reading.cpu if core and core[1]]
    return {
        "gpu_mhz": max(clocks) if clocks else None,
        "cpu_mhz": max(cores) if cores else None,
        "temperatures_c": reading.temperatures_c,
        "power_mw": reading.power_mw,
    }


class Lines:
    """Whole lines of a pipe, as they come. open: False after its end, or when no line ends where one must."""

    def __init__(self, descriptor):
        self.descriptor, self.open, self._rest = descriptor, True, b""

    def read(self):
        """The lines that one read of the pipe completes."""
        block = os.read(self.descriptor, LONGEST)
        *whole, self._rest = (self._rest + block).split(b"\n")
        self.open = bool(block) and len(self._rest) < LONGEST
        return [line.decode("utf-8", "replace") for line in whole if line.strip()]


def _write(out, record):
    out.write(json.dumps(dict(record, t=time.monotonic()), allow_nan=False).encode() + b"\n")


def _stop(process):
    if process is None:
        return
    process.terminate()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


if __name__ == "__main__":
    sys.exit(main())
