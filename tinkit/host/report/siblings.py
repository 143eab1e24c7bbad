"""The other reports of the same run: other targets and other devices, for one picture of what each of them costs.

Reports of a run lie in folders beside each other (RUN/report-TARGET-DEVICE/). They belong together when the hops before
the export are the same numbers: a folder of another run, or one that was distilled again, has others. The teacher's and
the mapped teacher's hops are copied from run.json into the bundle and from there into each report, so no bundle is needed.
"""

import glob
import os
from dataclasses import dataclass

from tinkit.errors import TinkitError
from tinkit.host.report.source import JSON, find_report, load_report
from tinkit.host.report.text import number, table, text
from tinkit.results import Latency, Report

OF_THE_RUN = ("teacher -> mapped teacher", "mapped teacher -> student")
COMPARED = ("protocol", "device", "playback", "mode", "clocks")  # words of tinkit.host.report.compare.UNLIKE
MOST = 32  # siblings of a report that are listed


@dataclass(frozen=True)
class Sibling:
    """One report of the run. Latency is that of batch 1 without a CUDA graph; None is what was not measured.

    worst_cosine: of the gated hops on the device; p95_interval: (low, high) in ms, () where unknown; file_mb: of
    model.onnx, MB of 10^6 bytes; unlike: "" or why its numbers are not held against those of the report asked about;
    own: it is that report. `report` is all of it, as tinkit.host.report.several wants it.
    """

    path: str
    target: str
    device: str
    verdict: str
    rehearsal: str
    created: str
    p50_ms: float | None
    p95_ms: float | None
    p95_interval: tuple[float, ...]
    worst_cosine: float | None
    file_mb: float | None
    energy_mj: float | None
    unlike: str
    own: bool
    report: Report


def siblings(report_path) -> list[Sibling]:
    """Every readable report of the same run, the one at `report_path` (a folder or a report.json) included.

    By p95, those without one last. A report that is half-copied, or of another version, is left out. Raises TinkitError
    when `report_path` itself is missing or damaged.
    """
    own_path = os.path.abspath(find_report(report_path))
    own = load_report(own_path)
    found = {own_path: own}
    for path in sorted(glob.glob(_beside(own_path))):
        report = _readable(path) if path not in found else None
        if report is not None and same_run(own, report):
            found[path] = report
    listed = [_sibling(path, report, _unlike(report, own), path == own_path) for path, report in found.items()]
    return sorted(listed, key=_order)[:MOST]


def same_run(one: Report, other: Report) -> bool:
    """Whether the hops before the export are the same numbers; a report without them is no one's sibling."""
    return bool(_marks(one)) and _marks(one) == _marks(other)


def _marks(report: Report):
    hops = [hop for hop in report.chain if hop.hop in OF_THE_RUN]
    return [(hop.hop, hop.output, hop.pictures, hop.cosine_mean, hop.cosine_min) for hop in hops]


def _beside(path):
    folder = glob.escape(os.path.dirname(os.path.dirname(path)))
    return os.path.join(folder, "*", JSON)


def _readable(path) -> Report | None:
    try:
        return load_report(path)
    except TinkitError:
        return None


def _unlike(report: Report, own: Report) -> str:
    """What makes the numbers of `report` others than those of `own`: a rehearsal, or another device, mode, clock or protocol."""
    from tinkit.host.report.compare import UNLIKE  # it imports the page, and the page imports this module

    words = COMPARED if report.latency and own.latency else COMPARED[1:]  # without times there is no protocol
    told = {word: (UNLIKE[word](report), UNLIKE[word](own)) for word in words}
    differs = [f"{word}: {seen}, the report has {wanted}" for word, (seen, wanted) in told.items() if seen != wanted]
    if report.rehearsal != own.rehearsal:
        differs.insert(0, f"a rehearsal: {report.rehearsal}" if report.rehearsal else "no rehearsal, the report is one")
    return "; ".join(differs)


def _sibling(path, report: Report, unlike, own) -> Sibling:
    from tinkit.host.report.several import worst_cosine

    single = _single(report)
    target = table(report.bundle.get("target"))
    return Sibling(
        path=path,
        target=text(target.get("name")) or text(report.bundle.get("name"), report.title),
        device=text(report.device.get("name"), "not told"),
        verdict=report.verdict,
        rehearsal=report.rehearsal,
        created=report.created,
        p50_ms=single.p50_ms if single else None,
        p95_ms=single.p95_ms if single else None,
        p95_interval=tuple(single.intervals.get("p95_ms", ())) if single else (),
        worst_cosine=worst_cosine(report),
        file_mb=number(report.bundle.get("file_mb")),
        energy_mj=number(report.power.get("energy_mj")),
        unlike=unlike,
        own=own,
        report=report,
    )


def _single(report: Report) -> Latency | None:
    plain = (run for run in report.latency if run.batch == 1 and not run.conditions.get("cuda_graph"))
    return next(plain, None)


def _order(sibling: Sibling):
    return (sibling.p95_ms is None, sibling.p95_ms or 0.0, sibling.path)
