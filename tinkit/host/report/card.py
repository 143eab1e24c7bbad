"""`tinkit report --card`: a model card in the Hugging Face form and a CycloneDX bill of materials, from what was measured.

Two files for those who were not there: MODEL_CARD.md (YAML front matter as the Hub reads it; rename it README.md there) and
bom.cdx.json. They go beside report.json, or where `out` says; in a bundle's folder they are strangers that its manifest does
not list, so hashes and exam stay as they were. A card is made to be published: no path, no file name of a picture is in it.
"""

import functools
import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import jinja2
import yaml

from tinkit import files
from tinkit.host.evaluate.measure import Measure
from tinkit.host.report import sbom
from tinkit.host.report.card_source import Subject, find_subject
from tinkit.host.report.card_text import arrow, code, licence_told, megabytes, plain
from tinkit.host.report.provenance import provenance_of
from tinkit.host.report.text import NOT_RECORDED, between, cut, finite, short, table
from tinkit.host.report.timing import marks_of
from tinkit.results import Report

CARD, TEMPLATE = "MODEL_CARD.md", "card.md.j2"
STUDENT_ALONE = "the student before export"
FEATURES, CLASSES = "image-feature-extraction", "image-classification"  # tasks as the Hub calls them
SETTINGS = ("method", "epochs", "batch_size", "views", "seed", "mapping", "center", "scale_min", "weight_decay", "ema")


@dataclass(frozen=True)
class CardResult:
    """The two files, and what a reader must ask for."""

    card: str
    bill: str
    unknown: list[str]


def card(source=None, out=None, licence=None, data_licence=None, evaluation=None) -> CardResult:
    """Write MODEL_CARD.md and bom.cdx.json of a report, a bundle, a run or an evaluation (the newest report when None).

    out: a folder, or a file ending in .md (the bill goes beside it). licence, data_licence: of the model and of the pictures,
    best as SPDX ("CC-BY-4.0"); unknown when None. evaluation: an evaluation.json in place of the run's own. Raises
    TinkitError for a source that is none of them.
    """
    subject = find_subject(source, evaluation)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    provenance = card_provenance(subject, licence or "", data_licence or "")
    place = os.fspath(out) if out is not None else subject.folder
    path = place if place.endswith(".md") else os.path.join(place, CARD)
    bill = os.path.join(os.path.dirname(path), sbom.NAME)
    files.write_text(path, render(subject, provenance))
    files.write_json(bill, bill_of(subject, provenance, created))
    return CardResult(os.path.abspath(path), os.path.abspath(bill), provenance["unknown"])


def card_provenance(subject: Subject, licence="", data_licence="") -> dict[str, Any]:
    """`provenance_of` the subject; what else is missing is said first in its `unknown`."""
    measured = subject.report.versions if subject.report is not None else None
    found = provenance_of(subject.manifest, subject.record or None, measured, licence, data_licence)
    return {**found, "unknown": [*subject.missing, *found["unknown"]]}


def bill_of(subject: Subject, provenance, created) -> dict[str, Any]:
    """The bill of materials of a subject. created: ISO 8601."""
    report, evaluation = subject.report, subject.evaluation
    return sbom.bill_of_materials(
        provenance,
        subject.manifest,
        subject.chain,
        [_of_whom(one, subject) for one in evaluation.measures] if evaluation else (),
        report.latency if report else (),
        created,
        subject.instead,
    )


def _of_whom(one: Measure, subject: Subject) -> Measure:
    """A measure that says whose it is, where it is not the exported file's."""
    return replace(one, what=(one.what or one.title) + _not_the_file(subject, "; of "))


def render(subject: Subject, provenance) -> str:
    """The card as text: front matter between two lines of dashes, then Markdown."""
    head = yaml.safe_dump(front_matter(subject, provenance), sort_keys=False, allow_unicode=True, width=1000)
    text = f"---\n{head}---\n\n{_body(subject, provenance)}"
    return text.encode("utf-8", "replace").decode()  # a folder's name may hold bytes that are no UTF-8


def front_matter(subject: Subject, provenance) -> dict[str, Any]:
    """What the Hub reads. base_model only where the teacher's weights are of the Hub by their name."""
    model, teacher = provenance["model"], provenance["teacher"]
    task = CLASSES if subject.manifest.get("classes") else FEATURES
    target = table(subject.manifest.get("target"))
    tags = ["tinkit", "knowledge-distillation", *(["onnx"] if target else [])]
    tags += [str(name) for name in (target.get("runtime"), target.get("precision")) if name]
    results = model_index(subject)
    return {
        "license": _hub_licence(model["licence"]),
        **({"license_name": model["licence"]["name"]} if _hub_licence(model["licence"]) == "other" else {}),
        "library_name": "tinkit",
        "pipeline_tag": task,
        "tags": list(dict.fromkeys(tags)),
        **({"base_model": teacher["hub"]} if teacher["hub"] else {}),
        **({"metrics": sorted({one["type"] for entry in results for one in entry["metrics"]})} if results else {}),
        **({"model-index": [{"name": str(model["name"]), "results": results}]} if results else {}),
    }


def model_index(subject: Subject) -> list[dict[str, Any]]:
    """The results of model-index: the evaluation's measures by group, the worst cosines, and a report's latency."""
    evaluation, report = subject.evaluation, subject.report
    results = []
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in evaluation.measures if evaluation else ():
        groups.setdefault(one.group, []).append(_metric(one.name, one.student, one.title))
    for group, metrics in groups.items():
        task = CLASSES if group in ("labels", "domains") else FEATURES
        results.append(_result(task, f"{_evaluated_on(subject)} ({group}{_not_the_file(subject, ', of ')})", metrics))
    if cosines := _cosines(subject):
        results.append(_result(FEATURES, "held-out and exam pictures", cosines))
    if report and report.latency and not subject.instead:
        results.append(_result(FEATURES, f"exam pictures on {report.device.get('name', 'a device')}", _times(report)))
    return [entry for entry in results if entry["metrics"]]


def _cosines(subject: Subject) -> list[dict[str, Any]]:
    """The worst cosine of each hop that is evidence, and the worst of all gated hops: what shipping cost."""
    hops = [hop for hop in subject.chain if hop.output != "pixels" and hop.pictures]
    found = [
        _metric("cosine_min", hop.cosine_min, f"worst cosine, {hop.hop}, {hop.output}") for hop in hops if not hop.gate
    ]
    if gated := [hop.cosine_min for hop in hops if hop.gate]:
        found.append(_metric("cosine_min", min(gated), "worst cosine, fp32 student to what ships"))
    return found


def _times(report: Report) -> list[dict[str, Any]]:
    """Of the batches without a mark (contended, throttled, ...): a number here stands alone, without a word beside it."""
    return [
        _metric(f"{name}_ms", getattr(run, f"{name}_ms"), f"latency {name} in ms, batch {run.batch}")
        for run in report.latency
        if not run.conditions.get("cuda_graph") and not marks_of(run)
        for name in ("p50", "p95")
    ]


def _result(task, dataset, metrics) -> dict[str, Any]:
    kept = [metric for metric in metrics if finite(metric["value"])]
    return {"task": {"type": task}, "dataset": {"type": "image-folder", "name": dataset}, "metrics": kept}


def _metric(kind, value, name) -> dict[str, Any]:
    return {"type": str(kind), "value": float(value), "name": str(name)}


def _hub_licence(licence) -> str:
    """The Hub's word for a licence: an SPDX id in lower case, "other" for one of its own or several, "unknown"."""
    if not licence["known"]:
        return "unknown"
    return licence["name"].lower() if licence["spdx"] and " " not in licence["name"] else "other"


def _body(subject: Subject, provenance) -> str:
    manifest, record, report = subject.manifest, subject.record, subject.report
    settings, data = table(record.get("settings")), provenance["data"]
    method = table(table(manifest.get("run")).get("method") or record.get("method")).get("name")
    return _environment().get_template(TEMPLATE).render(
        **provenance,
        method=method,
        target=table(manifest.get("target")),
        gate=table(manifest.get("host_gate")).get("verdict"),
        report=report,
        instead=subject.instead,
        tensors=table(manifest.get("tensors")),
        preprocessing=table(manifest.get("preprocessing") or table(record.get("student")).get("preprocessing")),
        labels=_labels(data["labelled"]),
        settings=[(name.replace("_", " "), settings[name]) for name in SETTINGS if name in settings],
        train_s=table(record.get("timings")).get("train_s"),
        machine=table(record.get("machine")).get("device"),
        hops=[hop for hop in subject.chain if hop.pictures and hop.output != "pixels"],
        evaluation=subject.evaluation,
        evaluated=_evaluated(subject),
        evaluated_on=_evaluated_on(subject),
        latency=report.latency if report else [],
        protocol=next((run.protocol for run in report.latency), "") if report else "",
        cpu=report.machine.get("board") or report.machine.get("cpu") if report else "",
        bill=sbom.NAME,
    )  # fmt: skip


def _labels(labelled) -> str:
    if labelled is None:
        return NOT_RECORDED
    return f"{labelled} pictures had one" if labelled else "none were used"


def _evaluated(subject: Subject) -> str:
    """Which network the evaluation is of: a student's numbers are not the exported file's."""
    kind = subject.evaluation.subject.get("kind") if subject.evaluation else None
    if kind == "bundle":
        return "the exported file"
    return STUDENT_ALONE + ", not of the exported file" if subject.manifest else "the student"


def _not_the_file(subject: Subject, before="") -> str:
    """ "" or a word that these numbers are not those of the file that the card is about."""
    alone = subject.evaluation is not None and subject.evaluation.subject.get("kind") != "bundle" and subject.manifest
    return before + STUDENT_ALONE if alone else ""


def _evaluated_on(subject: Subject) -> str:
    root = subject.evaluation.pictures.get("root") if subject.evaluation else None
    return os.path.basename(str(root).rstrip(os.sep)) if root else NOT_RECORDED


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(  # Markdown: `plain` escapes every value, HTML included
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        undefined=jinja2.ChainableUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        cut=cut, short=short, code=code, licence=licence_told, arrow=arrow, between=between, megabytes=megabytes
    )
    return environment
