"""Exports the proven students and compares each file with PyTorch on real pictures, at batch 1 and 5.

    python benchmarks/students.py PICTURES [STUDENT ...]

The weights are random but lively: batch norms get random scales and statistics measured on the pictures, tiny layer
scales are raised to 0.1; otherwise many networks answer nearly the same to every picture and any comparison looks
perfect. So the numbers speak of export and arithmetic, not of a trained network's tolerance. Results go to a JSON file
that a second call goes on from; the table is Markdown.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import onnx
import torch
from torch import nn

from tinkit import files
from tinkit.bundle import MODEL
from tinkit.host.export.command import count_macs, write_fp32
from tinkit.host.export.exam import exam_of_folder
from tinkit.host.export.gate import Draft, host_gate, student_answers
from tinkit.host.export.graph_truth import graph_truth
from tinkit.host.export.graphs import node_macs
from tinkit.host.export.precision import write_precision
from tinkit.host.student import PROVEN, build_student
from tinkit.pixels import normalise
from tinkit.recipes import load_target
from tinkit.target import Batch

TARGETS = ("onnx-fp32", "onnx-fp16")
BATCH = 5


def lively(student, images_BCHW, seed=0):
    """Give a network with random weights batch norms and layer scales as if it were trained. Changes the student."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if parameter.ndim <= 3 and 0 < parameter.abs().max() < 1e-3:  # layer scale: 1e-5 or 1e-6 at the start
                parameter.fill_(0.1)
            if name.endswith("cls_token"):
                parameter.normal_(0, 0.02, generator=generator)
        for norm in norms:
            norm.weight.copy_(torch.empty_like(norm.weight).uniform_(0.5, 1.5, generator=generator))
            norm.bias.copy_(torch.empty_like(norm.bias).normal_(0, 0.2, generator=generator))
            norm.momentum = None  # a cumulative average over what follows
            norm.reset_running_stats()
        student.train()
        for images in images_BCHW.split(16):
            student(images)
    return student.eval()


def measure(architecture, target, folder, pictures=40):
    """One row: a student exported for a target and judged on pictures at batch 1 and 5."""
    torch.manual_seed(0)
    student = build_student(architecture)
    preprocessing = student.spec.preprocessing
    exam, _ = exam_of_folder(folder, preprocessing, pictures)
    lively(student, torch.from_numpy(normalise(exam.pixels, preprocessing)))
    exam = replace(exam, answers=student_answers(student, exam.pixels, preprocessing, target.local))
    deployed = student.deploy(target.local)
    target = replace(target, batch=Batch(1, 1, BATCH))
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, MODEL)
        start = time.perf_counter()
        notes = write_fp32(deployed, preprocessing, target, path)
        written = write_precision(onnx.load(path), target)
        seconds = time.perf_counter() - start
        model = written.model
        onnx.save(model, path)
        draft = Draft(temporary, target, preprocessing)
        hops = [hop for hop in host_gate(draft, written, exam) if hop.output != "pixels"]
        size = os.path.getsize(path)
        truth = graph_truth(model, target, node_macs(model, preprocessing.size))
    judged = [hop for hop in hops if hop.gate is not None]
    return {
        "architecture": architecture,
        "target": target.name,
        "size": preprocessing.size,
        "parameters": sum(p.numel() for p in deployed.parameters()),
        "macs": count_macs(deployed, preprocessing.size),
        "mb": size / 1e6,
        "nodes": len(model.graph.node),
        "seconds": seconds,
        "fp16_share": truth.macs.get("fp16", 0.0),
        "spread": float(np.std(exam.answers["embedding"], axis=0).mean() / np.abs(exam.answers["embedding"]).mean()),
        "pictures": len(exam.pixels),
        "hops": [hop.to_json() for hop in hops],
        "verdict": "passed" if all(hop.verdict == "passed" for hop in judged) else "failed",
        "reason": "; ".join(hop.reason for hop in judged if hop.verdict != "passed"),
        "notes": [*notes, *written.notes],
    }


def table(rows):
    """Markdown: one line a student and target; share and 1 - cos are the worse of both batches."""
    head = ["student", "target", "px", "M params", "M MACs", "MB", "nodes", "s", "max abs b1", "max abs b5", "share"]
    head += ["worst 1 - cos", "gate"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        first, second = [hop for hop in row["hops"] if hop["gate"] is not None]
        worst = 1 - min(first["cosine_min"], second["cosine_min"])
        lines.append(
            f"| {row['architecture']} | {row['target']} | {row['size']} | {row['parameters'] / 1e6:.2f} | "
            f"{row['macs'] / 1e6:.0f} | {row['mb']:.2f} | {row['nodes']} | {row['seconds']:.1f} | "
            f"{first['max_error']:.1e} | {second['max_error']:.1e} | "
            f"{max(first['max_error_share'], second['max_error_share']):.1e} | {worst:.1e} | {row['verdict']} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", help="a folder of real pictures")
    parser.add_argument("--out", default="students.json", help="results; a second call goes on from them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("students", nargs="*", default=PROVEN)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    done = files.read_json(given.out, "The results") if os.path.exists(given.out) else {}
    for architecture in given.students:
        for name in TARGETS:
            key = f"{architecture} {name}"
            if key not in done:
                done[key] = measure(architecture, load_target(name), given.pictures)
                files.write_json(given.out, done)
                print(key, done[key]["verdict"], done[key]["reason"], *done[key]["notes"], flush=True)
    print(table([done[f"{architecture} {name}"] for architecture in given.students for name in TARGETS]))
    names = ("torch", "timm", "onnx", "onnxruntime", "onnxscript")
    print("\n" + ", ".join(f"{name} {version(name)}" for name in names) + f", Python {platform.python_version()}, "
          f"{platform.machine()}, {given.threads} thread")  # fmt: skip


if __name__ == "__main__":
    main()
