"""`tinkit report A B C`: several reports on one page, latency against fidelity, and energy against fidelity where it is known.

The loss of a report is 1 minus the cosine of the worst picture in a gated hop on the device: what the way from the fp32
student to this board cost, and nothing about how near the student is to its teacher. A report is on the front when no other
one is as fast and as faithful and better in one of the two. Only reports that measure the same thing are held against each
other (same device, power mode, clocks and protocol; no rehearsal); the others are drawn hollow, with the reason.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.report import plots
from tinkit.host.report.board import clocks_told
from tinkit.host.report.compare import UNLIKE, fidelity_of
from tinkit.host.report.page import page_of
from tinkit.host.report.source import find_report, load_report
from tinkit.host.report.text import between, number, pair, short, table, text
from tinkit.host.report.timing import has_graph, marks_of
from tinkit.results import Latency, Report

TEMPLATE = "report_several.html.j2"
ALIKE = ("protocol", "device", "mode", "clocks")  # words of compare.UNLIKE
WORDS = {"device": "device", "mode": "power mode", "clocks": "clocks", "protocol": "protocol", "source": "power source",
         "rail": "rail", "played back": "played back from a folder"}  # fmt: skip
LEAST_LOSS = 1e-8  # float32 answers say nothing below it; what is less counts as this
LONGEST_LABEL = 24


@dataclass(frozen=True)
class Entry:
    """One report. single: its plain run of batch 1; loss: None without a gated hop on the device; energy_mj: of a picture."""

    number: int
    label: str
    report: Report
    single: Latency | None
    loss: float | None
    energy_mj: float | None

    @property
    def lacks(self) -> str:
        """Why it is in no picture, or ""."""
        if self.loss is None:
            return "no gated hop on the device has been examined"
        return "" if self.single else "batch 1 was not timed"


@dataclass(frozen=True)
class Picture:
    """One chart: kinds and reasons by the number of an entry; reasons are those of hollow dots."""

    chart: Any
    kinds: dict[int, str]
    reasons: dict[int, str]

    @property
    def front(self) -> list[int]:
        return [number for number, kind in self.kinds.items() if kind == "front"]


def report_several(sources, out=None) -> str:
    """Write report-of-N.html of N reports (folders or report.json files) and return its path.

    out: a folder, or a file ending in .html; the working directory when None. Raises TinkitError for a source that is
    missing, foreign or damaged, naming it.
    """
    reports = [load_report(find_report(source)) for source in sources]
    if not reports:
        raise TinkitError("No report was named.", next_step="name the folders of two or more reports")
    out = os.fspath(out) if out is not None else "."
    page = out if out.endswith(".html") else os.path.join(out, f"report-of-{len(reports)}.html")
    files.write_text(page, render(reports))
    return os.path.abspath(page)


def render(reports: Sequence[Report]) -> str:
    """The page as text."""
    entries = entries_of(reports)
    speed = speed_of(entries)
    energy = picture(
        "Loss of the worst picture against energy", [one for one in entries if one.energy_mj is not None],
        lambda one: one.energy_mj, "energy of a picture, mJ", _key_of_energy,
    )  # fmt: skip
    return page_of(
        TEMPLATE,
        entries=entries,
        rows=[_row(entry, speed, energy) for entry in entries],
        speed=speed,
        energy=energy,
        no_energy=[(one.label, _why_no_energy(one.report)) for one in entries if one.energy_mj is None],
        absent=[(one.label, one.lacks) for one in entries if one.lacks],
        hollow=[(one.label, speed.reasons[one.number]) for one in entries if one.number in speed.reasons],
        played_back=[one.label for one in entries if text(one.report.board.get("played_back"))],
        exams=sorted({_pictures(report) for report in reports if _pictures(report)}),
        least=LEAST_LOSS,
        small=[one.label for one in entries if one.loss is not None and one.loss < LEAST_LOSS],
    )


def speed_of(entries: Sequence[Entry]) -> "Picture":
    """Loss against the p95 of batch 1."""
    return picture(
        "Loss of the worst picture against latency", entries, lambda one: one.single.p95_ms, "p95 of batch 1, ms",
        _key_of_speed, lambda one: one.single.intervals.get("p95_ms"),
    )  # fmt: skip


def entries_of(reports: Sequence[Report]) -> list[Entry]:
    """The reports with what is drawn of them; labels are short, and unlike because each begins with its number."""
    modes = {text(report.board.get("power_mode")) for report in reports}
    entries = []
    for place, report in enumerate(reports, 1):
        target = text(table(report.bundle.get("target")).get("name")) or text(report.bundle.get("name"), report.title)
        mode = text(report.board.get("power_mode")) if len(modes) > 1 else ""
        label = " ".join(filter(None, (str(place), target, mode)))
        label = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
        plain = (run for run in report.latency if run.batch == 1 and not has_graph(run))
        worst = worst_cosine(report)
        loss = 1 - worst if worst is not None else None
        entries.append(Entry(place, label, report, next(plain, None), loss, number(report.power.get("energy_mj"))))
    return entries


def worst_cosine(report: Report) -> float | None:
    """Of the gated hops on the device."""
    seen = fidelity_of(report)
    return min((value for name, value in seen.items() if name.endswith(".cosine_min")), default=None)


def picture(title, entries, x_of, x_title, key_of, spread_of=lambda one: None) -> Picture:
    """A chart of the entries that have a loss and a run, with the front of those that are alike by `key_of`."""
    shown = [one for one in entries if not one.lacks]
    reasons = unlike({one.number: key_of(one.report) for one in shown})
    points = {one.number: (x_of(one), max(one.loss, LEAST_LOSS)) for one in shown}
    alike = {number: point for number, point in points.items() if number not in reasons}
    first, others = front(alike), "behind" if len(alike) > 1 else "alone"
    kinds = {n: "hollow" if n in reasons else "front" if n in first and others != "alone" else others for n in points}
    dots = [plots.Dot(one.label, *points[one.number], kinds[one.number], pair(spread_of(one))) for one in shown]
    chart = plots.scatter(title, dots, x_title, "1 - cosine of the worst picture") if dots else ""
    return Picture(chart, kinds, reasons)


def front(points: dict[int, tuple[float, float]]) -> set[int]:
    """The numbers of the points that no other point is at least as low as in both and lower in one."""
    return {
        one
        for one, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    }


def unlike(keys: dict[int, dict[str, str]]) -> dict[int, str]:
    """number -> why it is not compared: what it differs in from the largest group that is alike (the first of equals).

    A key is {word: value as text}; one with "rehearsal" is compared with nothing.
    """
    groups = Counter(tuple(key.items()) for key in keys.values() if "rehearsal" not in key)
    usual = dict(groups.most_common(1)[0][0]) if groups else {}
    reasons = {}
    for one, key in keys.items():
        if "rehearsal" in key:
            reasons[one] = f"a rehearsal: {key['rehearsal']}"
        elif key != usual:
            differs = [word for word in key if key[word] != usual[word]]
            reasons[one] = "; ".join(f"{WORDS[word]}: {key[word]}, the others have {usual[word]}" for word in differs)
    return reasons


def _key_of_speed(report: Report) -> dict[str, str]:
    if report.rehearsal:
        return {"rehearsal": report.rehearsal}
    told = {word: UNLIKE[word](report) for word in ALIKE}
    words = {
        "protocol": ", ".join(told["protocol"]),
        "device": " on ".join(str(part) for part in told["device"] if part),
        "mode": str(told["mode"] or "not told"),
        "clocks": clocks_told(report.board),
        "played back": "yes" if report.board.get("played_back") else "no",
    }
    return {word: words[word] or "not told" for word in words}


def _key_of_energy(report: Report) -> dict[str, str]:
    measured = {word: text(report.power.get(word), "not told") for word in ("source", "rail")}
    key = _key_of_speed(report)
    return key if "rehearsal" in key else {**key, **measured}


def _why_no_energy(report: Report) -> str:
    return text(report.power.get("note"), "the report does not say why").removeprefix("no energy: ")


def _pictures(report: Report) -> int:
    """How many pictures the worst one is the worst of."""
    return max((hop.pictures for hop in report.chain if hop.gate and hop.output != "pixels"), default=0)


def _row(entry: Entry, speed: Picture, energy: Picture) -> dict[str, Any]:
    report, run = entry.report, entry.single
    worst = 1 - entry.loss if entry.loss is not None else None
    kinds = {"latency": speed.kinds.get(entry.number), "energy": energy.kinds.get(entry.number)}
    fronts = [what for what, kind in kinds.items() if kind == "front"]
    told = {"behind": "behind", "alone": "nothing to compare it with"}.get(kinds["latency"] or "", "not compared")
    return {
        "number": entry.number,
        "title": report.title,
        "created": report.created,
        "verdict": report.verdict,
        "mode": text(report.board.get("power_mode"), "not told"),
        "clocks": clocks_told(report.board),
        "worst": worst,
        "loss": "none"
        if entry.loss is None
        else f"{entry.loss:.2g}"
        if entry.loss >= LEAST_LOSS
        else f"below {LEAST_LOSS}",
        "p50": short(run.p50_ms) if run else "none",
        "p95": short(run.p95_ms) if run else "none",
        "interval": between(run.intervals.get("p95_ms")) if run else "",
        "energy": short(entry.energy_mj) if entry.energy_mj is not None else "not measured",
        "file_mb": text(report.bundle.get("file_mb"), "not recorded"),
        "front": " and ".join(fronts) or told,
        "on_front": bool(fronts),
        "reason": entry.lacks or speed.reasons.get(entry.number, ""),
        "energy_reason": "" if entry.number in speed.reasons else energy.reasons.get(entry.number, ""),
        "marks": marks_of(run) if run else [],
    }
