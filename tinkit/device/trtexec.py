"""NVIDIA's own stopwatch beside ours: drive the board's trtexec with nothing left to its defaults, and compare.

Every switch that moves a number is said in the words of the version at hand (trtexec_command.py), and what trtexec then
prints as its settings is held against what was asked.

What may be compared: GPU compute time, without copies, at one batch, both with a CUDA graph, and of the very engine that
tinkit built (`engine`). Without a graph trtexec hands the next query over while one runs and so hides the host's gaps,
which tinkit's synchronous runs show. With an engine of trtexec's own making two builds are compared, not two stopwatches:
kernels are chosen by timing and differ from build to build, and on TensorRT 8 the list of nodes kept in fp32 is not
followed. trtexec's "latency" adds the copies by DMA and knows nothing of the host's copying, so it is told but not judged.
trtexec feeds random numbers; a dense network does not care.
"""

import os
import shlex
import tempfile

from tinkit.device import trtexec_output as output
from tinkit.device.trtexec_command import DEFAULTS, TrtexecOptions, command, dotted
from tinkit.errors import CannotJudge, TinkitError

BACKEND = "trtexec"
BACKENDS = ("tensorrt", BACKEND)
GOAL = 0.03  # of GPU compute time
NEWEST = 11  # the newest major version whose flags are known
SAME = 1e-3  # its own median and the one of its times may differ by so much
BUILD_S = 3600.0  # an engine on a small board may take that long
START_S = 120.0
INSTALL = (
    "on a Jetson it comes with JetPack: sudo apt-get install libnvinfer-bin puts it into /usr/src/tensorrt/bin; "
    "elsewhere it is in TensorRT's archive, not in its pip package"
)


def refuse_backend(backend, target, commands):
    """Raises TinkitError for a backend that is none or not of this target, CannotJudge where trtexec is missing."""
    if backend and backend not in BACKENDS:
        raise TinkitError("There is no such backend.", seen=backend, next_step="one of " + ", ".join(BACKENDS))
    if backend and target.runtime != "tensorrt":
        raise TinkitError(
            "Only a target for TensorRT can be timed by trtexec.",
            seen="target {} is for {}".format(target.name, target.runtime),
            next_step="leave --backend out",
        )
    if backend == BACKEND and commands.find("trtexec") is None:
        raise _missing()


def beside(commands, opened, inputs, machine, latency, say):
    """What trtexec says about the same engine at batch 1, and how far our time of the GPU alone is from it.

    A trtexec that fails costs its own numbers, not the report: {"failed": in words}.
    """
    engine = machine.get("engine", {}).get("engine", "")
    ours = next((run for run in latency if run.batch == 1 and run.conditions.get("cuda_graph") and run.gpu), None)
    try:
        with tempfile.TemporaryDirectory(prefix="tinkit-") as folder:
            theirs = run_trtexec(
                commands, opened.model_path, opened.target, 1, folder, inputs=inputs, engine=engine, say=say
            )
    except TinkitError as error:
        say("trtexec  {}".format(error.what))
        return {"failed": " ".join(filter(None, (error.what, error.seen)))}
    if ours is None:
        return theirs
    apart = agreement(ours.gpu["p50_ms"], theirs)
    say("trtexec  {verdict}: ours {ours_ms} ms, trtexec {trtexec_ms} ms of GPU compute".format(**apart))
    return dict(theirs, agreement=apart)


def _missing():
    return CannotJudge("trtexec is missing, so there is nothing to compare with.", next_step=INSTALL)


def run_trtexec(
    commands,
    model_path,
    target,
    batch,
    folder,
    seconds=DEFAULTS.seconds,
    warmup_s=DEFAULTS.warmup_s,
    cuda_graph=True,
    say=None,
    inputs=(),
    engine="",
    layers=False,
    transfers=False,
    workspace_mb=None,
):
    """Time a model with the board's trtexec; see the module for what may be compared.

    commands: `Commands` of the board. engine: path of a plan that tinkit built ("" to let trtexec build). Returns
    {"version", "path", "command", "engine": "tinkit's" | "its own", "batch", "cuda_graph", "transfers", "compute",
    "latency", "h2d", "d2h", "enqueue": percentiles in ms worked out from the raw times, "samples", "throughput_qps",
    "device", "settings": as trtexec printed them, "as_asked": whether they are ours, "layers": [...], "marks": [why the
    numbers are not to be trusted]}. Without transfers latency is compute.
    Raises CannotJudge where trtexec or its version is missing, TinkitError where it fails, hangs, is killed or writes
    no times.
    """
    say = say or (lambda line: None)
    path = commands.find("trtexec")
    if path is None:
        raise _missing()
    version = _version(commands, path)
    options = TrtexecOptions(
        seconds=seconds,
        warmup_s=warmup_s,
        cuda_graph=cuda_graph,
        transfers=transfers,
        workspace_mb=workspace_mb,
        layers=layers,
    )
    with tempfile.TemporaryDirectory(prefix="trtexec-", dir=str(folder)) as private:
        words = command(path, version, str(model_path), target, batch, options, private, inputs, engine)
        say("trtexec {} times batch {}: {}".format(dotted(version), batch, " ".join(map(shlex.quote, words))))
        timeout_s = START_S + warmup_s + 2 * seconds + (0.0 if engine else BUILD_S)
        ran = commands.run(["trtexec"] + words[1:], timeout_s=timeout_s)
        summary = output.parse_summary(ran.out + "\n" + ran.err)
        _refuse_failed(ran, summary, path, timeout_s)
        times = output.parse_times(output.read_text(os.path.join(private, "times.json")))
        by_layer = output.parse_layers(output.read_text(os.path.join(private, "layers.json"), output.MAX_LAYERS_TEXT))
    if not times.compute_ms:
        raise TinkitError("trtexec ended well, yet wrote no times.", where=path, seen="rows: {}".format(times.dropped))
    return {
        "version": dotted(version),
        "path": path,
        "command": words,
        "engine": "tinkit's" if engine else "its own",
        "batch": batch,
        "cuda_graph": cuda_graph,
        "transfers": transfers,
        "compute": output.percentiles(times.compute_ms),
        "latency": output.percentiles(times.latency_ms),
        "h2d": output.percentiles(times.h2d_ms),
        "d2h": output.percentiles(times.d2h_ms),
        "enqueue": output.percentiles(times.enqueue_ms),
        "samples": len(times.compute_ms),
        "throughput_qps": summary.get("throughput_qps"),
        "device": summary.get("device", ""),
        "settings": summary["settings"],
        "as_asked": not _differences(options, summary),
        "layers": by_layer["layers"],
        "marks": _marks(version, target, options, engine, times, summary),
    }


def agreement(ours_p50_ms, theirs, goal=GOAL):
    """How far our median GPU compute time is from trtexec's (a result of `run_trtexec`).

    {"ours_ms", "trtexec_ms", "apart": ours / theirs - 1, "within": the goal, "verdict": "agrees" | "apart" |
    "not judged", "note"}. Not judged without two times, where trtexec timed an engine of its own, or where its settings
    were not those asked for. `ours_p50_ms` must be of the same batch, engine and use of a CUDA graph.
    """
    trtexec_ms = theirs.get("compute", {}).get("p50_ms")
    told = {"ours_ms": ours_p50_ms, "trtexec_ms": trtexec_ms, "apart": None, "within": goal}
    if not (_positive(ours_p50_ms) and _positive(trtexec_ms)):
        return dict(told, verdict="not judged", note="there are no two GPU compute times to compare")
    apart = ours_p50_ms / trtexec_ms - 1
    note = "tinkit's median GPU compute time is {:+.1%} of trtexec's".format(apart)
    verdict = "agrees" if abs(apart) <= goal else "apart"
    if theirs.get("engine") != "tinkit's":
        verdict = "not judged"
        note += "; trtexec timed an engine of its own, so two builds are compared and not two stopwatches"
    elif not theirs.get("as_asked"):
        verdict = "not judged"
        note += "; trtexec did not run as it was asked: " + "; ".join(theirs.get("marks", []))
    elif theirs.get("marks"):
        note += "; trtexec's run is marked: " + "; ".join(theirs["marks"])
    return dict(told, apart=apart, verdict=verdict, note=note)


def _version(commands, path):
    ran = commands.run(["trtexec", "--help"], timeout_s=START_S)  # --version asks for a model and fails
    version = output.version_of(ran.out + "\n" + ran.err)
    if version is None:
        seen = output.plain((ran.err or ran.out).strip()) or "nothing"
        raise CannotJudge("trtexec does not say its version.", where=path, seen=seen, next_step=INSTALL)
    return version


def _refuse_failed(ran, summary, path, timeout_s):
    words = (
        "; ".join(summary["errors"][-3:]) or output.plain((ran.err or ran.out).strip()[-output.MAX_LINE :]) or "nothing"
    )
    if ran.code == 127:
        raise CannotJudge("trtexec does not start.", where=path, seen=words, next_step=INSTALL)
    if ran.code == 124:
        seen = "more than {:.0f} s; {}".format(timeout_s, words)
        raise TinkitError("trtexec takes too long and was stopped.", path, seen, "time the engine that tinkit built")
    if ran.code < 0 or ran.code > 128:
        hint = "often the board's memory is used up: close what else runs, or time the engine that tinkit built"
        raise TinkitError("trtexec was killed.", path, "exit code {}; {}".format(ran.code, words), hint)
    if ran.code != 0 or summary["passed"] is False:
        raise TinkitError("trtexec failed.", path, "exit code {}; {}".format(ran.code, words))
    if summary["passed"] is None:
        raise TinkitError("trtexec ended without a verdict of its own.", path, words)


def _marks(version, target, options, engine, times, summary):
    marks = []
    if version[0] > NEWEST:
        marks.append("trtexec {} is newer than the flags known here".format(dotted(version)))
    if not engine and target.weakly_typed:
        marks.append("its engine is weakly typed and does not follow the list of nodes that tinkit keeps in fp32")
    marks += _differences(options, summary)
    if len(times.compute_ms) < options.iterations:
        marks.append("only {} of {} queries".format(len(times.compute_ms), options.iterations))
    if times.dropped:
        marks.append("{} rows of its times could not be read".format(times.dropped))
    theirs, ours = summary.get("compute", {}).get("median_ms"), output.percentiles(times.compute_ms)["p50_ms"]
    if theirs is None or abs(theirs - ours) > SAME * ours:
        marks.append("its log says a median of {} ms, its times {:g} ms".format(theirs, ours))
    marks += [line.lstrip("* ") for line in summary["warnings"] if line.startswith("* ")]
    return marks


def _differences(options, summary):
    """A line for each switch that trtexec did not understand as it was meant."""
    words = {True: "on", False: "off", None: "unknown"}
    asked = {"cuda_graph": options.cuda_graph, "spin_wait": options.spin_wait, "transfers": options.transfers}
    seen = {name: summary["settings"].get(name) for name in asked}
    told = "{} was to be {} and is {}"
    return [told.format(name, words[asked[name]], words[seen[name]]) for name in asked if seen[name] is not asked[name]]


def _positive(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
