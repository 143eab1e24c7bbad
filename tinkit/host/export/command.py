"""`tinkit export`: a finished run becomes a bundle that carries its own exam.

The road: open the run; take the exam's pictures and let the trained student answer them; re-parameterise; write ONNX;
settle the precision (tinkit.host.export.settle: calibrate, write, judge, heal); read back which precision is really there;
write the folder at once. A failed gate is written too, as evidence: nothing later picks such a bundle up by itself.
"""

import os
import platform
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec

import onnx
import torch
from torch.utils.flop_counter import FlopCounterMode

import tinkit
from tinkit import workspace
from tinkit.bundle import MODEL, Exam, refuse_occupied, write_bundle
from tinkit.device import engine
from tinkit.device.openvino_runtime import find_openvino
from tinkit.errors import CannotJudge, TinkitError
from tinkit.fidelity import FAILED, verdict_of
from tinkit.host.export.calibration_pictures import calibration_feeds
from tinkit.host.export.check_build import check_build as build_without_gpu
from tinkit.host.export.check_build import find_builder
from tinkit.host.export.exam import SKIPPED, exam_of_folder
from tinkit.host.export.frame import frame_answers, framed, without_frame, without_resize
from tinkit.host.export.gate import Draft, frame_gate, host_gate, student_answers, tensors_of
from tinkit.host.export.graph_truth import graph_truth
from tinkit.host.export.legality import problems
from tinkit.host.export.node_bytes import node_bytes
from tinkit.host.export.settle import Settled, settle
from tinkit.host.export.to_onnx import student_to_onnx
from tinkit.host.features import backbone_features
from tinkit.host.head.files import Head, put_head
from tinkit.host.run import Run, load_run
from tinkit.pixels import Preprocessing
from tinkit.recipes import load_target
from tinkit.results import ExportResult
from tinkit.target import Target

VERSIONS = ("torch", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "onnxscript", "ml_dtypes", "numpy")
ON_THE_BOARD = "the engine is built on the board: tinkit profile there"


def export(
    run=None,
    target="onnx-fp32",
    out=None,
    exam=None,
    deploy_only=False,
    pictures=64,
    heal=True,
    calibration=None,
    check_build=False,
    head=None,
    say=None,
) -> ExportResult:
    """Export a run for a target, judge it, and write the bundle. Returns its verdict and evidence.

    run: a path or an opened `Run`, the newest finished one when None. target: a name, a path or a `Target`. out: the
    bundle's folder (default RUN/bundle-TARGET). exam: a folder whose pictures replace the run's. deploy_only: the
    bundle carries no pictures; the gate is judged on them all the same. pictures: at most so many in the exam. heal:
    when a gate fails, the fewest nodes go back to higher precision until it passes. calibration: a folder of pictures
    for int8 (default: the run's own). check_build: a real builder takes the graph, without a GPU (extra trt-check).
    head: a name from RUN/heads, or the path of a head's JSON: its logits ship, in place of those of a classifier that the
    run kept.
    `say` gets a line of text for every step. A failed gate is in the verdict, not raised.
    Raises TinkitError for what a user can mend, CannotJudge without the runtime that judges.
    """
    say = say or (lambda text: None)
    opened = run if isinstance(run, Run) else load_run(run or workspace.newest_run())
    wanted = target if isinstance(target, Target) else load_target(target)
    out = os.fspath(out or os.path.join(opened.path, f"bundle-{wanted.name}"))
    refuse_occupied(out)
    _check_runtimes(wanted, check_build)
    say(f"run      {opened.path}")
    say(f"target   {wanted.name} ({wanted.path})")

    student, preprocessing = opened.student(), Preprocessing.from_json(opened.record["student"]["preprocessing"])
    chosen = None if head is None else put_head(student, opened, head)
    if chosen is not None:
        say(f"head     {chosen.record['name']}: {chosen.record['reason']}")
    wanted = replace(wanted, head=student.head is not None)
    questions, notes = _questions(opened, preprocessing, exam, pictures)
    answers = student_answers(student, questions.pixels, preprocessing, wanted.local)
    complete = replace(
        questions, answers=answers, frame_answers=frame_answers(student, questions, preprocessing, wanted)
    )
    deployed = student.deploy(wanted.local)
    with tempfile.TemporaryDirectory(prefix="tinkit-export-") as folder:
        model_path = os.path.join(folder, MODEL)
        draft = Draft(folder, without_frame(wanted), preprocessing)
        notes += write_fp32(deployed, preprocessing, draft.target, model_path)
        fp32 = onnx.load(model_path)
        feeds, more = calibration_feeds(draft, fp32, opened, complete, calibration)
        settled = settle(fp32, draft, complete, feeds, heal, say)
        notes += [*more, *settled.written.notes]
        network, settled = settled.written, replace(settled, written=framed(settled.written, wanted, preprocessing))
        check_legal(settled.written.model, wanted)
        onnx.save(settled.written.model, model_path)
        hops = host_gate(draft, network, complete, settled.hops)
        if wanted.frame:
            resized = frame_gate(Draft(folder, wanted, preprocessing), settled.written, complete)
            notes += [f"{hop.hop}: not judged, {hop.reason}" for hop in resized[:1] if not hop.pictures]
            hops = [*without_resize(hops), *resized]
        truth = graph_truth(settled.written.model, wanted, settled.macs)
        verdict = FAILED if truth.verdict == FAILED else verdict_of(hops)
        say(f"truth    {truth.verdict}: {truth.reason}")
        say(f"gate     {verdict_of(hops)}: {_decisive(hops, verdict_of(hops))}")
        told = [_nameless(hop.to_json()) if deploy_only else hop.to_json() for hop in hops]
        manifest = _manifest(opened, wanted, deployed, preprocessing, settled, chosen)
        manifest.update(
            precision=truth.to_json(),
            host_gate={"verdict": verdict, "hops": told},
            chain=[*(_nameless(hop) if deploy_only else hop for hop in opened.record.get("chain", [])), *told],
            privacy=_privacy(complete, exam or opened.record["images"]["root"], deploy_only),
            notes=[note for note in notes if not (deploy_only and note.startswith(SKIPPED))],
        )
        bundle = write_bundle(out, model_path, manifest, None if deploy_only else complete)
    say(f"bundle   {bundle.path}")
    if wanted.runtime == "tensorrt":
        notes = [*notes, *_builder_notes(wanted, bundle.model_path, settled, check_build)]
    for note in notes:
        say(f"note     {note}")
    return ExportResult(
        bundle=bundle.path,
        target=wanted.name,
        verdict=verdict,
        hops=hops,
        notes=notes,
        truth=truth,
        healing={step: found.to_json() for step, found in settled.healings.items()},
    )


def _check_runtimes(target: Target, check_build: bool) -> None:
    """What judges is asked for before the work begins. Raises CannotJudge where it is missing."""
    if target.runtime == "openvino":
        find_openvino()
    if find_spec("onnxruntime") is None:
        raise CannotJudge(
            "onnxruntime is missing, so nothing can be judged here.", next_step='pip install "tinkit[cpu]"'
        )
    if check_build and target.runtime != "tensorrt":
        raise TinkitError(
            "Only a TensorRT target can be tried on TensorRT's builder.",
            seen=target.name,
            next_step="leave --check-build out",
        )
    if check_build:
        find_builder()


def write_fp32(deployed, preprocessing: Preprocessing, target: Target, path) -> list[str]:
    """The ONNX file of a `Deployed` in fp32, in the target's opset and input form; returns notes."""
    return student_to_onnx(deployed, preprocessing.size, target, path, preprocessing)


def check_legal(model, target: Target) -> None:
    """Raises TinkitError when the target's generation of runtimes cannot read the graph."""
    found = problems(model, target)
    if found:
        raise TinkitError(
            f"The graph is not one that the runtimes of {target.name} read.",
            seen="; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else ""),
            next_step="choose another --target, or another --student",
        )


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


def _manifest(run: Run, target: Target, deployed, preprocessing, settled: Settled, head: Head | None) -> dict:
    """Everything about the bundle but its verdict, its precision truth and its files."""
    model, record = settled.written.model, run.record
    return {
        "name": f"{run.name}-{target.name}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tinkit": tinkit.__version__,
        "target": target.to_json(),
        "tensors": tensors_of(model),
        "preprocessing": preprocessing.to_json(),
        "classes": head.classes if head else record.get("classes") if target.head else None,
        "head": head.to_manifest() if head else None,
        "opset": next(opset.version for opset in model.opset_import if opset.domain == ""),
        "fp32_nodes": settled.fp32_nodes,
        "unquantised": sorted(settled.plan.unquantised),
        "calibration": settled.calibration,
        "healing": {step: found.to_json() for step, found in settled.healings.items()},
        "node_macs": settled.macs,
        "node_bytes": node_bytes(model, preprocessing.size),
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


def _builder_notes(target: Target, model_path, settled: Settled, check_build: bool) -> list[str]:
    """What real builders say: the one that needs no GPU where asked for, this machine's own where it has one."""
    notes = []
    if check_build:
        built = build_without_gpu(model_path, target)
        told = (
            f"TensorRT-RTX {built.version} builds it without a GPU ({built.megabytes:.1f} MB in {built.seconds:.1f} s)"
        )
        notes.append(f"{told}; {built.note}" if built.note else told)
    trt = engine.find_tensorrt()
    if trt is None or not engine.gpu_present():
        return [*notes, ON_THE_BOARD]
    try:
        options = engine.BuildOptions(fp32_nodes=tuple(settled.fp32_nodes))
        plan = engine.engine_from_onnx(trt, model_path, target, options).plan
    except TinkitError as error:
        told = f"TensorRT {trt.__version__} on this machine refuses the model: {error.what} {error.seen}"
        return [*notes, f"{told}; {ON_THE_BOARD}"]
    told = f"TensorRT {trt.__version__} on this machine builds it ({len(plan) / 1e6:.1f} MB, not kept)"
    return [*notes, f"{told}; {ON_THE_BOARD}"]
