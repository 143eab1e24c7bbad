"""`tinkit report`: the evidence of a report.json as one page, report.html, that can be mailed, printed and kept.

The page is written from the JSON and, as long as it is there, from the bundle: its manifest (training, sizes, identities)
and its exam (pictures). What neither holds is "not recorded". Everything is inside the file: no script, no request,
thumbnails re-encoded from pixels, so without EXIF. File names are a stranger's text; the template escapes all of it.
"""

import glob
import os
from dataclasses import dataclass, replace
from typing import Any

import jinja2

from tinkit import files, workspace
from tinkit.bundle import MODEL, Bundle, Exam, open_bundle
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, Fidelity
from tinkit.host import plots
from tinkit.host.report_pictures import worst_pictures
from tinkit.host.report_precision import percent, precision_of, signed
from tinkit.host.report_text import LONGEST_LIST, NOT_RECORDED, cut, finite, flat, said, short, table
from tinkit.results import REPORT_SCHEMA, Latency, Report

JSON, PAGE, TEMPLATE = "report.json", "report.html", "report.html.j2"
NOT_A_LOSS = ("epoch", "step", "lr", "step_ms")
CURVES = (  # title, held-out metrics and their short names, what is better
    (
        "Held-out cosine, student to mapped teacher",
        {"cosine_mean": "mean", "cosine_p1": "p1", "cosine_min": "min"},
        "higher",
    ),
    (
        "Held-out mean |difference of pairwise cosines|",
        {"cosine_difference": "to teacher", "cosine_difference_mapped": "to mapped"},
        "lower",
    ),
    ("Held-out neighbours shared with the teacher", {"neighbour_overlap": "overlap"}, "higher"),
)


def report(source=None, out=None) -> Report:
    """Write report.html from `source` and return its `Report`, whose `path` is the page.

    source: a report's folder or report.json, the newest below runs/ when None. out: a folder, or a file ending in .html;
    beside report.json when None. Raises TinkitError for a missing or foreign report; a missing or damaged bundle is no
    error, the page says so.
    """
    path = find_report(source)
    facts = load_report(path)
    evidence = _open_evidence(facts, os.path.dirname(os.path.abspath(path)))
    out = os.fspath(out) if out is not None else os.path.dirname(os.path.abspath(path))
    page = out if out.endswith(".html") else os.path.join(out, PAGE)
    files.write_text(page, render(facts, evidence))
    return replace(facts, path=os.path.abspath(page))


def load_report(path) -> Report:
    """The `Report` of a report.json. Raises TinkitError for another schema or a part that is missing."""
    value = files.read_json(path, "The report")
    if value.get("schema") != REPORT_SCHEMA:
        raise TinkitError(
            "The report has a schema that this tinkit does not read.",
            where=path,
            seen=repr(value.get("schema")),
            next_step="profile the bundle again with this version",
        )
    try:
        return Report.from_json(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise TinkitError("The report is not complete.", where=path, seen=str(error)) from None


@dataclass(frozen=True)
class Evidence:
    """What lies beside the report: the bundle and its exam, or in `missing` why one of them is not here."""

    bundle: Bundle | None
    exam: Exam | None
    missing: str = ""

    @property
    def manifest(self) -> dict[str, Any]:
        return self.bundle.manifest if self.bundle else {}


def render(facts: Report, evidence: Evidence) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # what an older manifest lacks is said, by `finalize`
        finalize=said,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        cut=cut,
        short=short,
        flat=flat,
        percent=percent,
        signed=signed,
        arrow=_arrow,
        slug=lambda text: str(said(text)).replace(" ", "-"),
    )
    precision = precision_of(facts, evidence.manifest)
    strips, shown = worst_pictures(facts.chain, evidence.exam)
    page = environment.get_template(TEMPLATE).render(
        report=facts,
        manifest=evidence.manifest,
        missing=evidence.missing,
        exam=evidence.exam,
        host_gate=table(evidence.manifest.get("host_gate") or facts.bundle.get("host_gate")),
        failures=[*_failures(facts), *precision.failures],
        precision=precision,
        longest=LONGEST_LIST,
        worst=worst_hop(facts.chain),
        single=next((run for run in facts.latency if run.batch == 1), next(iter(facts.latency), None)),
        target=facts.bundle.get("target") or {},
        sizes=_sizes(facts, evidence.manifest),
        measured=[_measured(hop) for hop in facts.chain],
        circumstances=_circumstances(facts.chain),
        strips=strips,
        shown=shown,
        curves=_curves(table(evidence.manifest.get("run")).get("history")),
        histograms=[(run, *_histogram(run)) for run in facts.latency if run.samples_ms],
        not_recorded=NOT_RECORDED,
        short=short,
    )
    return page.encode("utf-8", "replace").decode()  # a file name may hold bytes that are no UTF-8


def worst_hop(chain: list[Fidelity]) -> Fidelity | None:
    """The gated hop of the lowest cosine, a failed one first; pixels are judged by other means and do not count."""
    gated = [hop for hop in chain if hop.gate and hop.pictures and hop.output != "pixels"]
    return min(gated, key=lambda hop: (hop.verdict != FAILED, hop.cosine_min), default=None)


def find_report(source):
    """The path of report.json; below runs/ the one with the latest `created`."""
    if source is not None:
        source = os.fspath(source)
        path = os.path.join(source, JSON) if os.path.isdir(source) else source
        if not os.path.isfile(path):
            raise TinkitError("There is no report here.", where=path, next_step="tinkit profile writes one")
        return path
    found = []
    for path in glob.glob(os.path.join(workspace.RUNS, "**", JSON), recursive=True):
        try:
            found.append((load_report(path).created, path))
        except TinkitError:
            continue  # half-copied, or of another version: not the newest report
    if not found:
        raise TinkitError(
            "There is no report here.",
            where=os.path.abspath(workspace.RUNS),
            next_step="tinkit profile writes one; or name a report's folder",
        )
    return max(found)[1]


def _open_evidence(facts: Report, folder) -> Evidence:
    """The bundle where the report says, or beside the report after a move; never another one than was examined."""
    recorded = str(facts.bundle.get("path") or "")
    if not recorded:
        return Evidence(None, None, "The report does not say where its bundle lies.")
    beside = os.path.join(os.path.dirname(folder), os.path.basename(recorded))
    path = next((place for place in (recorded, beside) if os.path.isdir(place)), None)
    if path is None:
        return Evidence(None, None, f"The bundle is no longer at {recorded}.")
    try:
        bundle = open_bundle(path)
        examined = facts.bundle.get("model_sha256")
        if examined and bundle.manifest["files"].get(MODEL, {}).get("sha256") != examined:
            return Evidence(None, None, f"The bundle at {path} is another one than was examined: its model differs.")
        exam = bundle.exam()
    except TinkitError as error:
        return Evidence(None, None, f"The bundle at {path} cannot be used: {error.what}")
    if exam is None:
        return Evidence(bundle, None, "The bundle carries no exam (it was exported with --deploy-only).")
    return Evidence(bundle, exam)


def _failures(facts: Report):
    hops = [f"{_arrow(hop.hop)} ({hop.output}): {hop.reason}" for hop in facts.chain if hop.verdict == FAILED]
    budgets = [
        f"budget {entry.get('name')}: {short(entry.get('measured'))}, the limit is {short(entry.get('limit'))}"
        for entry in facts.budgets
        if entry.get("verdict") == FAILED
    ]
    return hops + budgets


def _sizes(facts: Report, manifest):
    student = table(manifest.get("student"))
    of_model = table(table(manifest.get("files")).get(MODEL)).get("bytes")
    file_mb = of_model / 1e6 if isinstance(of_model, int) else facts.bundle.get("file_mb")
    return {
        "parameters": student.get("parameters"),
        "macs": student.get("macs"),
        "file_mb": file_mb,
        "student": student,
    }


def _measured(hop: Fidelity):
    """The conditions that are numbers of this hop alone, and what its cosine is of."""
    return {key: value for key, value in hop.conditions.items() if isinstance(value, float) or key == "measure"}


def _circumstances(chain: list[Fidelity]):
    """[("Exam, hops 4, 5", conditions)]: hops examined in the same way together; the batch is in the hop's name."""
    groups: list[tuple[list[int], dict]] = []
    for number, hop in enumerate(chain, 1):
        told = {key: value for key, value in hop.conditions.items() if key != "batch" and key not in _measured(hop)}
        same = next((numbers for numbers, known in groups if known == told), None)
        if same is not None:
            same.append(number)
        elif told:
            groups.append(([number], told))
    return [(f"Exam, hop{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}", told) for numbers, told in groups]


def _curves(history):
    """[(title, chart, caption)] of a run's history: the loss, its parts, the held-out metrics."""
    history = [entry for entry in history or [] if isinstance(entry, dict)]
    if not history:
        return []
    epochs = [entry.get("epoch", number) for number, entry in enumerate(history, 1)]
    metrics = {name for _, names, _ in CURVES for name in names}
    numbers = {name for entry in history for name, value in entry.items() if finite(value)}
    parts = sorted(numbers - metrics - {"loss", *NOT_A_LOSS})
    wanted = [
        ("Loss", {"loss": "loss"}, "lower"),
        ("Parts of the loss, before weighting", {p: p for p in parts}, "lower"),
        *CURVES,
    ]
    curves = []
    for title, names, better in wanted:
        series = {label: [entry.get(name) for entry in history] for name, label in names.items() if name in numbers}
        if series:
            curves.append((title, plots.line_chart(title, series, epochs), f"{better} is better"))
    return curves


def _histogram(run: Latency):
    marks = {"p50": run.p50_ms, "p95": run.p95_ms, "p99": run.p99_ms}
    return plots.histogram(f"Latency of batch {run.batch}, {run.samples} samples", run.samples_ms, marks)


def _arrow(hop):
    return str(hop).replace("->", "→")
