"""Budgets: upper limits that a product sets for what `profile` measures, in the unit that the name ends with."""

from tinkit.errors import TinkitError
from tinkit.strict import nearest

BUDGETS = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "min_ms", "load_ms", "peak_mb", "file_mb")


def parse_budget(text, where="--budget"):
    """`p95_ms<5` or `p95_ms=5,peak_mb=300` -> {"p95_ms": 5.0, ...}: upper limits in the unit that the name ends with."""
    limits = {}  # type: Dict[str, float]
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        for sign in ("<=", "<", "="):
            if sign in part:
                key, number = part.split(sign, 1)
                break
        else:
            raise TinkitError("A budget is NAME<LIMIT.", where=where, seen=part, next_step="for example p95_ms<5")
        limits[key.strip()] = _budget_number(number, part, where)
    check_budget(limits, where)
    return limits


def check_budget(limits, where):
    """Refuse names that are no budgets and limits that are no numbers above 0."""
    for key, limit in limits.items():
        if key not in BUDGETS:
            raise TinkitError("There is no such budget.", where=where, seen=key, next_step=nearest(key, BUDGETS))
        _budget_number(limit, "{} = {}".format(key, limit), where)


def _budget_number(value, seen, where):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number > 0 or number == float("inf"):
        raise TinkitError("A budget wants a number above 0.", where=where, seen=seen)
    return number
