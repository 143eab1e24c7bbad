"""A head as an artefact of its own beside the run: RUN/heads/NAME.safetensors and, written last, NAME.json.

The JSON holds the class names, where the head comes from, what was measured, whose student it belongs to and the hash of
the weights; a head that was refused has a JSON and no weights. A run can have many heads; `tinkit export --head NAME`
puts one on the student.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED
from tinkit.host.run import STUDENT, Run
from tinkit.host.student import Student
from tinkit.host.weights import read_weights, write_weights
from tinkit.strict import nearest

SCHEMA, FOLDER = "tinkit-head-1", "heads"
ON_TEACHER, ON_STUDENT = SOURCES = ("teacher", "student")  # the features that a head comes from
PLAIN_NAME = re.compile(r"\w[\w-]*\Z")


@dataclass(frozen=True)
class Head:
    """A linear head on the student's embedding: weight (C, D) and bias (C,) float32; `record` is NAME.json."""

    weight: np.ndarray
    bias: np.ndarray
    record: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return self.record["classes"]

    def to_manifest(self) -> dict[str, Any]:
        """What a bundle tells about its head; no path and no name of a picture is in it."""
        return {key: self.record[key] for key in ("name", "kind", "source", "verdict", "evidence", "created")} | {
            "sha256": self.record["weights"]["sha256"]
        }


class Fitted(NamedTuple):
    """A head before it is written, with its evidence: one layer over the student's embedding; from labels or from prompts."""

    weight_CD: np.ndarray
    bias_C: np.ndarray
    source: str
    verdict: str
    reason: str
    evidence: dict[str, Any]
    notes: list[str]


def head_paths(folder, name) -> tuple[str, str]:
    """(weights, record) of a head in a folder. TinkitError for a name that is no plain file name."""
    if not PLAIN_NAME.match(name):
        raise TinkitError(
            "A head's name has letters, digits, `_` and `-` only.", seen=repr(name), next_step="--name NAME"
        )
    return os.path.join(folder, f"{name}.safetensors"), os.path.join(folder, f"{name}.json")


def write_head(folder, name, fitted: Fitted, record) -> tuple[str, str | None]:
    """Write a head, or of one that failed the record alone; an older one of the name goes first.

    Returns the paths of (record, weights or None). The record comes last: without it there is no head.
    """
    weights, path = head_paths(folder, name)
    for older in (path, weights):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(older)
    told = None
    if fitted.verdict != FAILED:
        arrays = {"weight": fitted.weight_CD, "bias": fitted.bias_C}
        write_weights(weights, {key: torch.from_numpy(np.array(array, np.float32)) for key, array in arrays.items()})
        told = {"file": os.path.basename(weights), "sha256": files.sha256_of_file(weights)}
    files.write_json(path, {"schema": SCHEMA, "name": name, **record, "weights": told})
    return path, None if told is None else weights


def read_head(run: Run, name) -> Head:
    """The head `name` of a run; a name with `/` or `.json` is the path of a record.

    Raises TinkitError for a head that is missing, damaged, was refused, or belongs to another student.
    """
    path = os.fspath(name)
    if not (os.sep in path or path.endswith(".json")):
        path = head_paths(os.path.join(run.path, FOLDER), path)[1]
        if not os.path.isfile(path):
            raise TinkitError("The run has no head of this name.", where=os.path.dirname(path), seen=os.fspath(name),
                              next_step=_offer(os.path.dirname(path), os.fspath(name)))  # fmt: skip
    record = files.read_json(path, "The head's record")
    if record.get("schema") != SCHEMA:
        raise TinkitError("This is not a head of tinkit's.", where=path, seen=f"schema {record.get('schema')!r}")
    if record.get("verdict") == FAILED or not record.get("weights"):
        raise TinkitError("This head was refused when it was made.", where=path, seen=record.get("reason"),
                          next_step="tinkit head again, with what the reason asks for")  # fmt: skip
    if record["run"]["student_sha256"] != run.record["files"][STUDENT]:
        raise TinkitError("The head belongs to another student.", where=path,
                          seen=f"made for run {record['run']['name']}", next_step=f"tinkit head {run.path}")  # fmt: skip
    weight_CD, bias_C = _read_tensors(path, record)
    return Head(weight_CD, bias_C, record)


def put_head(student: Student, run: Run, name) -> Head:
    """Read a head and put it on the run's student, in place of one that the run kept."""
    head = read_head(run, name)
    classes, width = head.weight.shape
    if width != student.dim or classes != len(head.classes):
        raise TinkitError("The head does not fit the student.", where=head.record["name"],
                          seen=f"{classes} x {width}, {len(head.classes)} class names, embedding {student.dim}")  # fmt: skip
    linear = nn.Linear(width, classes)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight))
        linear.bias.copy_(torch.from_numpy(head.bias))
    student.set_head(linear.requires_grad_(False).eval())
    return head


def _read_tensors(path, record):
    weights = os.path.join(os.path.dirname(os.path.abspath(path)), os.path.basename(record["weights"]["file"]))
    if not os.path.isfile(weights):
        raise TinkitError("The head's weights are missing.", where=weights)
    if files.sha256_of_file(weights) != record["weights"]["sha256"]:
        raise TinkitError("The head's weights are damaged: their hash is not the record's.", where=weights,
                          next_step="tinkit head makes them again")  # fmt: skip
    tensors = read_weights(weights)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    if set(shapes) != {"weight", "bias"} or len(shapes["weight"]) != 2 or shapes["bias"] != shapes["weight"][:1]:
        raise TinkitError("The head's weights are not one linear layer.", where=weights, seen=str(shapes))
    return tensors["weight"].numpy(), tensors["bias"].numpy()


def _offer(folder, name):
    known = (
        [entry[: -len(".json")] for entry in os.listdir(folder) if entry.endswith(".json")]
        if os.path.isdir(folder)
        else []
    )
    return nearest(name, known) if known else "tinkit head RUN --data FOLDER makes one"
