"""What the machine did while something was timed: clocks, temperatures, power and throttling, by named windows of time.

`Watch` starts the sampler (a process of its own, tinkit.device.sampler) and keeps the times of the windows; all arithmetic
is done afterwards. A window in which the clock fell, a throttle counter rose or the power mode changed is marked, never
averaged away. Throttle counters and power mode are read right before and right after each window, so that an event belongs
to the window it happened in. A machine that tells nothing can be watched too: then `missing` says what was not seen.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import tinkit
from tinkit.device import windows
from tinkit.device.sensors import Sensors
from tinkit.device.tegrastats import total_rail

START_S, END_S = 5.0, 3.0  # how long the sampler is waited for
MOST_BYTES = 1 << 26  # of samples; an hour has about a seventh of that


class Watch:
    """`with Watch() as watch: with watch.window("load"): ...`, then `watch.summary()` and `watch.marks("load")`.

    root: where /proc, /sys and the board's tools are. commands: taken for its `root` when given. say: a function for lines
    to a user. uses: "gpu" or "cpu", whose clock marks a window (set it when the runtime is known).
    """

    def __init__(self, root="/", commands=None, interval_s=0.2, say=None, uses="cpu"):
        self.root = os.path.abspath(str(getattr(commands, "root", root)))
        self.interval_s, self.say, self.uses = interval_s, say or (lambda line: None), uses
        self._windows = []  # {"name", "begin", "end", "before", "after"}: seconds of time.monotonic, Sensors.counters
        self._lost, self._head, self._records = [], {}, None
        self._process = self._folder = self._sensors = None

    def __enter__(self):
        self._sensors = Sensors(self.root)
        self._folder = tempfile.mkdtemp(prefix="tinkit-watch-")
        try:
            self._start()
        except BaseException:  # Ctrl-C while the sampler starts
            self.__exit__()
            raise
        self.say("watching: {}".format(", ".join(self.sources()) or "nothing can be seen on this machine"))
        return self

    def __exit__(self, *_):
        try:
            self._stop()
            self._records = self._read()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def window(self, name):
        """What is done inside belongs to the window `name`; a name may be used more than once, windows may not overlap."""
        record = {"name": name, "before": self._sensors.counters(), "begin": time.monotonic()}
        try:
            yield
        finally:
            record.update(end=time.monotonic(), after=self._sensors.counters())
            self._windows.append(record)

    def sources(self):
        """What is read, in words."""
        return list(self._head.get("sources", []))

    def summary(self):
        """{"sources", "interval_s", "windows": [see below], "missing": [what could not be seen]}, plain data.

        A window: {"name", "seconds", "samples" (by files), "gpu_mhz" and "cpu_mhz": {"median", "min", "max"} or {},
        "temperature_c": {zone: {"first", "last", "max"}}, "power_w": {rail: {"mean", "median", "max", "source"}},
        "throttle_events": None where no counter is there}.
        """
        records = self._all_records()
        return {
            "sources": self.sources(),
            "interval_s": self.interval_s,
            "windows": [windows.describe(window, records) for window in self._windows],
            "missing": list(self._head.get("missing", [])) + self._lost,
        }

    def marks(self, name):
        """Why the numbers of the windows `name` are not those of an undisturbed machine, in words; [] is undisturbed.

        May be asked inside the watch, as soon as the window is over. A clock that cannot be read marks nothing: see
        `summary()["missing"]`.
        """
        named = [window for window in self._windows if window["name"] == name]
        if not named:
            raise ValueError("no window of the name {!r}".format(name))
        records = self._all_records()
        told = [reason for window in named for reason in windows.reasons(window, records, self.uses)]
        return list(dict.fromkeys(told))

    def _start(self):
        own = ["--root", self.root, "--interval", str(self.interval_s), "--out", self._path("samples")]
        command = [sys.executable, "-m", "tinkit.device.sampler", *own, "--parent", str(os.getpid())]
        # The folder or the zip file that this very package comes from.
        home = os.path.dirname(os.path.dirname(os.path.abspath(tinkit.__file__)))
        paths = [home] + [path for path in [os.environ.get("PYTHONPATH")] if path]
        try:
            with open(self._path("errors"), "wb") as errors:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    cwd=self._folder,  # -m looks for modules there first; this one is empty
                    env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)),
                )
        except OSError as error:
            self._lost.append("samples: the sampler did not start ({})".format(error.strerror or error))
            return
        self._wait_for_a_sample()

    def _wait_for_a_sample(self):
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if any("files" in record for record in self._read()):
                return
            time.sleep(0.01)
        if self._process.poll() is None:
            self._lost.append("samples: none within {:g} s of the sampler's start".format(START_S))

    def _stop(self):
        process = self._process
        if process is None:
            return
        ended_early = process.poll() is not None
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self._lost.append("samples: the sampler did not end when told to and was killed")
        if ended_early:
            told = _tail(self._path("errors")) or "exit code {}".format(process.returncode)
            self._lost.append("samples: the sampler ended early ({})".format(told))

    def _all_records(self):
        return self._read() if self._records is None else self._records

    def _read(self):
        """The sampler's lines so far; half a line and what is no record are left out."""
        records = []
        try:
            with open(self._path("samples"), "rb") as handle:
                lines = handle.read(MOST_BYTES).split(b"\n")[:-1]
        except OSError:
            return records
        for line in lines:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                self._head = record.get("head", self._head)
                records.append(record)
        return records

    def _path(self, name):
        return os.path.join(self._folder, name)


def power(summary, idle="idle", load="load", inferences=0, seconds=0.0):
    """Power in idle and under load and the energy of one inference, by the rail (or rails) that all power passes.

    inferences: pictures computed in the load window, in `seconds` of wall time. Returns {"source", "rail", "idle_w",
    "load_w", "energy_mj", "energy_above_idle_mj", "note"}: energy_mj = load_w x seconds / inferences x 1000, and above idle
    the same of load_w - idle_w (None without an idle window). Without rails {"source": "", "note": why}.
    """
    if inferences <= 0 or seconds <= 0:
        return {"source": "", "note": "no energy: nothing was computed in the load window"}
    loaded, resting = _rails_of(summary, load), _rails_of(summary, idle)
    rails, meaning = total_rail(loaded)
    if not rails:
        missing = [text for text in summary["missing"] if text.startswith(("power", "energy", "samples", "tegrastats"))]
        return {"source": "", "note": "no energy: " + ("; ".join(missing) or "no power was sampled in the load window")}
    load_w = sum(loaded[rail]["mean"] for rail in rails)
    notes = ["{}; mean of {} samples".format(meaning, loaded[rails[0]]["samples"])]
    idle_w = sum(resting[rail]["mean"] for rail in rails) if all(rail in resting for rail in rails) else None
    if idle_w is None:
        notes.append("idle power was not sampled, so the energy is not told above idle")
    elif load_w <= idle_w:
        notes.append("load is not above idle: the difference says nothing")
    if loaded[rails[0]]["samples"] < 10:
        notes.append("few samples: take it as a rough figure")
    return {
        "source": ", ".join(sorted({loaded[rail]["source"] for rail in rails})),
        "rail": " + ".join(rails),
        "idle_w": None if idle_w is None else round(idle_w, 4),
        "load_w": round(load_w, 4),
        "energy_mj": load_w * seconds / inferences * 1e3,
        "energy_above_idle_mj": None if idle_w is None else (load_w - idle_w) * seconds / inferences * 1e3,
        "note": "; ".join(notes),
    }


def _rails_of(summary, name):
    """The rails of the first window of that name; {} without one."""
    return next((window["power_w"] for window in summary["windows"] if window["name"] == name), {})


def _tail(path, most=300):
    """The last line of a small text file, "" where there is none."""
    try:
        with open(path, "rb") as handle:
            lines = handle.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:most] if lines else ""
