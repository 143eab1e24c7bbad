"""`tinkit report`: the evidence of a report.json as one page, report.html, that can be mailed, printed and kept.

The page is written from the JSON and, as long as it is there, from the bundle: its manifest (training, sizes, identities)
and its exam (pictures), and from an evaluation of the same model that lies in the run's folder. What none of them holds is
"not recorded". Everything is inside the file: one script of tinkit's own, no request, thumbnails re-encoded from pixels, so
without EXIF. File names are a stranger's text; the template escapes all of it.
"""

import glob
import os
from dataclasses import replace

from tinkit import files
from tinkit.bundle import MODEL
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, Fidelity
from tinkit.host.report import plots, plots_evaluation
from tinkit.host.report.board import board_of
from tinkit.host.report.page import arrow, page_of
from tinkit.host.report.pictures import worst_pictures
from tinkit.host.report.plots_evaluation import Loss
from tinkit.host.report.precision import precision_of
from tinkit.host.report.source import Evidence, find_report, load_report, open_evidence
from tinkit.host.report.text import LONGEST_LIST, finite, table
from tinkit.host.report.timing import doubts_of, marks_of, missed_budgets, timing_of
from tinkit.results import Report

PAGE, TEMPLATE = "report.html", "report.html.j2"
HELD_OUT = "mapped teacher -> student"
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


def report(source=None, out=None, evaluation=None, provenance=None) -> Report:
    """Write report.html from `source` and return its `Report`, whose `path` is the page.

    source: a report's folder or report.json, the newest below runs/ when None. out: a folder, or a file ending in .html;
    beside report.json when None. evaluation: evaluation.json or its folder, the one of the same model in the run's folder when
    None. Raises TinkitError for a missing or foreign report and for an evaluation of another run; a missing or damaged
    bundle is no error, the page says so. provenance: what `tinkit.host.report.provenance.provenance_of` says; found out here only
    beside an evaluation, because it needs torch.
    """
    path = find_report(source)
    facts = load_report(path)
    evidence = open_evidence(facts, os.path.dirname(os.path.abspath(path)))
    out = os.fspath(out) if out is not None else os.path.dirname(os.path.abspath(path))
    page = out if out.endswith(".html") else os.path.join(out, PAGE)
    found = evaluation_of(path, facts, evidence, evaluation)
    if found is not None and provenance is None:
        provenance = _provenance(path, facts, evidence)
    files.write_text(page, render(facts, evidence, found, family_of(path), provenance))
    return replace(facts, path=os.path.abspath(page))


def render(facts: Report, evidence: Evidence, evaluation=None, family=None, provenance=None) -> str:
    """The page as text. evaluation: an `Evaluation` of the same run; family: what `family_of` says of its other reports;
    provenance: as `report` takes it."""
    ev = None
    if evaluation is not None:
        from tinkit.host.report import evaluation as report_evaluation  # it brings torch

        ev = report_evaluation.shown(evaluation)
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
        failures=[*_failures(facts), *precision.failures, *(ev["failures"] if ev else [])],
        verdict_of_all=FAILED if evaluation is not None and evaluation.verdict == FAILED else facts.verdict,
        evaluation=evaluation,
        ev=ev,
        alike=ev["numbers"][0] if ev and ev["numbers"][0]["measure"] else None,
        held=next((hop for hop in facts.chain if hop.hop == HELD_OUT and hop.pictures), None),
        lost=_lost(facts.chain),
        family=family,
        provenance=provenance,
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


def evaluation_of(path, facts: Report, evidence: Evidence, wanted=None):
    """The `Evaluation` that belongs to a report: the `wanted` one, or the one in the run's folder; None without one."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    if wanted is None and not glob.glob(os.path.join(glob.escape(folder), "evaluation*", "evaluation.json")):
        return None
    from tinkit.host.evaluate.evaluation import find_evaluation, load_evaluation  # they bring torch

    run_id = table(evidence.manifest.get("run")).get("id")
    if wanted is None:
        found = find_evaluation(folder, run_id, facts.bundle.get("model_sha256")) if run_id else ""
        return load_evaluation(found) if found else None
    evaluation = load_evaluation(wanted)
    if run_id and evaluation.subject.get("run_id") != run_id:
        seen = f"{evaluation.subject.get('run_id')}, the report's bundle is of {run_id}"
        raise TinkitError("The evaluation is of another run than the report.", where=str(wanted), seen=seen)
    return evaluation


def _provenance(path, facts: Report, evidence: Evidence):
    from tinkit.host.report.evaluation import provenance_beside  # it brings torch

    run_id = table(evidence.manifest.get("run")).get("id")
    return provenance_beside(
        os.path.dirname(os.path.dirname(os.path.abspath(path))), run_id, evidence.manifest, facts.versions
    )


def family_of(path):
    """The reports of the same run beside this one, as a table and a chart; None without another one."""
    from tinkit.host.report.several import (
        entries_of,
        speed_of,
    )  # it brings tinkit.host.report.compare, which imports this module
    from tinkit.host.report.siblings import siblings

    found = siblings(path)
    if len(found) < 2:
        return None
    return {"rows": found, "chart": speed_of(entries_of([one.report for one in found])).chart}


def _lost(chain: list[Fidelity]):
    """A chart of what each hop lost; "" where none was examined."""
    hops = [hop for hop in chain if hop.pictures and hop.output != "pixels"]
    several = len({hop.output for hop in hops}) > 1
    losses = [
        Loss(
            f"{chain.index(hop) + 1}  {arrow(hop.hop)}{f' ({hop.output})' if several else ''}",
            1 - hop.cosine_mean,
            1 - hop.cosine_min,
            1 - hop.gate["min_cosine"] if hop.gate and finite(hop.gate.get("min_cosine")) else None,
        )
        for hop in hops
    ]
    return plots_evaluation.losses("What each hop lost", losses) if losses else ""


def worst_hop(chain: list[Fidelity]) -> Fidelity | None:
    """The gated hop of the lowest cosine, a failed one first; pixels are judged by other means and do not count."""
    gated = [hop for hop in chain if hop.gate and hop.pictures and hop.output != "pixels"]
    return min(gated, key=lambda hop: (hop.verdict != FAILED, hop.cosine_min), default=None)


def _failures(facts: Report):
    hops = [f"{arrow(hop.hop)} ({hop.output}): {hop.reason}" for hop in facts.chain if hop.verdict == FAILED]
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
