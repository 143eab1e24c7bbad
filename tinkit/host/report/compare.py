"""`tinkit compare`: what changed from one report to another, and whether the change is more than noise.

Reports of unlike protocols, devices, power modes, clocks or targets are two different numbers: they are refused unless the
difference is allowed by name. The noise of a percentile is what the bootstrap intervals of both runs leave open; two runs
on one machine differ by more than that when the machine changes between them, which no interval can know (docs/boards.md).
Rules (`p95_ms>+5%`) fail a build; one that is broken, but not by everything that the noise leaves open, is not judged, rather
than failed by chance. What was measured once a report (energy, rates, load time) has no such interval and is taken as it is.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinkit import files
from tinkit.budget import is_lower_limit, percentile_of, split_name
from tinkit.device.judging import measured_of
from tinkit.errors import CannotJudge, TinkitError
from tinkit.fidelity import FAILED, NOT_JUDGED, PASSED
from tinkit.host.report import junit
from tinkit.host.report.command import find_report, load_report
from tinkit.results import Report
from tinkit.strict import nearest
from tinkit.target import RUNTIMES

SCHEMA = "tinkit-comparison-1"
LATENCY = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99.9_ms")
PLAIN = ("load_ms", "first_ms", "peak_mb", "file_mb", "energy_mj", "power_w", "per_s")
FIDELITY = ("cosine_min", "cosine_mean", "max_error_share")
HIGHER_IS_BETTER = ("cosine_min", "cosine_mean")
COMPARED = "compared"  # no rule was given, so nothing was judged
SAME, BETTER, WORSE, NOISE, CHANGED = "the same", "better", "worse", "within the noise", "changed"
RULE = re.compile(
    r"\s*(?P<name>[\w.\-]+?)\s*(?P<sign>[<>])\s*(?P<limit>[+-]\d+(?:\.\d+)?(?:e-?\d+)?)(?P<percent>%?)\s*"
)


@dataclass(frozen=True)
class Change:
    """One quantity before and after. interval: of the relative change, what the noise of both leaves open; () where exact."""

    name: str
    before: float
    after: float
    interval: tuple[float, ...] = ()
    reason: str = ""

    @property
    def relative(self) -> float:
        """after / before - 1; infinite from 0."""
        if self.before == self.after:
            return 0.0
        return self.after / self.before - 1 if self.before else float("inf") * (1 if self.after > 0 else -1)

    @property
    def verdict(self) -> str:
        if self.before == self.after:
            return SAME
        if self.interval and self.interval[0] <= 0 <= self.interval[1]:
            return NOISE
        if not self.interval and not self.name.endswith(FIDELITY) and self.name != "file_mb":
            return CHANGED  # measured once in each report: there is no spread to hold it against
        higher = self.name.endswith(HIGHER_IS_BETTER) or is_lower_limit(self.name)
        return BETTER if (self.after > self.before) == higher else WORSE

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "before": self.before,
            "after": self.after,
            "relative": self.relative,
            "interval": list(self.interval),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns: every change, every rule with its verdict, and what was allowed to differ."""

    title: str
    verdict: str
    changes: list[Change]
    rules: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, ...]]:
        """For a table: what, before, after, change, noise, verdict."""
        return [
            (
                change.name,
                f"{change.before:.5g}",
                f"{change.after:.5g}",
                f"{change.relative:+.1%}",
                "{:+.1%} to {:+.1%}".format(*change.interval) if change.interval else "-",
                change.verdict,
            )
            for change in self.changes
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "title": self.title,
            "verdict": self.verdict,
            "changes": [change.to_json() for change in self.changes],
            "rules": self.rules,
            "notes": self.notes,
        }

    def write(self, junit_path=None, json_path=None) -> None:
        """JUnit XML (a test case a rule) and JSON, where a path is given."""
        if json_path:
            files.write_json(json_path, self.to_json())
        if junit_path:
            files.write_text(junit_path, junit.suite("tinkit compare: " + self.title, self.rules))


def compare(before, after, fail_if="", allow=()) -> Comparison:
    """Compare two reports (folders, report.json files or `Report`s).

    fail_if: rules such as "p95_ms>+5%,embedding.cosine_min<-0.001", on the relative change with %, else on the
    difference; without rules the verdict is "compared". allow: words of `UNLIKE` that may differ. Raises CannotJudge for
    unlike reports, TinkitError for a rule that makes no sense.
    """
    rules = parse_rules(fail_if)
    first, second = (one if isinstance(one, Report) else load_report(find_report(one)) for one in (before, after))
    notes = _check_alike(first, second, allow)
    changes = changes_of(first, second)
    judged = [_judge(rule, changes) for rule in rules]
    verdicts = {entry["verdict"] for entry in judged}
    verdict = FAILED if FAILED in verdicts else NOT_JUDGED if NOT_JUDGED in verdicts else PASSED if rules else COMPARED
    notes += [f"{entry['name']}: {entry['reason']}" for entry in judged if entry["verdict"] != PASSED]
    return Comparison(
        f"{first.title} ({first.created}) to {second.title} ({second.created})", verdict, changes, judged, notes
    )


def parse_rules(text) -> list[dict[str, Any]]:
    """[{"rule", "name", "sign", "limit", "percent"}] of "p95_ms>+5%,load_ms>+20"."""
    rules = []
    for part in filter(str.strip, text.split(",")):
        found = RULE.fullmatch(part)
        if not found:
            raise TinkitError(
                "A rule is NAME>+CHANGE, or NAME<-CHANGE.", where="--fail-if", seen=part.strip(), next_step="p95_ms>+5%"
            )
        if not _known(found["name"]):
            names = (*LATENCY, *PLAIN, *(f"embedding.{measure}" for measure in FIDELITY), "gpu.p95_ms", "server.p99_ms")
            raise TinkitError(
                "There is nothing of this name to compare.",
                where="--fail-if",
                seen=found["name"],
                next_step=nearest(found["name"], names),
            )
        rules.append(
            {
                "rule": part.strip(),
                "name": found["name"],
                "sign": found["sign"],
                "limit": float(found["limit"]) / (100 if found["percent"] else 1),
                "percent": bool(found["percent"]),
            }
        )
    if text and not rules:
        raise TinkitError("There is no rule in it.", where="--fail-if", seen=repr(text), next_step="p95_ms>+5%")
    return rules


def _known(name) -> bool:
    scope, measure = split_name(name)
    if name in PLAIN or percentile_of(measure) or measure == "mean_ms":
        return True
    return (bool(scope) and measure == "per_s") or name.rpartition(".")[2] in FIDELITY


def _judge(rule, changes) -> dict[str, Any]:
    change = next((one for one in changes if one.name == rule["name"]), None)
    if change is None:
        return dict(rule, verdict=NOT_JUDGED, reason="it is not in both reports")
    seen = change.relative if rule["percent"] else change.after - change.before
    told = f"{change.before:.5g} to {change.after:.5g}, {change.relative:+.2%}"
    if not (seen > rule["limit"] if rule["sign"] == ">" else seen < rule["limit"]):
        return dict(rule, verdict=PASSED, reason=told)
    if not _surely(rule, change):
        told += ", the noise is {:+.1%} to {:+.1%}: measure longer, or on a quieter machine".format(*change.interval)
        return dict(rule, verdict=NOT_JUDGED, reason=told)
    return dict(rule, verdict=FAILED, reason=told)


def _surely(rule, change) -> bool:
    """Whether everything that the noise leaves open breaks the rule; what has no interval is taken as it is."""
    if not change.interval:
        return True
    low, high = (bound * (1 if rule["percent"] else change.before) for bound in change.interval)
    return low > rule["limit"] if rule["sign"] == ">" else high < rule["limit"]


def changes_of(before: Report, after: Report) -> list[Change]:
    """Everything that both reports have, latency first."""
    first, second = values_of(before), values_of(after)
    return [
        Change(name, first[name][0], second[name][0], _interval(first[name][1], second[name][1]))
        for name in first
        if name in second
    ]


def _interval(before, after) -> tuple[float, ...]:
    if not before or not after or min(before) <= 0:
        return ()
    return (after[0] / before[1] - 1, after[1] / before[0] - 1)


def values_of(report: Report) -> dict[str, tuple[float, tuple[float, ...]]]:
    """name -> (value, interval or ()): names of budgets for batch 1, `batch 8: p50_ms` for others, OUTPUT.cosine_min, ..."""
    found: dict[str, tuple[float, tuple[float, ...]]] = {}
    for run in report.latency:
        graph = ", CUDA graph" if run.conditions.get("cuda_graph") else ""
        prefix = "" if run.batch == 1 and not graph else f"batch {run.batch}{graph}: "
        for name in LATENCY:
            key = name.replace("99.9", "999")
            found.setdefault(prefix + name, (getattr(run, key), tuple(run.intervals.get(key, ()))))
            if run.gpu:
                found.setdefault(
                    f"{prefix}gpu.{name}", (run.gpu[key], tuple(run.gpu.get("intervals", {}).get(key, ())))
                )
    for played in report.scenarios:
        for name in (*LATENCY, "per_s"):
            value = played.get(name.replace("99.9", "999"))
            if played.get("valid") and value is not None:
                found[f"{played['scenario']}.{name}"] = (value, ())
    plain = measured_of(report, report.bundle.get("file_mb"))
    found.update({name: (value, ()) for name, value in plain.items() if value is not None})
    found.update({name: (value, ()) for name, value in fidelity_of(report).items()})
    return {name: value for name, value in found.items() if np.isfinite(value[0])}


def fidelity_of(report: Report) -> dict[str, float]:
    """OUTPUT.measure -> the worst of the gated hops on the device."""
    found: dict[str, float] = {}
    for hop in report.chain:
        start, _, end = hop.hop.partition(" -> ")
        on_device = start in ("student", "frame") and end.partition(",")[0] in RUNTIMES
        if not (hop.gate and hop.pictures and on_device) or hop.output == "pixels":
            continue
        for measure in FIDELITY:
            name, value = f"{hop.output}.{measure}", getattr(hop, measure)
            worst = min if measure in HIGHER_IS_BETTER else max
            found[name] = worst(found.get(name, value), value)
    return found


UNLIKE = {  # word -> (what must be alike, of a report)
    "protocol": lambda report: sorted({run.protocol for run in report.latency}),
    "device": lambda report: (report.device.get("name"), report.board.get("model") or report.machine.get("cpu")),
    "playback": lambda report: bool(report.board.get("played_back")),
    "mode": lambda report: report.board.get("power_mode", ""),
    "clocks": lambda report: report.board.get("clocks_pinned"),
    "target": lambda report: (report.bundle.get("target", {}).get("name"), report.rehearsal),
    "threads": lambda report: sorted({run.threads for run in report.latency}),
}


def _check_alike(first: Report, second: Report, allow) -> list[str]:
    """Notes about what differs and may. Raises CannotJudge for what may not."""
    for word in allow:
        if word not in UNLIKE:
            raise TinkitError("There is no such difference to allow.", seen=word, next_step=nearest(word, UNLIKE))
    told = {
        word: f"{word}: {of(first)} before, {of(second)} after"
        for word, of in UNLIKE.items()
        if of(first) != of(second)
    }
    refused = [text for word, text in told.items() if word not in allow]
    if refused:
        raise CannotJudge(
            "These two reports do not measure the same thing.",
            seen="; ".join(refused),
            next_step="measure again alike, or allow it: " + " ".join(f"--allow {w}" for w in told if w not in allow),
        )
    notes = list(told.values())
    for name in sorted(set(first.versions) | set(second.versions)):
        if first.versions.get(name) != second.versions.get(name):
            notes.append(f"{name} {first.versions.get(name, 'none')} before, {second.versions.get(name, 'none')} after")
    for when, report in (("before", first), ("after", second)):
        marks = sorted({mark for run in report.latency for mark in run.marks})
        notes += [f"{when}: {mark}" for mark in marks]
    return notes
