"""The end of a run: a mapping for methods that have none, what ships, the exam, and the record of it all."""

import json
import os
import platform
from dataclasses import replace
from datetime import datetime, timezone

import numpy as np
import torch

import tinkit
from tinkit import files, workspace
from tinkit.host import run
from tinkit.host.distill import checkpoint, heldout
from tinkit.host.distill.best import describe_best
from tinkit.host.distill.objective import Objective
from tinkit.host.distill.prepare import Parts
from tinkit.host.distill.schedule import peak_learning_rate
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.skipped import record_skipped
from tinkit.host.distill.state import State
from tinkit.host.distill.writing import write_patiently
from tinkit.host.export.exam import make_exam
from tinkit.host.mapping import Mapping, fit_afterwards
from tinkit.host.progress import Progress
from tinkit.host.report.provenance import listing_sha256
from tinkit.host.student import Student
from tinkit.host.views import normalise_on_device
from tinkit.host.weights import write_weights
from tinkit.results import DistillResult

EXAM_PICTURES = 64


def finish(state: State, parts: Parts, settings: Settings, out, record, progress: Progress, device) -> DistillResult:
    """Write everything that later commands read, the record last; the checkpoints go."""
    student, method = state.best.student.eval(), state.best.method.eval()
    mapping, fit = method.mapping, None
    if mapping is None:
        mapping, fit = _map_afterwards(student, parts, device, progress)
    trained = sum(p.numel() for p in state.best.parameters())
    _keep_head(student, method, settings, progress)
    student_ND = heldout.embed(student, parts.held_out, device)
    mapped_ND = heldout.map_all(mapping, parts.held_out, device)
    teacher_ND = parts.held_out.teacher.global_BD.numpy()
    metrics = heldout.metrics(student_ND, mapped_ND, teacher_ND, fitted=fit is not None)
    hashes = _write(out, student, mapping, mapped_ND, parts, progress.say)
    seconds = record["timings"]["prepare_s"] + state.seconds
    record.update(
        status="finished",
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        id=hashes[run.STUDENT][:16],
        student={
            "architecture": settings.student,
            "size": student.spec.size,
            "dim": student.spec.dim,
            "preprocessing": student.spec.preprocessing.to_json(),
            "classes": student.spec.classes,
        },
        classes=parts.classes,
        teacher=parts.teacher.identity,
        method={
            "name": settings.method,
            "terms": method.describe(),
            "label_weight": method.label_weight,
            "mapping": None if mapping is None else mapping.spec.to_json(),
            "fitted_afterwards": fit,
            "learning_rate": peak_learning_rate(settings, student),
            "extra_parameters": trained - sum(p.numel() for p in student.parameters()),
        },
        images=_images(parts, out),
        labels=_labels(parts, settings),
        metrics=metrics,
        history=state.history,
        best=describe_best(out, state.history),
        chain=[
            hop.to_json()
            for hop in heldout.chain(student_ND, mapped_ND, teacher_ND, parts.held_out.names, fit is not None)
        ],
        timings={
            **record["timings"],
            "train_s": state.seconds,
            "images_per_s": state.step * settings.batch_size / max(state.seconds, 1e-9),
        },
        machine={
            "node": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(device),
        },
        versions=_versions(),
        files=hashes,
    )
    path = os.path.join(out, workspace.RUN_RECORD)
    write_patiently(lambda: files.write_json(path, record), out, "writing the run's record", progress.say)
    checkpoint.remove(out)
    progress.say(f"student in {out}")
    return DistillResult(
        run=str(out),
        student=settings.student,
        teacher=settings.teacher,
        method=settings.method,
        epochs=state.epoch,
        pictures=len(parts.pictures.usable),
        skipped=len(parts.pictures.skipped),
        metrics=metrics,
        seconds=seconds,
    )


def _write(
    out, student: Student, mapping: Mapping | None, mapped_ND: np.ndarray | None, parts: Parts, say
) -> dict[str, str]:
    """Student, mapping and exam as files; returns their hashes by name."""
    held = parts.held_pictures[:EXAM_PICTURES]
    exam = make_exam([(p, p.name) for p in held], student.spec.preprocessing)

    def write(how, name, *what):
        path = os.path.join(out, name)
        write_patiently(lambda: how(path, *what), out, f"writing {path}", say)

    write(write_weights, run.STUDENT, student.state_dict())
    written = [run.STUDENT, run.EXAM]
    if mapping is not None and mapped_ND is not None:
        told = {"mapping": json.dumps(mapping.spec.to_json())}
        write(write_weights, run.MAPPING, mapping.state_dict(), told)
        exam = replace(exam, mapped=mapped_ND[: len(held)])
        written.append(run.MAPPING)
    write(files.write_npz, run.EXAM, exam.to_arrays())
    return {name: files.sha256_of_file(os.path.join(out, name)) for name in written}


def _map_afterwards(student, parts: Parts, device, progress: Progress) -> tuple[Mapping | None, dict | None]:
    """For a method that maps student to teacher, or nothing: a mapping in closed form, labelled so."""
    progress.say("fitting a mapping from teacher to student: the method has none")
    embeddings = []
    with torch.no_grad():
        for pixels in parts.sample.pixels(student.spec.preprocessing):
            images = normalise_on_device(pixels.to(device), student.spec.preprocessing)
            embeddings.append(student(images).global_BD.float().cpu())
    found = fit_afterwards(parts.sample.globals(), torch.cat(embeddings).numpy())
    if found is None:
        progress.say("no mapping: a linear map from the teacher explains nothing of the student on pictures kept aside")
        return None, None
    mapping, share = found
    progress.say(f"mapping fitted afterwards: it explains {share:.2f} of the student's variance on pictures kept aside")
    return mapping.to(device), {"explained": share, "pictures": len(parts.sample.pictures)}


def _keep_head(student: Student, method: Objective, settings: Settings, progress: Progress) -> None:
    """The classifier goes with the student when asked for: one that a method brings, else the trained one."""
    if not settings.keep_head:
        student.set_head(None)
        return
    if (own := method.head()) is not None:
        student.set_head(own)
    progress.say("head: " + ("the method's own, folded" if own is not None else "the one trained beside the student"))


def _images(parts: Parts, out) -> dict:
    pictures = parts.pictures
    return {
        "root": pictures.root,
        "usable": len(pictures.usable),
        "listing_sha256": listing_sha256(pictures.usable),
        "train": len(parts.plan.numbers_N),
        "heldout": len(parts.held_pictures),
        "others": pictures.others,
        **record_skipped(out, pictures.skipped),
    }


def _labels(parts: Parts, settings: Settings) -> dict | None:
    if parts.labels is None:
        return None
    is_file = os.path.isfile(str(settings.labels))
    return {
        "source": settings.labels,
        "sha256": files.sha256_of_file(settings.labels) if is_file else None,
        "labelled": len(parts.labels.by_name),
        "train": int((parts.labels.of(parts.train) >= 0).sum()),
        "unknown_lines": parts.labels.unknown,
        "dropped_classes": list(parts.labels.dropped),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow")
    return {
        "tinkit": tinkit.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
