"""`Evaluation`: what one evaluation found, as evaluation.json holds it, and where a run's or a bundle's is kept."""

import glob
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tinkit import files
from tinkit.bundle import Bundle
from tinkit.errors import TinkitError
from tinkit.host.evaluate.measure import Measure
from tinkit.host.run import Run

SCHEMA, JSON = "tinkit-evaluation-1", "evaluation.json"
BLOCKS = ("similarity", "orthogonality", "labels", "ood", "corruption", "domains", "dense")


@dataclass(frozen=True)
class Evaluation:
    """The evidence about one network against its teacher. Blocks are what the modules of this package return, None where
    not asked for. `verdict` is the budget's, "not judged" without one. path: of evaluation.json."""

    title: str
    verdict: str
    created: str
    subject: dict[str, Any]
    pictures: dict[str, Any]
    measures: list[Measure]
    budget: list[dict[str, Any]]
    similarity: dict[str, Any] | None
    orthogonality: dict[str, Any] | None
    labels: dict[str, Any] | None
    ood: dict[str, Any] | None
    corruption: dict[str, Any] | None
    domains: dict[str, Any] | None
    dense: dict[str, Any] | None
    conditions: dict[str, Any]
    seconds: dict[str, float]
    notes: list[str] = field(default_factory=list)
    path: str = ""
    schema: str = SCHEMA

    def measure(self, name) -> Measure:
        """By its name; KeyError when it was not measured."""
        return {measure.name: measure for measure in self.measures}[name]

    def all_notes(self) -> list[str]:
        """What a reader should know: of the whole, then of each block with its name before it."""
        blocks = ((name, getattr(self, name) or {}) for name in BLOCKS)
        return [*self.notes, *(f"{name}: {note}" for name, block in blocks for note in block.get("notes", ()))]

    def to_json(self) -> dict[str, Any]:
        return dict(asdict(self), measures=[measure.to_json() for measure in self.measures])


def load_evaluation(path) -> Evaluation:
    """Read evaluation.json (or its folder). TinkitError for another schema or a part that is missing."""
    path = os.path.join(path, JSON) if os.path.isdir(path) else os.fspath(path)
    value = files.read_record(path, "The evaluation", SCHEMA, "tinkit evaluate writes it again")
    known = {field.name for field in fields(Evaluation)}
    try:
        measures = [Measure.from_json(entry) for entry in value["measures"]]
        return Evaluation(
            **{**{name: value[name] for name in value if name in known}, "measures": measures, "path": path}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise TinkitError("The evaluation is not complete.", where=path, seen=str(error)) from None


def folder_of(run: Run, bundle: Bundle | None) -> str:
    """RUN/evaluation for the student, RUN/evaluation-TARGET for a bundle."""
    return os.path.join(run.path, "evaluation" + (f"-{bundle.target.name}" if bundle else ""))


def find_evaluation(run_path, run_id, model_sha256=None) -> str:
    """The path of the evaluation of this bundle's model in the run's folder, else of its student, else "".

    Only one of the same run: an evaluation of other weights is another model's.
    """
    found = []
    for path in glob.glob(os.path.join(glob.escape(str(run_path)), "evaluation*", JSON)):
        try:
            subject = load_evaluation(path).subject
        except TinkitError:
            continue  # half-written, or of another version
        if subject.get("run_id") == run_id and subject.get("model_sha256") in (None, model_sha256):
            found.append((subject.get("model_sha256") is not None, path))
    return max(found)[1] if found else ""
