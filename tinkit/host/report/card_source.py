"""Where a model card comes from: a report, a bundle or a run, and what lies beside it.

Whatever is named, the others are looked for: the bundle that a report was made of, the run that a bundle was exported
from (by its id, never by its place alone), the run's evaluation. What is missing is said in the card, and is no error.
"""

import os
from dataclasses import dataclass, field
from typing import Any

from tinkit import files
from tinkit.bundle import MANIFEST, MODEL, open_bundle
from tinkit.errors import TinkitError
from tinkit.fidelity import Fidelity
from tinkit.host.evaluate.evaluation import JSON as EVALUATION
from tinkit.host.evaluate.evaluation import Evaluation, find_evaluation, load_evaluation
from tinkit.host.report.source import JSON as REPORT
from tinkit.host.report.source import find_report, load_report, open_evidence
from tinkit.host.report.text import table, text
from tinkit.host.run import load_run
from tinkit.results import Report
from tinkit.workspace import RUN_RECORD

ASKED = {  # block of an evaluation -> what is not known without it
    "labels": "its accuracy and calibration",
    "ood": "strange pictures",
    "corruption": "damaged pictures",
    "domains": "pictures of another domain",
}


NO_BUNDLE = "The bundle that the report was made of is not here: its network and its training are not described."


@dataclass(frozen=True)
class Subject:
    """What a card is about. manifest and record are {} and report and evaluation None where they are not here.

    folder: where the card goes by default: beside report.json, else the run's folder, else beside the bundle (never inside).
    """

    folder: str
    manifest: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    report: Report | None = None
    evaluation: Evaluation | None = None
    missing: tuple[str, ...] = ()

    @property
    def instead(self) -> str:
        """ "" or in words why the report is not of its device: another runtime, or a board played back from a folder."""
        if self.report is None:
            return ""
        played = "a board played back from a recording" if text(self.report.board.get("played_back")) else ""
        return f"a rehearsal: {self.report.rehearsal}" if self.report.rehearsal else played

    @property
    def chain(self) -> list[Fidelity]:
        """Every hop that is known, from the teacher on."""
        if self.report is not None:
            return self.report.chain
        return [Fidelity.from_json(hop) for hop in self.manifest.get("chain") or self.record.get("chain") or []]


def find_subject(source=None, evaluation=None) -> Subject:
    """The subject of a report (folder or report.json), a bundle, a run or an evaluation; the newest report when None.

    Of an evaluation: the bundle or the run that it is of. evaluation: an evaluation.json that is taken in place of the run's.
    Raises TinkitError when `source` is none of them, or damaged.
    """
    path = os.fspath(source) if source is not None else None
    if path is not None and (told := _evaluation_at(path)):
        path, evaluation = _subject_of(load_evaluation(told)), evaluation or told
    if path is not None and os.path.isfile(os.path.join(path, MANIFEST)):
        found = _of_bundle(path)
    elif path is not None and os.path.isfile(os.path.join(path, RUN_RECORD)):
        found = _of_run(path)
    else:
        found = _of_report(find_report(path))
    folder, manifest, run_path, record, report, missing = found
    chosen = _evaluation(evaluation, run_path, record, manifest)
    return Subject(folder, manifest, record, report, chosen, (*missing, *_not_asked(chosen)))


def _evaluation_at(path) -> str:
    """The evaluation.json that is named, itself or by its folder; "" for anything else."""
    inside = os.path.join(path, EVALUATION)
    if os.path.isfile(inside) and not os.path.exists(os.path.join(path, REPORT)):
        return inside
    return path if os.path.basename(path) == EVALUATION and os.path.isfile(path) else ""


def _subject_of(evaluation: Evaluation) -> str:
    """The folder of the bundle or the run that was evaluated: the one above the evaluation, else the recorded one."""
    subject = evaluation.subject
    above = os.path.dirname(os.path.dirname(os.path.abspath(evaluation.path)))
    bundle = text(subject.get("bundle"))
    places = (os.path.join(above, os.path.basename(bundle)), bundle) if bundle else (above, text(subject.get("run")))
    name = MANIFEST if bundle else RUN_RECORD
    for place in filter(None, places):
        if os.path.isfile(os.path.join(place, name)):
            found = files.read_json(os.path.join(place, name), "What was evaluated")
            if (table(found.get("run")) if bundle else found).get("id") == subject.get("run_id"):
                return place
    raise TinkitError("What was evaluated is not here.", where=evaluation.path, seen=", ".join(filter(None, places)))


def _of_report(path):
    report, folder = load_report(path), os.path.dirname(os.path.abspath(path))
    evidence = open_evidence(report, folder)
    if evidence.bundle is None:
        return folder, _manifest_of(report), "", {}, report, (NO_BUNDLE,)
    run_path, record, missing = _run_of(evidence.bundle.path, evidence.manifest)
    return folder, evidence.manifest, run_path, record, report, missing


def _manifest_of(report: Report) -> dict[str, Any]:
    """What a report tells of its bundle, in the form of a manifest."""
    told = {name: value for name, value in report.bundle.items() if name in ("name", "target", "created", "host_gate")}
    return {**told, "files": {MODEL: {"sha256": report.bundle.get("model_sha256")}}}


def _of_bundle(path):
    bundle = open_bundle(path)
    run_path, record, missing = _run_of(bundle.path, bundle.manifest)
    folder = run_path or os.path.dirname(os.path.abspath(bundle.path))
    return folder, bundle.manifest, run_path, record, None, (*missing, "It was not measured on a device.")


def _of_run(path):
    return path, {}, path, load_run(path).record, None, ("It was not exported, and not measured on a device.",)


def _run_of(bundle_path, manifest):
    """(path, record, missing) of the run around a bundle; another run's record is not taken."""
    place = os.path.dirname(os.path.abspath(bundle_path))
    wanted = table(manifest.get("run")).get("id")
    try:
        record = files.read_json(os.path.join(place, RUN_RECORD), "The run's record")
    except TinkitError:
        return "", {}, ()  # provenance says what is unknown without it
    if not wanted or record.get("id") != wanted:
        return "", {}, ("The run beside the bundle is another one, so its record is not used.",)
    return place, record, ()


def _not_asked(evaluation: Evaluation | None) -> list[str]:
    lacks = [what for block, what in ASKED.items() if evaluation is None or getattr(evaluation, block) is None]
    start = "Only fidelity was measured: nothing" if evaluation is None else "Nothing"
    return [f"{start} is known of {', '.join(lacks)} (tinkit evaluate looks)."] if lacks else []


def _evaluation(given, run_path, record, manifest) -> Evaluation | None:
    if given is not None:
        return load_evaluation(given)
    model = table(table(manifest.get("files")).get(MODEL)).get("sha256")
    path = find_evaluation(run_path, record.get("id"), model) if run_path else ""
    return load_evaluation(path) if path else None
