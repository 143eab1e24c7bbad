"""What trtexec leaves behind: its log, the times of each query and of each layer; read, never believed.

Formats by NVIDIA's source (samples/common/sampleReporting.cpp of 8.x to 11.x): --exportTimes writes one object a query,
warm-up left out; --exportProfile a count and one object a layer; the log ends in a performance summary. The keys are the
same from 8.5 on. Percentiles are worked out here from the raw times, as for tinkit's own samples, because trtexec's are
of another rule (a rank without interpolation). Text of any kind gives finite numbers within bounds or none.
"""

import json
import os
import re
from dataclasses import dataclass, field
from typing import List

import numpy as np

from tinkit.errors import TinkitError, from_os_error

MAX_TIMES = 128 << 20  # characters; a query takes about 280
MAX_QUERIES = 1000000
MAX_LAYERS_TEXT = 16 << 20
MAX_LAYERS = 20000
MAX_LOG = 4 << 20
MAX_MS = 3.6e6  # no query takes an hour
MAX_LINES, MAX_LINE = 20, 300  # of errors and warnings that are kept
PERCENTILES = ((50, "p50_ms"), (90, "p90_ms"), (95, "p95_ms"), (99, "p99_ms"), (99.9, "p999_ms"))

ROW = re.compile(r"\{[^{}]*\}")
BANNER = re.compile(r"\[TensorRT v(\d{6}|\d{4})\]")
VERSION_LINE = re.compile(r"TensorRT version: (\d{1,2})\.(\d{1,2})\.(\d{1,2})\b")
VERDICT = re.compile(r"^&&&& (RUNNING|PASSED|FAILED|WAIVED) TensorRT\.trtexec", re.MULTILINE)
PREFIX = re.compile(r"^\s*(?:\[[^\]]{0,40}\]\s*)+")
NUMBER = r"(\d[\d.eE+-]{0,30})"
THROUGHPUT = re.compile(r"^Throughput: " + NUMBER + r" qps")
STATISTICS = re.compile(r"^(Latency|Enqueue Time|H2D Latency|GPU Compute Time|D2H Latency): (min = .{0,2000})")
STATISTIC = re.compile(r"(min|max|mean|median|percentile\((\d{1,2}(?:\.\d{1,3})?)%\)) = " + NUMBER + " ms")
TOTAL = re.compile(r"^(Total Host Walltime|Total GPU Compute Time): " + NUMBER + r" s\b")
QUERIES = re.compile(r"^Timing trace has (\d{1,9}) queries")
SETTING = re.compile(r"^(Data transfers|Spin-wait|CUDA Graph|ExposeDMA): (Enabled|Disabled)\b")
WORDS = re.compile(r"^(Selected Device|Precision): (.{1,100})")

NAMES = {
    "Latency": "latency",
    "Enqueue Time": "enqueue",
    "H2D Latency": "h2d",
    "GPU Compute Time": "compute",
    "D2H Latency": "d2h",
    "Total Host Walltime": "walltime_s",
    "Total GPU Compute Time": "compute_s",
    "Data transfers": "transfers",
    "Spin-wait": "spin_wait",
    "CUDA Graph": "cuda_graph",
    "ExposeDMA": "expose_dma",
    "Selected Device": "device",
    "Precision": "precision",
}


@dataclass(frozen=True)
class TrtexecTimes:
    """Milliseconds of each timed query, in the order run; all lists are of one length.

    compute: on the GPU between two events, without copies. latency: h2d + compute + d2h of that query. enqueue: the
    host's time to hand the query over. dropped: rows that were not like this.
    """

    compute_ms: List[float] = field(default_factory=list)
    latency_ms: List[float] = field(default_factory=list)
    h2d_ms: List[float] = field(default_factory=list)
    d2h_ms: List[float] = field(default_factory=list)
    enqueue_ms: List[float] = field(default_factory=list)
    dropped: int = 0


def read_text(path, limit=MAX_TIMES):
    """The text of a file that trtexec wrote, "" where there is none; TinkitError for one of more than `limit` bytes."""
    try:
        with open(path, "rb") as handle:
            if os.fstat(handle.fileno()).st_size > limit:
                raise _too_large(path, limit)
            return handle.read(limit).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise from_os_error(error, "reading {}".format(path)) from error


def parse_times(text):
    """`TrtexecTimes` of --exportTimes. Rows that are no query are counted; TinkitError for more than there can be."""
    if len(text) > MAX_TIMES:
        raise _too_large("--exportTimes", MAX_TIMES)
    rows, dropped = [], 0
    for found in ROW.finditer(text):
        row = _query(_json(found.group()))
        if row is None:
            dropped += 1
        else:
            rows.append(row)
        if len(rows) + dropped > MAX_QUERIES:
            raise _too_large("--exportTimes", MAX_QUERIES, "queries")
    columns = [list(column) for column in zip(*rows)] if rows else [[] for _ in range(5)]
    return TrtexecTimes(*columns, dropped=dropped)


def percentiles(samples):
    """{"p50_ms" .. "p999_ms", "mean_ms", "min_ms", "max_ms"} by linear interpolation; {} of no samples."""
    if not samples:
        return {}
    values = np.percentile(samples, [percent for percent, _ in PERCENTILES])
    told = {name: float(value) for (_, name), value in zip(PERCENTILES, values)}
    return dict(told, mean_ms=float(np.mean(samples)), min_ms=float(min(samples)), max_ms=float(max(samples)))


def parse_layers(text):
    """{"count": runs, "layers": [{"layer", "ms" (median, or mean before 8.6), "share" 0..1}]} of --exportProfile."""
    if len(text) > MAX_LAYERS_TEXT:
        raise _too_large("--exportProfile", MAX_LAYERS_TEXT)
    value, count, layers = _json(text), 0, []
    for row in value[: MAX_LAYERS + 1] if isinstance(value, list) else []:
        if not isinstance(row, dict):
            continue
        ms = _number(row.get("medianMs", row.get("averageMs")))
        share = _number(row.get("percentage"), 100.0)
        if isinstance(row.get("name"), str) and ms is not None and share is not None:
            layers.append({"layer": plain(row["name"]), "ms": ms, "share": share / 100})
        elif "count" in row:
            count = int(_number(row["count"], 1e12) or 0)
    return {"count": count, "layers": layers}


def version_of(log):
    """(major, minor, patch) that trtexec says it is, or None: "[TensorRT v8601]", "[TensorRT v100300]"."""
    found = BANNER.search(log)
    if found is not None:
        number = int(found.group(1))
        base = 100 if len(found.group(1)) == 6 else 10  # 100300 is 10.3.0, 8601 is 8.6.1
        major, rest = divmod(number, base * 100)
        return (major, rest // 100, rest % 100)
    found = VERSION_LINE.search(log)
    return None if found is None else tuple(int(part) for part in found.groups())


def parse_summary(log):
    """What a log says: verdict, settings, statistics in ms, errors and warnings; what it does not say is absent.

    "passed": True, False, or None where it ended without a verdict. "settings": transfers, spin_wait, cuda_graph and
    expose_dma as trtexec understood them, True or False. "latency", "compute", "h2d", "d2h", "enqueue": {"min_ms",
    "max_ms", "mean_ms", "median_ms", "p90_ms" ..} in trtexec's own rule of percentiles.
    """
    if len(log) > MAX_LOG:  # its verdict stands at the end, its settings at the beginning
        log = log[: MAX_LOG // 2] + "\n" + log[-MAX_LOG // 2 :]
    verdicts = [word for word in VERDICT.findall(log) if word != "RUNNING"]
    told = {"passed": verdicts[-1] == "PASSED" if verdicts else None, "settings": {}, "errors": [], "warnings": []}
    for line in log.splitlines():
        prefix = PREFIX.match(line)
        text = line[prefix.end() :] if prefix else line
        for mark, kind in (("[E]", "errors"), ("[W]", "warnings")):
            if prefix and mark in prefix.group() and len(told[kind]) < MAX_LINES:
                told[kind].append(plain(text))
        _take(told, text)
    return told


def plain(text):
    """One line without control characters, cut to a length that a report can bear."""
    return "".join(mark if mark.isprintable() else " " for mark in text[:MAX_LINE]).strip()


def _take(told, text):
    """Add what one line says; the first of a kind counts, for a run for the layer profile may follow."""
    found = STATISTICS.match(text)
    if found:
        told.setdefault(NAMES[found.group(1)], _statistics(found.group(2)))
    found = THROUGHPUT.match(text)
    if found and _float(found.group(1)) is not None:
        told.setdefault("throughput_qps", _float(found.group(1)))
    found = TOTAL.match(text)
    if found and _float(found.group(2)) is not None:
        told.setdefault(NAMES[found.group(1)], _float(found.group(2)))
    found = QUERIES.match(text)
    if found:
        told.setdefault("queries", int(found.group(1)))
    found = SETTING.match(text)
    if found:
        told["settings"].setdefault(NAMES[found.group(1)], found.group(2) == "Enabled")
    found = WORDS.match(text)
    if found:
        told.setdefault(NAMES[found.group(1)], plain(found.group(2)))


def _statistics(text):
    values = {}
    for name, percent, number in STATISTIC.findall(text):
        value = _float(number)
        if value is not None:
            values["p{}_ms".format(percent.replace(".", "")) if percent else name + "_ms"] = value
    return values


def _query(row):
    """(compute, latency, h2d, d2h, enqueue) in ms, or None."""
    if not isinstance(row, dict):
        return None
    begin, end = (_number(row.get(name), 1e12) for name in ("startEnqMs", "endEnqMs"))
    if begin is None or end is None:
        return None
    names = ("computeMs", "latencyMs", "h2dMs", "d2hMs")
    values = [_number(row.get(name)) for name in names] + [_number(end - begin)]
    return None if None in values else values


def _json(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _number(value, limit=MAX_MS):
    """A float of 0 to `limit`, or None; NaN and true are no numbers here."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= limit:
        return None
    return float(value)


def _float(text):
    try:
        return _number(float(text), 1e12)
    except ValueError:
        return None


def _too_large(where, limit, unit="bytes"):
    return TinkitError(
        "trtexec wrote more than can be read.",
        where=str(where),
        seen="more than {} {}".format(limit, unit),
        next_step="time for fewer seconds",
    )
