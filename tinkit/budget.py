"""Budgets: limits that a product sets for what `profile` measures, in the unit that the name ends with.

`p95_ms<5`: latency of batch 1 at any percentile; `gpu.p50_ms<3`: of the GPU alone; `server.p99_ms<20`,
`offline.per_s>200`: of a load scenario; `energy_mj`, `power_w`, `load_ms`, `first_ms`, `peak_mb`, `file_mb`. A rate
(`per_s`) is a lower limit, everything else an upper one. No budget comes with tinkit: they are the product's.
"""

import re

from tinkit.errors import TinkitError
from tinkit.strict import nearest

SCENARIOS = ("single-stream", "multi-stream", "offline", "server")  # MLPerf inference's words
PLAIN = ("load_ms", "first_ms", "peak_mb", "file_mb", "energy_mj", "power_w", "per_s")
OF_LATENCY = ("mean_ms", "min_ms")
EXAMPLES = PLAIN + OF_LATENCY + ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99.9_ms", "gpu.p95_ms", "server.p99_ms")
PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,3})?)_ms")
SIGNS = ("<=", ">=", "<", ">", "=")


def parse_budget(text, where="--budget"):
    """`p95_ms<5` or `p95_ms=5,offline.per_s>200` -> {"p95_ms": 5.0, ...}. Raises TinkitError for a wrong sign as well."""
    limits = {}  # type: Dict[str, float]
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        sign = next((sign for sign in SIGNS if sign in part), None)
        if sign is None:
            raise TinkitError("A budget is NAME<LIMIT.", where=where, seen=part, next_step="for example p95_ms<5")
        name, number = (piece.strip() for piece in part.split(sign, 1))
        check_budget({name: number}, where)
        wanted = ">" if is_lower_limit(name) else "<"
        if sign[0] not in (wanted, "="):
            raise TinkitError(
                "A rate wants a lower limit, everything else an upper one.",
                where=where,
                seen=part,
                next_step="write {}{}{}".format(name, wanted, number),
            )
        limits[name] = _number(number, part, where)
    return limits


def check_budget(limits, where):
    """Refuse names that are no budgets and limits that are no numbers above 0."""
    for name, limit in limits.items():
        if not _known(name):
            raise TinkitError("There is no such budget.", where=where, seen=name, next_step=nearest(name, EXAMPLES))
        _number(limit, "{} = {}".format(name, limit), where)


def is_lower_limit(name):
    return name.rpartition(".")[2] == "per_s"


def percentile_of(measure):
    """99.9 of "p99.9_ms"; None for other measures."""
    found = PERCENTILE.fullmatch(measure)
    value = float(found.group(1)) if found else 0.0
    return value if 0 < value < 100 else None


def split_name(name):
    """("server", "p99_ms") of "server.p99_ms", ("", "p99.9_ms") of "p99.9_ms"."""
    for scope in SCENARIOS + ("gpu",):
        if name.startswith(scope + "."):
            return scope, name[len(scope) + 1 :]
    return "", name


def _known(name):
    scope, measure = split_name(name)
    if percentile_of(measure) is not None or measure == "mean_ms":
        return True
    return measure == "per_s" if scope in SCENARIOS else scope == "" and measure in PLAIN + OF_LATENCY


def _number(value, seen, where):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number > 0 or number == float("inf"):
        raise TinkitError("A budget wants a number above 0.", where=where, seen=seen)
    return number
