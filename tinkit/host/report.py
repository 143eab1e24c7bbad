"""`tinkit report`: the evidence of a report.json as one page, report.html, that can be mailed, printed and kept.

The page is written from the JSON and, as long as it is there, from the bundle: its manifest (training, sizes, identities)
and its exam (pictures). What neither holds is "not recorded". Everything is inside the file: no script, no request,
thumbnails re-encoded from pixels, so without EXIF. File names are a stranger's text; the template escapes all of it.
"""

import functools
import os
from dataclasses import replace

import jinja2

from tinkit import files
from tinkit.bundle import MODEL
from tinkit.fidelity import FAILED, Fidelity
from tinkit.host import plots
from tinkit.host.report_board import board_of
from tinkit.host.report_pictures import worst_pictures
from tinkit.host.report_precision import percent, precision_of, signed
from tinkit.host.report_source import Evidence, find_report, load_report, open_evidence
from tinkit.host.report_text import LONGEST_LIST, NOT_RECORDED, cut, finite, flat, limit_of, said, short, table
from tinkit.host.report_timing import doubts_of, marks_of, missed_budgets, timing_of
from tinkit.results import Report

PAGE, TEMPLATE = "report.html", "report.html.j2"
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
    evidence = open_evidence(facts, os.path.dirname(os.path.abspath(path)))
    out = os.fspath(out) if out is not None else os.path.dirname(os.path.abspath(path))
    page = out if out.endswith(".html") else os.path.join(out, PAGE)
    files.write_text(page, render(facts, evidence))
    return replace(facts, path=os.path.abspath(page))


def render(facts: Report, evidence: Evidence) -> str:
    """The page as text."""
    precision = precision_of(facts, evidence.manifest)
    strips, shown = worst_pictures(facts.chain, evidence.exam)
    board = board_of(facts)
    single = next((run for run in facts.latency if run.batch == 1), next(iter(facts.latency), None))
    return page_of(
        TEMPLATE,
        report=facts,
        manifest=evidence.manifest,
        missing=evidence.missing,
        exam=evidence.exam,
        host_gate=table(evidence.manifest.get("host_gate") or facts.bundle.get("host_gate")),
        failures=[*_failures(facts), *precision.failures],
        doubts=[*doubts_of(facts), *board["throttled"], *board["changed"]],
        precision=precision,
        longest=LONGEST_LIST,
        worst=worst_hop(facts.chain),
        single=single,
        single_marks=marks_of(single) if single else [],
        target=facts.bundle.get("target") or {},
        sizes=_sizes(facts, evidence.manifest),
        measured=[_measured(hop) for hop in facts.chain],
        circumstances=_circumstances(facts.chain),
        strips=strips,
        shown=shown,
        curves=_curves(table(evidence.manifest.get("run")).get("history")),
        board=board,
        timing=timing_of(facts),
    )


def page_of(template, **contents) -> str:
    """A template of this folder as text; what is missing is said, and everything is escaped."""
    page = _environment().get_template(template).render(not_recorded=NOT_RECORDED, short=short, **contents)
    return page.encode("utf-8", "replace").decode()  # a file name may hold bytes that are no UTF-8


@functools.cache
def _environment() -> jinja2.Environment:
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
        limit_of=limit_of,
        arrow=_arrow,
        slug=lambda text: str(said(text)).replace(" ", "-"),
    )
    return environment


def worst_hop(chain: list[Fidelity]) -> Fidelity | None:
    """The gated hop of the lowest cosine, a failed one first; pixels are judged by other means and do not count."""
    gated = [hop for hop in chain if hop.gate and hop.pictures and hop.output != "pixels"]
    return min(gated, key=lambda hop: (hop.verdict != FAILED, hop.cosine_min), default=None)


def _failures(facts: Report):
    hops = [f"{_arrow(hop.hop)} ({hop.output}): {hop.reason}" for hop in facts.chain if hop.verdict == FAILED]
    return hops + missed_budgets(facts.budgets, FAILED)


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


def _arrow(hop):
    return str(hop).replace("->", "→")
