"""The report's sections on time: latency with its intervals and marks, streams, load scenarios, NVIDIA's tool beside ours.

Everything here may come from a board: numbers are shown where they are numbers, text is text, and what was not measured
is one line with its reason. Marks are the first thing that a reader sees, before any number.
"""

import shlex
from typing import Any

from tinkit.host.report import plots
from tinkit.host.report.text import (
    NOT_RECORDED,
    between,
    finite,
    limit_of,
    number,
    relative,
    short,
    table,
    tables,
    text,
    texts,
)
from tinkit.results import Latency, Report

COLUMNS = (
    ("Min", "min_ms"),
    ("Mean", "mean_ms"),
    ("p50", "p50_ms"),
    ("p90", "p90_ms"),
    ("p95", "p95_ms"),
    ("p99", "p99_ms"),
    ("p99.9", "p999_ms"),
)
PERCENTILES = COLUMNS[2:]
OF_TRTEXEC = (*PERCENTILES, ("mean", "mean_ms"))


def timing_of(facts: Report) -> dict[str, Any]:
    """What the template shows of time."""
    return {
        "columns": [title for title, _ in COLUMNS],
        "runs": [_run(run) for run in facts.latency],
        "no_gpu": "" if any(run.gpu for run in facts.latency) else f"{_runtime(facts)} tells no such times",
        "no_graph": "" if any(has_graph(run) for run in facts.latency) else f"{_runtime(facts)} was run without one",
        "histograms": [(name_of(run), run, *_histogram(run)) for run in facts.latency if run.samples_ms],
        "throughput": tables(facts.throughput),
        "scenarios": [_scenario(played) for played in tables(facts.scenarios)],
        "trtexec": _trtexec(facts),
    }


def doubts_of(facts: Report) -> list[str]:
    """Every mark of the page in one place: latencies that are not those of a quiet machine, scenarios that are not valid."""
    marks = [f"{name_of(run)}: {mark}" for run in facts.latency for mark in marks_of(run)]
    invalid = [played for played in map(_scenario, tables(facts.scenarios)) if not played["valid"]]
    return marks + [f"scenario {played['name']} is not valid: {played['reason']}" for played in invalid]


def marks_of(run: Latency) -> list[str]:
    """Why a latency is not that of a quiet, settled machine; [] is undisturbed."""
    marks = texts(run.marks)
    flags = {"contended: other work had the core": run.contended, "not settled when the warm-up ended": not run.stable}
    return marks + [words for words, so in flags.items() if so and not any(m[:9] == words[:9] for m in marks)]


def has_graph(run: Latency) -> bool:
    return run.conditions.get("cuda_graph") is True


def name_of(run: Latency) -> str:
    return f"batch {run.batch}" + (", CUDA graph" if has_graph(run) else "")


def _runtime(facts: Report) -> str:
    runtimes = [run.conditions.get("runtime") for run in facts.latency]
    profiles = facts.device.get("runtimes")
    return text(next(iter(runtimes), None)) or next(iter(texts(profiles)), "the runtime")


def _run(run: Latency) -> dict[str, Any]:
    told = {key: getattr(run, key) for _, key in COLUMNS}
    rows = [(name_of(run), _cells(told, run.intervals))]
    if run.gpu:
        rows.append(("the GPU alone", _cells(run.gpu, table(run.gpu.get("intervals")))))
    threads = f"{run.threads} thread{'s' * (run.threads != 1)}" if run.threads else "the processor waits for the GPU"
    how = (
        f"{run.samples} samples in {short(run.seconds)} s",
        threads,
        f"{run.warmup_runs} runs of warm-up",
        f"drift {relative(run.drift)}",
        f"wall/CPU {run.wall_per_cpu:.2f}" if run.threads else "",
    )
    return {"rows": rows, "how": ", ".join(filter(None, how)), "marks": marks_of(run)}


def _cells(told, intervals) -> list[tuple[str, str, str]]:
    """[(column, number, its 95 % interval or "")]."""
    return [(title, text(told.get(key), NOT_RECORDED), between(intervals.get(key))) for title, key in COLUMNS]


def _histogram(run: Latency):
    marks = {title: getattr(run, key) for title, key in PERCENTILES if title != "p90"}
    title = name_of(run).capitalize().replace("cuda", "CUDA")
    return plots.histogram(f"Latency of {title}, {run.samples} samples", run.samples_ms, marks)


def _scenario(played: dict) -> dict[str, Any]:
    asked = {
        "duration_s": "at least {} s",
        "min_samples": "at least {} pictures",
        "rate_per_s": "{} queries/s asked",
        "samples_per_query": "{} pictures a query",
        "max_batch": "at most {} at once",
        "seed": "seed {}",
    }
    name = text(played.get("scenario"), NOT_RECORDED)
    irrelevant = {"rate_per_s", "seed"} if name != "server" else set()
    irrelevant |= {"samples_per_query"} if name != "multi-stream" else set()
    settings = [
        words.format(text(played.get(key), NOT_RECORDED)) for key, words in asked.items() if key not in irrelevant
    ]
    percentiles = [(title, text(played.get(key), "none")) for title, key in (*PERCENTILES, ("Mean", "mean_ms"))]
    numbers = [(title, text(played.get(key), NOT_RECORDED)) for title, key in
               (("Queries", "queries"), ("Pictures", "samples"), ("Seconds", "seconds"), ("Pictures/s", "per_s"))]  # fmt: skip
    return {
        "name": name,
        "settings": ", ".join(settings),
        "cells": numbers + percentiles,
        "valid": played.get("valid") is True,
        "reason": text(played.get("reason"), "the report does not say why"),
    }


def _trtexec(facts: Report) -> dict[str, Any]:
    """trtexec's GPU compute time beside ours of the same batch and use of a CUDA graph; {} where it was not asked."""
    told = facts.trtexec
    if not told:
        return {}
    graph = told.get("cuda_graph") is not False  # an older run says nothing, and used one
    alike = [run for run in facts.latency if run.gpu and run.batch == told.get("batch", 1) and has_graph(run) == graph]
    ours, theirs = table(alike[0].gpu if alike else {}), table(told.get("compute"))
    agreement = table(told.get("agreement"))
    command = told.get("command")
    rows = [
        ("version", text(told.get("version"), NOT_RECORDED)),
        ("engine", text(told.get("engine"), NOT_RECORDED)),
        ("batch", text(told.get("batch"), NOT_RECORDED)),
        ("CUDA graph", short(told.get("cuda_graph"))),
        ("copies timed", short(told.get("transfers"))),
        ("samples", text(told.get("samples"), NOT_RECORDED)),
        ("ran as it was asked", short(told.get("as_asked"))),
        ("device, as it says", text(told.get("device"), NOT_RECORDED)),
        ("command", " ".join(map(shlex.quote, texts(command))) or NOT_RECORDED),
    ]
    return {
        "rows": [(title, *_both(ours.get(key), theirs.get(key))) for title, key in OF_TRTEXEC],
        "ours_missing": "" if ours else "tinkit has no GPU times of the same batch and use of a CUDA graph",
        "verdict": text(agreement.get("verdict"), "not judged"),
        "within": number(agreement.get("within")),
        "note": text(agreement.get("note"), "the two were not held against each other"),
        "facts": rows,
        "marks": texts(told.get("marks")),
    }


def _both(ours, theirs) -> tuple[str, str, str]:
    """(ours, theirs, how far apart)."""
    apart = ours / theirs - 1 if finite(ours) and finite(theirs) and theirs > 0 else None
    return text(ours, "none"), text(theirs, "none"), relative(apart) if apart is not None else "unknown"


def missed_budgets(budgets, failed) -> list[str]:
    return [
        f"budget {entry.get('name')}: {short(entry.get('measured'))}, the limit is {limit_of(entry)}"
        for entry in budgets
        if entry.get("verdict") == failed
    ]
