"""The layers of a model in onnxruntime: a second session with its profiler on, in a private folder that is removed.

Its events are a JSON list: {"cat": "Node", "name": LAYER + "_kernel_time", "ts", "dur" in whole microseconds, "args"} for each
layer of a run, then {"cat": "Session", "name": "model_run"} for the run itself. The file is read as if a stranger wrote it.
The session also writes down the graph that it runs, which tells the ONNX nodes of a fused layer (fused_nodes.py).
"""

import json
import os
import tempfile

from tinkit.device.fused_nodes import nodes_of_layers
from tinkit.device.onnx_nodes import read_graph
from tinkit.errors import TinkitError

MAX_PROFILE_BYTES = 512 << 20
KERNEL = "_kernel_time"
LONGEST_US = 3.6e9  # no layer takes an hour: what says so is damaged


def onnxruntime_layers(runtime, feeds, runs, model_path):
    """([[(layer, ms, type)] of each run], [ms of each whole run], {layer: [nodes]}) of the last of `runs`, (kept, made).

    Raises TinkitError where the profile cannot be made or read.
    """
    kept, made = runs
    with tempfile.TemporaryDirectory(
        prefix="tinkit-layers-"
    ) as folder:  # 0700; for a while a copy of the model is in it
        ran_path = os.path.join(folder, "ran.onnx")
        events = read_events(_profile(runtime, feeds, made, model_path, folder, ran_path))
        nodes = nodes_of_layers(read_graph(model_path), read_graph(ran_path))
    told, wholes = split_runs(events, kept)
    return told, wholes, nodes


def _profile(runtime, feeds, runs, model_path, folder, ran_path):
    """The path of the events of a second session. Its options are those of tinkit/device/runtime.py."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.conditions["intra_op_threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(folder, "events")
    options.optimized_model_filepath = ran_path
    try:
        session = onnxruntime.InferenceSession(str(model_path), options, providers=[runtime.conditions["provider"]])
        for _ in range(runs):
            session.run(None, feeds)
        return session.end_profiling()
    except Exception as error:  # noqa: BLE001 - onnxruntime's own errors have no other parent
        raise TinkitError("onnxruntime does not profile the model.", where=str(model_path), seen=str(error)) from None


def read_events(path):
    """The list of events in a profile of onnxruntime. Raises TinkitError for a file that is missing, damaged or huge."""
    try:
        size = os.path.getsize(path)
        if size > MAX_PROFILE_BYTES:
            raise ValueError("{} bytes, at most {} are read".format(size, MAX_PROFILE_BYTES))
        with open(path, encoding="utf-8") as handle:
            events = json.load(handle)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(events, list):
        raise _damaged(path, "a {} where a list of events belongs".format(type(events).__name__))
    return events


def split_runs(events, runs):
    """([[(layer, ms, type)] of the last `runs` runs], [ms of each of these runs as a whole]) of onnxruntime's events.

    Layers inside a layer (a Loop's body) are part of that one. Raises TinkitError where runs are missing, where they differ
    in their layers, and for a number that is no time.
    """
    told, wholes, waiting = [], [], []  # type: list, list, list
    for event in events:
        if not isinstance(event, dict):
            raise _damaged("an event", repr(event)[:80])
        name, category = event.get("name"), event.get("cat")
        if category == "Node" and isinstance(name, str) and name.endswith(KERNEL):
            waiting.append((name[: -len(KERNEL)], _number(event, "ts"), _number(event, "dur"), _type(event)))
        elif category == "Session" and name == "model_run":
            told.append(_outermost(waiting))
            wholes.append(_number(event, "dur") / 1e3)
            waiting = []
    told, wholes = told[-runs:], wholes[-runs:]
    if len(told) < runs or not told[0]:
        seen = "{} runs of {} layers, {} runs were made".format(len(told), len(told[0]) if told else 0, runs)
        raise _damaged("the runs", seen)
    if len({tuple(row[0] for row in run) for run in told}) != 1:
        raise _damaged("the runs", "they differ in their layers")
    return told, wholes


def _outermost(rows):
    kept, end = [], -1.0
    for name, start, lasted, kind in sorted(rows, key=lambda row: (row[1], -row[2])):
        if start + lasted < end:
            continue
        kept.append((name, lasted / 1e3, kind))
        end = start + lasted
    return kept


def _number(event, key):
    value = event.get(key)
    most = LONGEST_US if key == "dur" else 1e18
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise _damaged(str(event.get("name"))[:80], "{} {!r:.80}".format(key, value))
    return value


def _type(event):
    arguments = event.get("args")
    return str(arguments.get("op_name", "")) if isinstance(arguments, dict) else ""


def _damaged(where, seen):
    return TinkitError("onnxruntime's profile cannot be read.", where=str(where), seen=seen, next_step="run it again")
