"""Where a page comes from: report.json, found, read strictly, and the bundle that it was made of.

A report of another schema, with a part missing or a part of another type is refused by name: it may come from a board.
What is inside the plain data of a board is looked at where it is shown.
"""

import glob
import os
from dataclasses import dataclass, fields
from typing import Any

from tinkit import files, workspace
from tinkit.bundle import MODEL, Bundle, Exam, open_bundle
from tinkit.errors import TinkitError
from tinkit.fidelity import Fidelity
from tinkit.host.report.text import finite
from tinkit.results import REPORT_SCHEMA, Latency, Report

JSON = "report.json"
OF_OBJECTS = ("budgets", "throughput", "scenarios", "worst")
OF_NUMBERS = ("samples_ms",)


@dataclass(frozen=True)
class Evidence:
    """What lies beside the report: the bundle and its exam, or in `missing` why one of them is not here."""

    bundle: Bundle | None
    exam: Exam | None
    missing: str = ""

    @property
    def manifest(self) -> dict[str, Any]:
        return self.bundle.manifest if self.bundle else {}


def find_report(source):
    """The path of report.json; below runs/ the one with the latest `created`."""
    if source is not None:
        source = os.fspath(source)
        path = os.path.join(source, JSON) if os.path.isdir(source) else source
        if not os.path.isfile(path):
            below = sorted(glob.glob(os.path.join(glob.escape(source), "*", JSON)))
            found = ", ".join(f"tinkit report {os.path.dirname(one)}" for one in below[:4])
            raise TinkitError("There is no report here.", where=path, next_step=found or "tinkit profile writes one")
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


def load_report(path) -> Report:
    """The `Report` of a report.json. Raises TinkitError for another schema and for a part that is missing or damaged."""
    value = files.read_record(path, "The report", REPORT_SCHEMA, "profile the bundle again with this version")
    try:
        report = Report.from_json(value)
        for part in (report, *report.latency, *report.chain):
            _check_types(part)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TinkitError("The report is not complete.", where=path, seen=str(error)) from None
    return report


def _check_types(part: Report | Latency | Fidelity):
    """Raises TypeError where a field is not of its type. A fidelity's error may be infinite, no other number."""
    for field in fields(part):
        value = getattr(part, field.name)
        if field.type is float:
            fine = isinstance(value, float) if isinstance(part, Fidelity) else finite(value)
        else:
            kind = getattr(field.type, "__origin__", field.type)
            kind = kind if isinstance(kind, type) else (dict, type(None))  # a gate, or none
            fine = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if field.name in OF_OBJECTS:
            fine = fine and all(isinstance(entry, dict) for entry in value)
        if field.name == "worst":
            fine = fine and not any(isinstance(told, (list, dict)) for entry in value for told in entry.values())
        if field.name in OF_NUMBERS:
            fine = fine and all(finite(entry) for entry in value)
        if not fine:
            raise TypeError(f"{type(part).__name__}.{field.name} cannot be {str(value)[:60]!r}")


def open_evidence(facts: Report, folder) -> Evidence:
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
