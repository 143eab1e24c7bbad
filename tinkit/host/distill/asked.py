"""What was asked of `tinkit distill`: the settings and the folder of a run, and what cannot be done there."""

import os
from dataclasses import replace
from datetime import datetime

from tinkit import files, workspace
from tinkit.errors import TinkitError
from tinkit.host.distill import checkpoint
from tinkit.host.distill.settings import MAY_CHANGE, Settings
from tinkit.host.labels import FOLDERS


def chosen_settings(images, out, resume, given) -> tuple[Settings, str]:
    """The settings of a run, new or resumed, and its folder. TinkitError for what does not go together."""
    return _resumed(images, out, given) if resume else _new(images, out, given)


def as_started(place: tuple[int, int], given) -> dict:
    """`given` with the devices and nodes of `place`, as torchrun or SLURM started them. TinkitError if others were asked."""
    devices, nodes = place
    asked = (given.get("devices") or devices) * (given.get("num_nodes") or nodes)
    if asked != devices * nodes:
        raise TinkitError(
            "torchrun or SLURM has started another number of processes.",
            seen=f"{devices * nodes} processes, asked for {asked} devices",
            next_step="leave --devices and --num-nodes out: they follow",
        )
    return {**given, "devices": devices, "num_nodes": nodes}


def refuse_other_nodes(settings: Settings) -> None:
    if settings.num_nodes > 1:
        raise TinkitError(
            "Several nodes are started by torchrun or SLURM.",
            seen=f"--num-nodes {settings.num_nodes} in a process that neither has started",
            next_step="on every node: torchrun --nnodes N --nproc-per-node D --rdzv-endpoint HOST:PORT -m tinkit distill "
            "...; or in a SLURM job: srun tinkit distill ...; or --num-nodes 1 for this machine alone",
        )


def refuse_other_runs(out, resume) -> None:
    """Two runs are not mixed in one folder, and what is finished stays. To be asked by who holds the folder's lock."""
    path = os.path.join(out, workspace.RUN_RECORD)
    status = files.read_json(path, "The run's record").get("status") if os.path.exists(path) else None
    if resume:
        if status == "finished":
            raise TinkitError("The run is already finished: there is nothing to resume.", where=out)
        return
    if status == "finished" or checkpoint.exists(out):
        raise TinkitError(
            "There is a run in this folder already.",
            where=out,
            seen=f"status {status!r}",
            next_step=f"another --out, or tinkit distill --out {out} --resume"
            if status == "running"
            else "another --out",
        )


def _new(images, out, given) -> tuple[Settings, str]:
    if images is None:
        raise TinkitError("No pictures given.", next_step="tinkit distill FOLDER")
    given = {name: _absolute(name, value) for name, value in given.items()}
    settings = Settings(images=os.path.abspath(os.fspath(images)), **given)
    name = f"{settings.student}-{datetime.now():%Y%m%d-%H%M%S}"
    return settings, os.fspath(out or os.path.join(workspace.RUNS, name))


def _resumed(images, out, given) -> tuple[Settings, str]:
    """The recorded settings, but for those of `MAY_CHANGE`; others given must agree with them."""
    if out is None:
        raise TinkitError("--resume needs to know the run.", next_step="--out runs/NAME --resume")
    out = os.fspath(out)
    record = files.read_json(os.path.join(out, workspace.RUN_RECORD), "The run's record")
    recorded = Settings.from_json(record.get("settings", {}))
    if images is not None:
        given = dict(given, images=os.path.abspath(os.fspath(images)))
    given = {name: _absolute(name, value) for name, value in given.items() if value is not None}
    for name, value in given.items():
        before = getattr(recorded, name)
        if name not in MAY_CHANGE and value != before:
            raise TinkitError(
                "A resumed run keeps its settings.",
                where=out,
                seen=f"{name} {value!r}, recorded {before!r}",
                next_step="leave it out, or start a new run",
            )
    return replace(recorded, **given), out


def _absolute(name, value):
    """Paths are recorded whole: a run may be resumed from another folder."""
    is_path = name in ("store", "teacher_weights", "student_weights") or (name == "teacher" and value.endswith(".onnx"))
    is_path = is_path or (name == "labels" and value not in (None, FOLDERS))
    return os.path.abspath(os.fspath(value)) if is_path and value is not None else value
