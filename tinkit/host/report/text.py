"""Facts as text for a page: numbers with the digits that mean something, and nothing that looks better than it was.

What is missing is "not recorded", never an empty place. Nested facts come out as dotted names; long lists are counted.
"""

import math
from decimal import ROUND_FLOOR, Decimal

import jinja2

NOT_RECORDED = "not recorded"
ROUNDING = 1e-12  # of float64: equal answers have a cosine of 0.9999999999999998
LONGEST_LIST = 24  # entries of a list that are written out
MOST_ROWS = 64  # of a table that a board fills


def cut(cosine) -> str:
    """A cosine with its further digits cut off towards -1, so that none looks better than it was; more digits near 1."""
    if not finite(cosine):
        return short(cosine)
    digits = 7 if cosine > 0.9999 else 5
    return f"{Decimal(repr(float(cosine) + ROUNDING)).quantize(Decimal(1).scaleb(-digits), ROUND_FLOOR)}"


def short(value) -> str:
    """A number with four significant digits; text as it is; nothing as "not recorded"."""
    if said(value) is NOT_RECORDED or value == "":
        return NOT_RECORDED
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", "\u2009")  # thin spaces
    return f"{value:.4g}"


def flat(value, without=("history", "chain", "hops"), prefix="", text=None) -> list[tuple[str, str]]:
    """Nested plain data as (dotted name, text) in order. Long lists are counted, not written out.

    `text` writes a value, by default with all its digits.
    """
    text = text or _exact
    rows = []
    for key, entry in value.items() if isinstance(value, dict) else [("", value)]:
        name = ".".join(filter(None, (prefix, str(key))))
        if key in without:
            continue
        if isinstance(entry, dict) and entry:
            rows += flat(entry, without, name, text)
        elif isinstance(entry, (list, tuple)) and len(entry) > LONGEST_LIST:
            rows.append((name, f"{len(entry)} entries"))
        elif isinstance(entry, (list, tuple)) and any(isinstance(item, dict) for item in entry):
            for index, item in enumerate(entry):
                rows += flat(item, without, f"{name}.{index}", text)
        elif isinstance(entry, (list, tuple, dict)):
            rows.append((name, ", ".join(text(item) for item in entry) or "none"))
        else:
            rows.append((name, text(entry)))
    return rows


def said(value):
    """Nothing is never shown as an empty place."""
    return NOT_RECORDED if value is None or isinstance(value, jinja2.Undefined) else value


def table(value) -> dict:
    return value if isinstance(value, dict) else {}


def finite(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _exact(value):
    """Text of a fact: numbers with all their digits, for a condition is compared, not read."""
    return short(value) if value is None or value == "" or isinstance(value, bool) else str(value)


def tables(value, most=MOST_ROWS) -> list[dict]:
    """The objects of a list that a board sent; anything else is left out, and so is what is beyond `most`."""
    return [entry for entry in value if isinstance(entry, dict)][:most] if isinstance(value, list) else []


def number(value) -> float | None:
    """A finite number as it is, None for anything else."""
    return value if finite(value) else None


def text(value, otherwise="") -> str:
    """Text or a number as text; `otherwise` for what is missing, empty, or no plain value."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "":
        return short(value)
    return otherwise


def texts(value) -> list[str]:
    return [str(entry) for entry in value[:MOST_ROWS]] if isinstance(value, list) else []


def pair(value) -> tuple[float, ...]:
    """An interval as (low, high); () for what is none."""
    return tuple(value) if isinstance(value, (list, tuple)) and len(value) == 2 and all(map(finite, value)) else ()


def between(interval) -> str:
    return " to ".join(map(short, pair(interval)))


def relative(share) -> str:
    """A relative difference in percent with its sign."""
    return f"{share:+.1%}".replace("%", "\u2009%") if finite(share) else NOT_RECORDED


def plus(change, digits=3) -> str:
    """A difference with its sign, so many digits after the point; a minus is as wide as a plus."""
    return f"{change:+.{digits}f}".replace("-", "\u2212") if finite(change) else NOT_RECORDED


def share(value) -> str:
    """A share with three digits, so that a column can be read downwards; near 1 cut off, for 1.000 means all of it."""
    if not finite(value):
        return NOT_RECORDED
    return cut(value) if 0.999 < value < 1 else f"{value:.3f}".replace("-", "\u2212")


def limit_of(entry) -> str:
    """The limit of a budget with its sign: at most, at least; exactly at the limit passes."""
    sign = {"<": "≤ ", ">": "≥ "}.get(str(entry.get("sign")), "")
    return sign + short(entry.get("limit"))
