"""`tinkit distill`: pictures and a teacher in, a run folder with a faithful student out.

The road: scan and split the pictures; load the teacher; build the student; let the teacher see every view once (the
store, or live with --online); fit what the methods fit; train; look at the held-out pictures; write the run. What can
go wrong says where, and leaves the last good checkpoint; --resume goes on from it.
"""

import os
import time
from datetime import datetime, timezone

import torch
from lightning_fabric import Fabric

from tinkit import files, workspace
from tinkit.errors import Interrupted, TinkitError
from tinkit.host import run
from tinkit.host.distill import checkpoint
from tinkit.host.distill.finish import finish
from tinkit.host.distill.prepare import prepare, seeded
from tinkit.host.distill.records import refuse_others, train_with_records
from tinkit.host.distill.schedule import make_optimizer
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.state import Distiller, State
from tinkit.host.distill.threads import threads_beside, worker_count
from tinkit.host.interruption import StopSignal
from tinkit.host.labels import FOLDERS
from tinkit.host.progress import Progress
from tinkit.results import DistillResult


def distill(images=None, out=None, resume=False, quiet=False, **settings) -> DistillResult:
    """Distil a teacher into a student from a folder of pictures without labels. Returns a frozen result.

    `settings` are the fields of `tinkit.host.distill.settings.Settings`. `out` names the run's folder (default
    runs/STUDENT-TIME). With `resume` the settings of the folder's record are used; others given must agree with them.
    Raises TinkitError for what a user can mend, Interrupted after Ctrl-C (saved, --resume continues).
    """
    chosen, out = _settings(images, out, resume, settings)
    with files.folder_lock(out, "the run's folder"), Progress(quiet) as progress, StopSignal() as stop:
        if resume and _status(out) == "finished":
            raise TinkitError("The run is already finished: there is nothing to resume.", where=out)
        try:
            return _distill(chosen, out, resume, progress, stop)
        except InterruptedError:
            raise Interrupted(
                "Stopped; what is done is saved.", where=out, next_step=f"tinkit distill --out {out} --resume"
            ) from None


def _distill(settings: Settings, out, resume, progress: Progress, stop) -> DistillResult:
    began = time.monotonic()
    record = files.read_json(os.path.join(out, workspace.RUN_RECORD), "The run's record") if resume else {}
    if not record:
        record = {"schema": run.SCHEMA, "status": "running", "created": _now(), "settings": settings.to_json()}
        files.write_json(os.path.join(out, workspace.RUN_RECORD), record)
    parts = prepare(settings, out, progress, stop)
    with seeded(settings.seed), threads_beside(worker_count(settings)):
        fabric = Fabric(devices=1, precision="bf16-mixed" if torch.cuda.is_available() else "32-true")
        distiller = (
            Distiller(parts.student, parts.method, settings.seed)
            .to(fabric.device)
            .to(memory_format=torch.channels_last)
        )
        state = State(distiller, make_optimizer(distiller, settings), _average(distiller, settings))
        saved = checkpoint.load(out) if resume else None
        if saved is not None:
            refuse_others(saved, parts, out)
            try:
                state.load_state_dict(saved)
            except (RuntimeError, KeyError, ValueError) as error:
                raise TinkitError(
                    "The checkpoint does not fit this version of tinkit.",
                    where=out,
                    seen=str(error).splitlines()[0][:200],
                    next_step="finish the run with the version that began it, or start a new one",
                ) from None
            progress.say(f"resumed at epoch {state.epoch + 1}, step {state.step}")
        prepared = time.monotonic() - began
        train_with_records(state, parts, settings, out, fabric, progress, stop)
        record["timings"] = {"prepare_s": prepared}
        return finish(state, parts, settings, out, record, progress, fabric.device)


def _settings(images, out, resume, given) -> tuple[Settings, str]:
    """The settings and the run's folder; refuses to mix two runs in one folder."""
    if not resume:
        if images is None:
            raise TinkitError("No pictures given.", next_step="tinkit distill FOLDER")
        given = {name: _absolute(name, value) for name, value in given.items()}
        settings = Settings(images=os.path.abspath(os.fspath(images)), **given)
        out = os.fspath(out or os.path.join(workspace.RUNS, f"{settings.student}-{datetime.now():%Y%m%d-%H%M%S}"))
        status = _status(out)
        if status == "finished" or os.path.exists(os.path.join(out, checkpoint.CHECKPOINT)):
            raise TinkitError(
                "There is a run in this folder already.",
                where=out,
                seen=f"status {status!r}",
                next_step=f"another --out, or tinkit distill --out {out} --resume"
                if status == "running"
                else "another --out",
            )
        return settings, out
    if out is None:
        raise TinkitError("--resume needs to know the run.", next_step="--out runs/NAME --resume")
    out = os.fspath(out)
    record = files.read_json(os.path.join(out, workspace.RUN_RECORD), "The run's record")
    settings = Settings.from_json(record.get("settings", {}))
    if images is not None:
        given = dict(given, images=os.path.abspath(os.fspath(images)))
    for name, value in given.items():
        value = _absolute(name, value)
        recorded = getattr(settings, name)
        if value is not None and value != recorded:
            raise TinkitError(
                "A resumed run keeps its settings.",
                where=out,
                seen=f"{name} {value!r}, recorded {recorded!r}",
                next_step="leave it out, or start a new run",
            )
    return settings, out


def _absolute(name, value):
    """Paths are recorded whole: a run may be resumed from another folder."""
    is_path = name in ("store", "teacher_weights", "student_weights") or (name == "teacher" and value.endswith(".onnx"))
    is_path = is_path or (name == "labels" and value not in (None, FOLDERS))
    return os.path.abspath(os.fspath(value)) if is_path and value is not None else value


def _status(out):
    path = os.path.join(out, workspace.RUN_RECORD)
    return files.read_json(path, "The run's record").get("status") if os.path.exists(path) else None


def _average(distiller, settings):
    from timm.utils import ModelEmaV3

    return ModelEmaV3(distiller, decay=settings.ema, use_warmup=True) if settings.ema else None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
