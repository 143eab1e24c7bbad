"""The degradation budget: how much worse than its teacher a student may be before a pipeline stops.

    auroc>-0.01          student minus teacher is at least -0.01 (a sign: the change against the teacher)
    corruption>-2%       the change is at least -2 % of the teacher's value
    agreement>0.9        no sign: the student's own value
    ece<+0.02, ece<0.1   the same for what is better when lower

Exactly at a limit passes. The value decides, not its interval; when the limit lies inside of the interval, the verdict says
that another draw of pictures might have decided otherwise.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.evaluate.measure import HIGHER, Measure
from tinkit.strict import nearest

RULE = re.compile(
    r"(?P<name>[A-Za-z][\w@.\-]*?)\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e-?\d+)?)(?P<percent>%?)"
)
ROUNDING = 1e-12  # 0.84 - 0.85 is a hair below -0.01
EXAMPLE = "auroc>-0.01,corruption>-2%,agreement>0.9"


@dataclass(frozen=True)
class Rule:
    """One limit. change: it is about student minus teacher; percent: as a share of the teacher's value."""

    text: str
    name: str
    lower: bool  # the value must be at least the limit, else at most
    limit: float
    change: bool
    percent: bool


@dataclass(frozen=True)
class Judged:
    """A rule with what was seen. `seen` None where it was not measured."""

    rule: str
    name: str
    limit: float
    seen: float | None
    verdict: str
    reason: str

    def to_json(self):
        return asdict(self)


def parse(text: str) -> list[Rule]:
    """The rules of a budget; TinkitError for what is none."""
    rules = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        found = RULE.fullmatch(part)
        if not found:
            raise TinkitError("A rule of the budget cannot be read.", where="--budget", seen=part, next_step=EXAMPLE)
        number, percent = found["limit"], bool(found["percent"])
        signed = number[0] in "+-"
        if percent and not signed:
            raise TinkitError(
                "A budget in percent is about the change against the teacher and wants a sign.",
                where="--budget",
                seen=part,
                next_step=f"write {found['name']}{found['sign']}-{number}%, or the value without %",
            )
        limit = float(number) / (100 if percent else 1)
        rules.append(Rule(part, found["name"], found["sign"].startswith(">"), limit, signed, percent))
    return rules


def check(rules: Sequence[Rule], known: dict[str, str], possible: dict[str, str]) -> None:
    """TinkitError for a name that no evaluation has, or that this one will not measure: said before hours of work.

    known: every name -> HIGHER or LOWER; possible: the names that are measured with what was given -> "".. reason otherwise.
    """
    for rule in rules:
        if rule.name not in known:
            raise TinkitError(
                "There is no such measure.", where="--budget", seen=rule.name, next_step=nearest(rule.name, list(known))
            )
        if rule.lower != (known[rule.name] == HIGHER):
            raise TinkitError(
                "The limit is on the wrong side.",
                where="--budget",
                seen=rule.text,
                next_step=f"{rule.name} is better when {known[rule.name]}: write {'>' if known[rule.name] == HIGHER else '<'}",
            )
        if reason := possible.get(rule.name, ""):
            raise TinkitError(
                "The budget names what is not measured here.", where="--budget", seen=rule.text, next_step=reason
            )


def judge(rules: Sequence[Rule], measures: Sequence[Measure]) -> list[Judged]:
    """Every rule with its verdict."""
    by_name = {measure.name: measure for measure in measures}
    return [_judge(rule, by_name.get(rule.name)) for rule in rules]


def verdict_of(judged: Sequence[Judged]) -> str:
    """Failed if any failed, not judged if any could not be judged or there is none, else passed."""
    verdicts = [entry.verdict for entry in judged]
    if FAILED in verdicts:
        return FAILED
    return PASSED if verdicts and NOT_JUDGED not in verdicts else NOT_JUDGED


def _judge(rule: Rule, measure: Measure | None) -> Judged:
    if measure is None:
        return Judged(rule.text, rule.name, rule.limit, None, NOT_JUDGED, "not measured")
    seen, interval, what = _seen(rule, measure)
    if seen is None or not math.isfinite(seen):
        return Judged(rule.text, rule.name, rule.limit, None, NOT_JUDGED, what)
    fine = seen >= rule.limit - ROUNDING if rule.lower else seen <= rule.limit + ROUNDING
    shown = "{:+.2%}" if rule.percent else "{:+.4f}" if rule.change else "{:.4f}"
    reason = f"{what} {shown.format(seen)}"
    if interval:
        reason += f" (95 %: {shown.format(interval[0])} to {shown.format(interval[1])})"
        if interval[0] < rule.limit < interval[1]:
            reason += "; other pictures might have decided otherwise"
    return Judged(rule.text, rule.name, rule.limit, seen, PASSED if fine else FAILED, reason)


def _seen(rule: Rule, measure: Measure):
    """(value, interval, what it is) that the rule is about."""
    if not rule.change:
        return measure.student, measure.interval, measure.title
    if measure.teacher is None:
        return None, (), f"{measure.title} compares the two networks already: write the limit without a sign"
    change, interval = measure.student - measure.teacher, measure.change
    if not rule.percent:
        return change, interval, f"{measure.title}, change"
    if measure.teacher == 0:
        return None, (), "the teacher's value is 0: no share of it"
    size = abs(measure.teacher)  # what corruption takes may be less than nothing
    return change / size, tuple(bound / size for bound in interval), f"{measure.title}, change"
