"""`tinkit export`: a finished run becomes a bundle that carries its own exam.

The road: open the run; take the exam's pictures and let the trained student answer them; re-parameterise; write ONNX
and, where the target says so, fp16 into the graph; judge the result (tinkit.host.gate); write the folder at once. A
failed gate is written too, as evidence, with its verdict: nothing later picks such a bundle up by itself.
"""

import os
import platform
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version

import numpy as np
import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

import tinkit
from tinkit import workspace
from tinkit.bundle import MODEL, Bundle, Exam, write_bundle
from tinkit.device import engine
from tinkit.errors import TinkitError
from tinkit.fidelity import FAILED, verdict_of
from tinkit.host.exam import exam_of_folder
from tinkit.host.features import backbone_features
from tinkit.host.gate import host_gate, student_answers
from tinkit.host.precision import precision_shares, to_fp16
from tinkit.host.run import Run, load_run
from tinkit.host.to_onnx import shape_of, student_to_onnx
from tinkit.pixels import Preprocessing
from tinkit.recipes import load_target
from tinkit.results import ExportResult
from tinkit.target import Target

VERSIONS = ("torch", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "onnxscript", "onnxconverter-common", "numpy")
ON_THE_BOARD = "the engine is built on the board: tinkit profile there"


def export(run=None, target="onnx-fp32", out=None, exam=None, deploy_only=False, pictures=64, say=None) -> ExportResult:
    """Export a run for a target, judge it, and write the bundle. Returns its verdict and evidence.

    run: a path or an opened `Run`, the newest finished one when None. target: a name, a path or a `Target`. out: the
    bundle's folder (default RUN/bundle-TARGET). exam: a folder whose pictures replace the run's. deploy_only: the
    bundle carries no pictures; the gate is judged on them all the same. pictures: at most so many in the exam. `say`
    gets a line of text for every step. A failed gate is in the verdict, not raised.
    Raises TinkitError for what a user can mend, CannotJudge without onnxruntime.
    """
    say = say or (lambda text: None)
    opened = run if isinstance(run, Run) else load_run(run or workspace.newest_run())
    wanted = target if isinstance(target, Target) else load_target(target)
    out = os.fspath(out or os.path.join(opened.path, f"bundle-{wanted.name}"))
    say(f"run      {opened.path}")
    say(f"target   {wanted.name} ({wanted.path})")

    student, preprocessing = opened.student(), Preprocessing.from_json(opened.record["student"]["preprocessing"])
    wanted = replace(wanted, head=student.head is not None)
    questions, notes = _questions(opened, preprocessing, exam, pictures)
    answers = student_answers(student, questions.pixels, preprocessing, wanted.local)
    complete = replace(questions, answers=answers)
    deployed = student.deploy(wanted.local)
    with tempfile.TemporaryDirectory(prefix="tinkit-export-") as folder:
        model_path = os.path.join(folder, MODEL)
        notes += write_model(deployed, preprocessing.size, wanted, model_path)
        manifest = _manifest(opened, wanted, deployed, preprocessing, model_path)
        hops = host_gate(Bundle(folder, manifest), complete)
        verdict = verdict_of(hops)
        say(f"gate     {verdict}: {_decisive(hops, verdict)}")
        told = [_nameless(hop.to_json()) if deploy_only else hop.to_json() for hop in hops]
        manifest.update(
            host_gate={"verdict": verdict, "hops": told},
            chain=[*(_nameless(hop) if deploy_only else hop for hop in opened.record.get("chain", [])), *told],
            privacy=_privacy(complete, exam or opened.record["images"]["root"], deploy_only),
            notes=notes,
        )
        bundle = write_bundle(out, model_path, manifest, None if deploy_only else complete)
    say(f"bundle   {bundle.path}")
    if wanted.runtime == "tensorrt":
        notes = [*notes, _engine_note(wanted, bundle.model_path)]
    for note in notes:
        say(f"note     {note}")
    return ExportResult(bundle=bundle.path, target=wanted.name, verdict=verdict, hops=hops, notes=notes)


def write_model(deployed, size: int, target: Target, path) -> list[str]:
    """The ONNX file of a `Deployed` in the target's precision; returns notes. Raises TinkitError."""
    notes = student_to_onnx(deployed, size, target, path)
    if target.precision == "fp16":
        model, more = to_fp16(onnx.load(path), target.io)
        onnx.save(model, path)
        notes += more
    return notes


def count_macs(deployed, size: int) -> int:
    """Multiply-accumulates of one picture: convolutions, matrix products and attention, half of torch's flop counter.

    Counted is what the graph holds: without `local`, the neck sees the global vector only.
    """
    student = deployed.student
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        features = backbone_features(student.backbone, torch.zeros(1, 3, size, size))
        embedding_BD = features.global_BD if student.neck is None else student.neck(features.global_BD)
        if student.head is not None:
            student.head(embedding_BD)
        if deployed.local and student.neck is not None:
            student.neck(features.local_BLD)
    return counter.get_total_flops() // 2


def _questions(run: Run, preprocessing, folder, pictures) -> tuple[Exam, list[str]]:
    """The exam without answers, and notes: the run's own pictures, or those of a folder."""
    if pictures < 1:
        raise TinkitError("An exam needs at least one picture.", seen=f"pictures = {pictures}")
    if folder is None:
        return _first(run.exam(), pictures), []
    exam, notes = exam_of_folder(folder, preprocessing, pictures)
    return exam, [*notes, "the exam's pictures are not the run's, so it has no answers of the mapped teacher"]


def _first(exam: Exam, count) -> Exam:
    """An exam of the first `count` pictures."""
    return Exam(
        exam.pixels[:count],
        exam.names[:count],
        {output: answers[:count] for output, answers in exam.answers.items()},
        None if exam.mapped is None else exam.mapped[:count],
        {index: data for index, data in exam.encoded.items() if index < count},
    )


def _manifest(run: Run, target: Target, deployed, preprocessing, model_path) -> dict:
    """Everything about the bundle but its verdict and its files."""
    model, record = onnx.load(model_path), run.record
    return {
        "name": f"{run.name}-{target.name}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tinkit": tinkit.__version__,
        "target": target.to_json(),
        "tensors": tensors_of(model),
        "preprocessing": preprocessing.to_json(),
        "classes": record.get("classes") if target.head else None,
        "opset": next(opset.version for opset in model.opset_import if opset.domain == ""),
        "precision": precision_shares(model),
        "student": {
            "architecture": record["student"]["architecture"],
            "dim": deployed.student.dim,
            "size": preprocessing.size,
            "parameters": sum(p.numel() for p in deployed.parameters()),
            "macs": count_macs(deployed, preprocessing.size),
            "counted": "as deployed, after re-parameterisation",
        },
        "run": {"name": run.name, **{key: record.get(key) for key in ("id", "method", "metrics", "history")}},
        "teacher": record.get("teacher"),
        "versions": _versions(),
    }


def tensors_of(model) -> dict[str, list[dict]]:
    """Names, dtypes and shapes of a model's inputs and outputs, as the manifest tells them."""
    return {"inputs": _tensors(model.graph.input), "outputs": _tensors(model.graph.output)}


def _tensors(values) -> list[dict]:
    return [
        {
            "name": value.name,
            "dtype": str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))),
            "shape": shape_of(value),
        }
        for value in values
    ]


def _versions() -> dict[str, str]:
    found = {"tinkit": tinkit.__version__, "python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # PackageNotFoundError: only one of the two onnxruntimes is there
            continue
    return found


def _nameless(hop: dict) -> dict:
    """A hop that tells its worst pictures by number only: file names are the user's too."""
    reason, pictures = hop.get("reason", ""), hop.get("worst", [])
    for worst in pictures:
        reason = reason.replace(repr(worst["name"]), f"number {worst['index']}")
    return {**hop, "reason": reason, "worst": [{**worst, "name": ""} for worst in pictures]}


def _privacy(exam: Exam, folder, deploy_only) -> str:
    if deploy_only:
        return "no pictures are inside (exported with --deploy-only)"
    whose = os.path.basename(os.path.abspath(os.fspath(folder)))
    return (
        f"exam.npz holds {len(exam.pixels)} pictures from {whose!r} with their file names, {len(exam.encoded)} of them "
        "as encoded files without metadata; export with --deploy-only leaves them out"
    )


def _decisive(hops, verdict) -> str:
    """The reason of the first hop with the verdict of all."""
    hop = next(hop for hop in hops if hop.verdict == verdict and (hop.output != "pixels" or verdict == FAILED))
    return f"{hop.hop}, {hop.output}: {hop.reason}"


def _engine_note(target: Target, model_path) -> str:
    """Where a GPU and TensorRT are at hand, the engine is built to see that this model is taken; it is not kept."""
    trt = engine.find_tensorrt()
    if trt is None or not engine.gpu_present():
        return ON_THE_BOARD
    try:
        plan = engine.engine_from_onnx(trt, model_path, target)
    except TinkitError as error:
        return (
            f"TensorRT {trt.__version__} on this machine refuses the model: {error.what} {error.seen}; {ON_THE_BOARD}"
        )
    return f"TensorRT {trt.__version__} on this machine builds it ({len(plan) / 1e6:.1f} MB, not kept); {ON_THE_BOARD}"
