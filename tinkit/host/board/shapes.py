"""Of what type every part of a report must be: plain data held against type hints, before anything reads it.

Most hints are those of the dataclasses themselves (tinkit/results.py, fidelity.py, truth.py). What they leave open
(`Dict[str, Any]`), and pages and comparisons count on, is a table here: {key: hint}. That numbers are finite has been seen
to before (tinkit/host/board/foreign.py), but for the errors of a hop, which may be infinite.
"""

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from tinkit.device.latency import PERCENTILES
from tinkit.fidelity import Fidelity
from tinkit.results import Latency, Report
from tinkit.truth import Truth

PLAIN = {str: (str,), bool: (bool,), int: (int,), float: (float, int)}
INTERVALS = dict[str, tuple[float, float]]
TIMES = dict.fromkeys(("mean_ms", "min_ms", *PERCENTILES), float)
GPU = {**TIMES, "samples_ms": list[float], "intervals": INTERVALS}
WORST = {"index": int, "name": str, "cosine": float}
BUDGET = {"name": str, "limit": float, "measured": float | None}
THROUGHPUT = {"streams": int, "batch": int, "pictures_per_s": float, "p50_ms": float, "p99_ms": float}
OF_SCENARIO = dict.fromkeys(("mean_ms", *PERCENTILES), float | None)
SCENARIO = {"scenario": str, "valid": bool, "reason": str, "per_s": float, "samples_ms": list[float], **OF_SCENARIO}
POWER = dict.fromkeys(("idle_w", "load_w", "energy_mj", "energy_above_idle_mj"), float | None)
ERRORS = ("cosine_mean", "cosine_p1", "cosine_min", "max_error", "max_error_share")  # "inf" is text in JSON


def check_report(value):
    """Raises TypeError or KeyError, naming the place, where the plain data of a report has a part that is none."""
    check({**value, "chain": [], "latency": []}, Report, "report")
    for hop in value["chain"]:
        check(hop, dict[str, Any], "hop")
        check({**hop, **{name: float(hop[name]) for name in ERRORS}}, Fidelity, "hop")
        _check_tables(hop["worst"], WORST, "worst")
    for run in value["latency"]:
        check(run, Latency, "latency")
        check(run.get("intervals", {}), INTERVALS, "intervals")
        if run.get("gpu"):
            _check_tables([run["gpu"]], GPU, "gpu")
    _check_tables(value["budgets"], BUDGET, "budgets")
    _check_tables(value.get("throughput", []), THROUGHPUT, "throughput")
    _check_tables(value.get("scenarios", []), SCENARIO, "scenarios")
    _check_tables([value.get("power", {})], POWER, "power")
    if value.get("truth"):
        check(value["truth"], Truth, "truth")


def check(value, hint, name):
    """Raises TypeError where plain data is not of a hint: a plain type, Any, list, tuple, dict, a union with None, a dataclass.

    A field of a dataclass may be missing: its constructor knows which may not.
    """
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is not None:
            check(value, inside[0], name)
    elif is_dataclass(hint):
        check(value, dict[str, Any], name)
        for field in fields(hint):
            if field.name in value:
                check(value[field.name], field.type, f"{name}.{field.name}")
    elif origin in (list, tuple):
        _is(
            isinstance(value, list) and (origin is list or Ellipsis in inside or len(value) == len(inside)), value, name
        )
        for entry in value:
            check(entry, inside[0], name)
    elif origin is dict:
        _is(isinstance(value, dict), value, name)
        for key, entry in value.items():
            check(entry, inside[1], f"{name}.{key}")
    elif hint is not Any:
        _is(type(value) in PLAIN[hint], value, name)


def _check_tables(value, table, name):
    """Every key of the table is there, and of its type; one that may be None may be missing."""
    check(value, list[dict[str, Any]], name)
    for entry in value:
        for key, hint in table.items():
            check(entry.get(key), hint, f"{name}.{key}")


def _is(fine, value, name):
    if not fine:
        raise TypeError(f"{name} cannot be {str(value)[:60]!r}")
