"""A finished run as a folder: what `tinkit distill` leaves behind and every later command reads.

student.safetensors   backbone.*, neck.* (head.*)   mapping.safetensors   the way from teacher to student space
run.json              settings, versions, seeds, hashes, timings, machine, skipped files, history of the metrics
exam.npz              the pictures of the exam (see tinkit.bundle), without answers yet
log.jsonl             one line a step
"""

import os
from dataclasses import dataclass
from typing import Any

from tinkit import files
from tinkit.bundle import Exam
from tinkit.errors import TinkitError
from tinkit.host.mapping import Mapping, MappingSpec
from tinkit.host.student import Student, build_student
from tinkit.host.teacher import Teacher, load_teacher
from tinkit.host.weights import load_into, read_weights
from tinkit.workspace import RUN_RECORD

SCHEMA = "tinkit-run-1"
STUDENT, MAPPING, EXAM, LOG = "student.safetensors", "mapping.safetensors", "exam.npz", "log.jsonl"


@dataclass(frozen=True)
class Run:
    """An opened run; `record` is run.json."""

    path: str
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return os.path.basename(os.path.abspath(self.path))

    def student(self) -> Student:
        """The trained student on the CPU, in eval mode. The file's hash is checked."""
        spec = self.record["student"]
        student = build_student(spec["architecture"], spec["size"], spec["dim"], classes=spec.get("classes"))
        load_into(student, read_weights(self._checked(STUDENT)), STUDENT)
        return student.eval()

    def mapping(self) -> Mapping | None:
        """The way from the teacher's space to the student's, on the CPU; None for a run without one."""
        if MAPPING not in self.record["files"]:
            return None
        mapping = Mapping(MappingSpec(**self.record["method"]["mapping"]))
        load_into(mapping, read_weights(self._checked(MAPPING)), MAPPING)
        return mapping.eval()

    def teacher(self) -> Teacher:
        """The teacher of the run, loaded again. TinkitError when its weights or its view of pictures are others now."""
        asked, known = self.record["settings"], self.record["teacher"]
        teacher = load_teacher(
            asked["teacher"],
            asked["teacher_weights"],
            asked["teacher_size"],
            asked["teacher_global"] == "pooled",
            asked["teacher_mean"],
            asked["teacher_std"],
        )
        for part in ("weights", "preprocessing", "global"):
            if teacher.identity.get(part) != known.get(part):
                raise TinkitError(
                    "The teacher is not the one that the student was distilled from.",
                    where=self.path,
                    seen=f"{asked['teacher']}: another {part}",
                    next_step="restore the weights that the run was made with",
                )
        return teacher

    def exam(self) -> Exam:
        """The exam's pictures and the mapped teacher's answers; `answers` is still empty."""
        path = self._checked(EXAM)
        return Exam.from_arrays(files.read_npz(path), path)

    def _checked(self, name):
        path = os.path.join(self.path, name)
        if not os.path.isfile(path):
            raise TinkitError("A file of the run is missing.", where=path)
        if files.sha256_of_file(path) != self.record["files"][name]:
            raise TinkitError(
                "A file of the run is damaged: its hash is not the one in run.json.",
                where=path,
                next_step="restore it, or distil again",
            )
        return path


def load_run(path) -> Run:
    """Open a finished run. Raises TinkitError for a folder that is none, or an unfinished one."""
    path = os.fspath(path)
    record = files.read_json(os.path.join(path, RUN_RECORD), "The run's record")
    if record.get("schema") != SCHEMA:
        raise TinkitError("This is not a run of tinkit's.", where=path, seen=f"schema {record.get('schema')!r}")
    if record.get("status") != "finished":
        raise TinkitError(
            "The run is not finished.",
            where=path,
            seen=f"status {record.get('status')!r}",
            next_step=f"tinkit distill --out {path} --resume",
        )
    return Run(path, record)
