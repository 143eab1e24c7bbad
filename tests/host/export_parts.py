"""A finished run made by hand: a tiny lively student, an exam of photographs, everything that export reads; planted faults."""

import dataclasses
import importlib.util
import os

import numpy as np
import torch

from tinkit import files
from tinkit.fidelity import NOT_JUDGED, Fidelity
from tinkit.host import run as runs
from tinkit.host.export.exam import exam_of_folder
from tinkit.host.student import build_student
from tinkit.host.weights import write_weights
from tinkit.pixels import normalise
from tinkit.target import Batch, Gate, Target

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STUDENT, SIZE, DIM = "test_efficientnet", 64, 32
CHAIN = [
    Fidelity(name, "embedding", 4, 1.0, 1.0, 1.0, 0.0, 0.0, [], NOT_JUDGED).to_json()
    for name in ("teacher -> mapped teacher", "mapped teacher -> student")
]


def students_benchmark():
    """benchmarks/students.py as a module."""
    spec = importlib.util.spec_from_file_location("students_benchmark", os.path.join(ROOT, "benchmarks", "students.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_student(pixels_NHWC=None, architecture=STUDENT, size=SIZE, dim=DIM):
    """A `Student` with random weights that tells pictures apart."""
    torch.manual_seed(1)
    student = build_student(architecture, size, dim)
    if pixels_NHWC is None:
        pixels_NHWC = np.random.default_rng(2).integers(0, 256, (16, size, size, 3)).astype(np.uint8)
    return students_benchmark().lively(student, torch.from_numpy(normalise(pixels_NHWC, student.spec.preprocessing)))


def write_run(folder, pictures, change=None, change_exam=None, count=12, architecture=STUDENT):
    """A finished run at `folder` with `count` of `pictures` as its exam. `change(student)` may plant a fault."""
    preprocessing = build_student(architecture, SIZE, DIM).spec.preprocessing
    exam, _ = exam_of_folder(pictures, preprocessing, count)
    student = small_student(exam.pixels, architecture)
    if change is not None:
        change(student)
    if change_exam is not None:
        exam = change_exam(exam)
    mapped = np.random.default_rng(4).normal(size=(count, DIM)).astype(np.float32)
    os.makedirs(folder)
    write_weights(os.path.join(folder, runs.STUDENT), student.state_dict())
    files.write_npz(os.path.join(folder, runs.EXAM), dataclasses.replace(exam, mapped=mapped).to_arrays())
    record = {
        "schema": runs.SCHEMA,
        "status": "finished",
        "created": "2025-01-01T00:00:00+00:00",
        "id": "0123456789abcdef",
        "student": {"architecture": architecture, "size": SIZE, "dim": DIM, "preprocessing": preprocessing.to_json()},
        "teacher": {"name": "by hand"},
        "method": {"name": "tintem"},
        "images": {"root": str(pictures)},
        "metrics": {"cosine_mean": 0.5},
        "history": [],
        "chain": CHAIN,
        "files": {name: files.sha256_of_file(os.path.join(folder, name)) for name in (runs.STUDENT, runs.EXAM)},
    }
    files.write_json(os.path.join(folder, "run.json"), record)
    return str(folder)


def loud_norm(student):
    """What enters the first norm is far above fp16 where a patch is bright or dark throughout, and small in noise."""
    with torch.no_grad():
        student.backbone.stem[0].weight.mul_(0.3).add_(1.0).mul_(2000)


def outlier_channel(student):
    """One channel a thousand times too large, taken back by its reader: the same function, one range for all channels."""
    blocks = student.backbone.blocks
    with torch.no_grad():
        blocks[2][0].bn2.weight[0] *= 1000
        blocks[2][0].bn2.bias[0] *= 1000
        blocks[3][0].conv_pw.weight[:, 0] /= 1000


def target(**changes):
    """onnx-fp32 as a `Target`, with changes."""
    gate = Gate(min_cosine=0.9999, max_error_share=1e-3)
    values = {
        "description": "for tests",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "gate": {"embedding": gate, "local": gate},
        "name": "test",
        "batch": Batch(1, 1, 5),
    }
    return Target(**{**values, **changes})
