"""What an evaluation says on a page: in a report's page beside what the device did, or on a page of its own.

Three numbers stand on top, each the answer to a question that decides whether a student may replace its teacher: does it
answer alike, does it hold when pictures get worse, does it know what it does not know. A question that was not asked is
shown with the option that asks it. Everything else is a section of the template, in the order of a reader's doubts.
"""

import os
from typing import Any

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED
from tinkit.host.evaluate.evaluation import JSON, Evaluation, load_evaluation
from tinkit.host.evaluate.measure import HIGHER, Measure
from tinkit.host.report import answers as report_answers
from tinkit.host.report import blocks as report_blocks
from tinkit.host.report.album import Album
from tinkit.host.report.page import page_of
from tinkit.host.report.provenance import provenance_of
from tinkit.host.report.text import finite, flat, number, short, table, text
from tinkit.workspace import RUN_RECORD

PAGE, TEMPLATE = "evaluation.html", "evaluation.html.j2"
GROUPS = {
    "similarity": "Without labels",
    "labels": "With labels",
    "ood": "Strange pictures",
    "corruption": "Corrupted pictures",
    "domains": "Other domains",
    "dense": "Within a picture",
    "orthogonality": "The mapping alone",
}
QUESTIONS = (  # what is asked, the measures that answer it (the first one that was measured), how to ask
    (
        "Answers as its teacher",
        ("agreement", "probe_agreement", "overlap@10", "cosine", "cka_debiased"),
        "labelled pictures",
    ),
    ("Holds when pictures get worse", ("corruption", "domain"), "--corruptions, or --domains FOLDER"),
    ("Knows what it does not know", ("auroc",), "--ood FOLDER"),
)
BETTER, LOST, LESS_TO_LOSE = "better", "corruption_gap", "less, but it had less to lose"
PLAIN = ("classes", "skipped")  # of `pictures`: told in words of their own


def evaluation_page(source, out=None, provenance=None) -> str:
    """Write evaluation.html from `source` (evaluation.json or its folder) and return the page's path.

    out: a folder, or a file ending in .html; beside evaluation.json when None. Raises TinkitError for an evaluation that is
    missing, damaged or of another version. Pictures that are gone are no error, the page says so. provenance: what
    `tinkit.host.report.provenance.provenance_of` says, found out here when None.
    """
    path = os.path.join(source, JSON) if os.path.isdir(source) else os.fspath(source)
    if not os.path.isfile(path):
        raise TinkitError("There is no evaluation here.", where=path, next_step="tinkit evaluate writes one")
    found = load_evaluation(path)
    out = os.fspath(out) if out is not None else os.path.dirname(os.path.abspath(path))
    page = out if out.endswith(".html") else os.path.join(out, PAGE)
    folder = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    told = provenance or provenance_beside(folder, found.subject.get("run_id"), {})
    files.write_text(page, render(found, told))
    return os.path.abspath(page)


def render(found: Evaluation, provenance=None) -> str:
    """The page of an evaluation alone, as text."""
    return page_of(TEMPLATE, ev=shown(found), evaluation=found, provenance=provenance)


def provenance_beside(folder, run_id, manifest, versions=None) -> dict[str, Any]:
    """`provenance_of` a bundle ({} without one), with the record in the run's folder if it is of the same run."""
    path = os.path.join(folder, RUN_RECORD)
    try:
        record = files.read_json(path, "The run's record") if os.path.isfile(path) else {}
    except TinkitError:
        record = {}  # damaged: as good as gone, and `unknown` says so
    return provenance_of(manifest, record if record.get("id") == run_id else None, versions)


def shown(found: Evaluation) -> dict[str, Any]:
    """Everything that the sections of an evaluation show. Blocks that were not asked for are None."""
    album = Album(text(found.pictures.get("root")))
    return {
        "numbers": [_answer(question, names, how, found) for question, names, how in QUESTIONS],
        "subject": _subject(found),
        "compared": _groups(found, False),
        "beside": _groups(found, True),
        "budget": found.budget,
        "failures": [
            f"degradation budget {b.get('rule')}: {b.get('reason')}" for b in found.budget if b.get("verdict") == FAILED
        ],
        "similarity": found.similarity,
        "worst": report_blocks.similarity_of(table(found.similarity), album),
        "orthogonality": report_blocks.orthogonality_of(table(found.orthogonality)) if found.orthogonality else None,
        "dense": report_blocks.dense_of(found.dense, album) if found.dense else None,
        "ood": report_blocks.ood_of(found.ood) if found.ood else None,
        "corruption": report_blocks.corruption_of(found.corruption) if found.corruption else None,
        "domains": report_answers.domains_of(found.domains) if found.domains else None,
        "labels": report_answers.labels_of(found.labels, album) if found.labels else None,
        "conditions": flat({name: value for name, value in found.pictures.items() if name not in PLAIN}, text=short)
        + flat(found.conditions, text=short),
        "seconds": [(name, short(round(value, 1))) for name, value in found.seconds.items() if finite(value)],
        "classes": len(found.pictures.get("classes") or []),
        "album": album,
    }


def _answer(question, names, how, found: Evaluation) -> dict[str, Any]:
    """{"question", "measure" or None, "how"}."""
    known = {measure.name.removeprefix("fitted_"): measure for measure in found.measures}
    name = next((name for name in names if name in known), None)
    return {"question": question, "how": how, "measure": _row(known[name]) if name else None}


def _subject(found: Evaluation) -> str:
    """Which network was asked, in one line."""
    what = "the student in PyTorch" if found.subject.get("kind") == "student" else "a bundle's model"
    runtime, run = text(found.subject.get("runtime")), text(found.subject.get("run_id"))
    teacher = text(table(found.subject.get("teacher")).get("name"))
    told = (
        f"in {runtime}" if runtime else "",
        f"of run {run}" if run else "",
        f"beside its teacher {teacher}" if teacher else "",
    )
    return " ".join(filter(None, (what, *told)))


def _groups(found: Evaluation, with_teacher: bool) -> list[tuple[str, list[dict[str, Any]]]]:
    """[(group, rows)] of the measures that have the teacher's own value beside them, or of those that compare the two."""
    listed = [
        measure
        for measure in found.measures
        if finite(measure.student) and (measure.teacher is not None) == with_teacher
    ]
    less = _less_to_lose(table(found.corruption))
    rows = [(one.group, _row(one, LESS_TO_LOSE if one.name == LOST and less else "")) for one in listed]
    groups = list(dict.fromkeys(group for group, _ in rows))
    return [(GROUPS.get(group, group), [row for its, row in rows if its == group]) for group in groups]


def _less_to_lose(corruption: dict) -> bool:
    """Whether the student is right less often than its teacher on clean pictures, so that losing less is no praise."""
    clean = table(corruption.get("clean"))
    teacher, student = number(clean.get("teacher")), number(clean.get("student"))
    return teacher is not None and student is not None and student < teacher


def _row(measure: Measure, instead="") -> dict[str, Any]:
    """One measure as the template wants it; `way` says whether the change is more than another draw of pictures, `instead`
    replaces a "better" that would be praise for the wrong thing."""
    change = measure.student - measure.teacher if measure.teacher is not None else None
    way = _way(change, measure)
    return {
        "name": measure.name,
        "title": measure.title,
        "what": measure.what,
        "better": measure.better,
        "student": measure.student,
        "teacher": measure.teacher,
        "interval": measure.interval,
        "change": change,
        "change_interval": measure.change,
        "way": instead if instead and way == BETTER else way,
    }


def _way(change, measure: Measure) -> str:
    if change is None or len(measure.change) != 2:
        return ""
    low, high = measure.change
    if low <= 0 <= high:
        return "no clear change"
    return BETTER if (low > 0) == (measure.better == HIGHER) else "worse"
