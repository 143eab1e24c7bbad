"""`tinkit distill`: pictures and a teacher in, a run folder with a faithful student out.

The road: scan and split the pictures; load the teacher; build the student; let the teacher see every view once (the
store, or live with --online); fit what the methods fit; train; look at the held-out pictures; write the run. What can
go wrong says where, and leaves the last good checkpoint; --resume goes on from it.
"""

import contextlib
import os
import time
from dataclasses import asdict
from datetime import datetime, timezone

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tinkit import files, workspace
from tinkit.errors import Interrupted, TinkitError
from tinkit.host import run
from tinkit.host.distill import checkpoint, launch
from tinkit.host.distill.asked import as_started, chosen_settings, refuse_other_nodes, refuse_other_runs
from tinkit.host.distill.finish import finish
from tinkit.host.distill.pictures import decoded_cache
from tinkit.host.distill.prepare import prepare, seeded
from tinkit.host.distill.ranks import Ranks, alone, is_loss, join, started_by_others
from tinkit.host.distill.records import refuse_others, train_with_records
from tinkit.host.distill.schedule import make_optimizer
from tinkit.host.distill.settings import Settings
from tinkit.host.distill.state import Distiller, State
from tinkit.host.distill.sync_batchnorm import restore, synchronise
from tinkit.host.distill.threads import threads_beside, worker_count
from tinkit.host.interruption import StopSignal
from tinkit.host.progress import Progress
from tinkit.results import DistillResult


def distill(images=None, out=None, resume=False, quiet=False, **settings) -> DistillResult:
    """Distil a teacher into a student from a folder of pictures without labels. Returns a frozen result.

    `settings` are the fields of `tinkit.host.distill.settings.Settings`. `out` names the run's folder (default
    runs/STUDENT-TIME). With `resume` the settings of the folder's record are used; others given must agree with them,
    but for those of `settings.MAY_CHANGE`. With several devices each has a process: started here, unless torchrun or
    SLURM did.
    Raises TinkitError for what a user can mend, Interrupted after Ctrl-C (saved, --resume continues).
    """
    place = started_by_others()
    if place is not None:
        return _distill_as_one_of(place, images, out, resume, quiet, settings)
    chosen, out = chosen_settings(images, out, resume, settings)
    refuse_other_nodes(chosen)
    with files.folder_lock(out, "the run's folder"), _interruptible(out):
        refuse_other_runs(out, resume)
        if chosen.processes > 1:
            job = {"settings": chosen.to_json(), "out": out, "resume": resume, "quiet": quiet}
            return launch.start(chosen.processes, job, out)
        return _run(chosen, out, resume, quiet, alone())


def run_rank(rank: int, count: int, meeting: str, settings: dict, out, resume, quiet) -> DistillResult:
    """One of the processes that `distill` starts on this machine; the first one's result counts."""
    chosen = Settings.from_json(settings)
    with _interruptible(out), join(count, 1, meeting, rank) as ranks:
        return _run(chosen, out, resume, quiet, ranks)


def _distill_as_one_of(place: tuple[int, int], images, out, resume, quiet, given) -> DistillResult:
    """In a process that torchrun or SLURM has started beside others; all return the same result."""
    given = as_started(place, given)
    with join(*place) as ranks, _told_of_a_loss(out):

        def choose():
            chosen, folder = chosen_settings(images, out, resume, given)
            return chosen.to_json(), folder

        found, folder = ranks.share(choose)
        lock = files.folder_lock(folder, "the run's folder") if ranks.first else contextlib.nullcontext()
        with lock, _interruptible(folder):
            if ranks.first:
                refuse_other_runs(folder, resume)
            return _run(Settings.from_json(found), folder, resume, quiet, ranks)


def _run(settings: Settings, out, resume, quiet, ranks: Ranks) -> DistillResult:
    """The whole run in this process, which is alone or one of several; the first one prints and writes."""
    with Progress(quiet or not ranks.first) as progress, StopSignal() as stop:
        try:
            with decoded_cache(settings, out, ranks, progress.say) as cache:
                return _distill(settings, out, resume, progress, stop, ranks, cache)
        except RuntimeError as error:
            if stop() and ranks.count > 1 and is_loss(error):  # the others have left already
                raise InterruptedError from error
            raise


def _distill(settings: Settings, out, resume, progress: Progress, stop, ranks: Ranks, cache) -> DistillResult:
    began = time.monotonic()
    record = _begin(settings, out, resume) if ranks.first else {}
    parts = prepare(settings, out, progress, stop, ranks, cache)
    with seeded(settings.seed), threads_beside(worker_count(settings), settings.devices):
        distiller = (
            Distiller(parts.student, parts.method, settings.seed).to(ranks.device).to(memory_format=torch.channels_last)
        )
        state = State(distiller, make_optimizer(distiller, settings), _average(distiller, settings))
        saved = _load(state, parts, out, progress) if resume else None
        ranks.equalise(distiller)
        _across(distiller, settings, progress, ranks)
        prepared = time.monotonic() - began
        timings = train_with_records(
            state, parts, settings, out, ranks.fabric, progress, lambda: ranks.any(stop()), saved
        )
        restore(distiller)
        record["timings"] = {"prepare_s": prepared, **timings}

        def result():
            return asdict(finish(state, parts, settings, out, record, progress, ranks.device))

        return DistillResult(**ranks.share(result))


def _begin(settings: Settings, out, resume) -> dict:
    """The run's record as it is while the run goes on, with the settings that it goes on with."""
    path = os.path.join(out, workspace.RUN_RECORD)
    record = files.read_json(path, "The run's record") if resume else {}
    record = record or {"schema": run.SCHEMA, "status": "running", "created": _now()}
    if record.get("settings") != settings.to_json():
        record["settings"] = settings.to_json()
        files.write_json(path, record)
    return record


def _load(state: State, parts, out, progress: Progress):
    """Take up the last checkpoint, if there is one; returns it."""
    saved = checkpoint.load(out, progress.say)
    if saved is None:
        return None
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
    return saved


def _across(distiller: Distiller, settings: Settings, progress: Progress, ranks: Ranks) -> None:
    """Batch statistics of all processes together, when there are several and it is wanted."""
    if ranks.count == 1:
        return
    if settings.sync_batchnorm:
        synchronise(distiller, ranks.device)
    elif any(isinstance(module, _BatchNorm) for module in distiller.modules()):
        progress.say(
            f"note: --no-sync-batchnorm: batch statistics of {settings.batch_size // ranks.count} pictures on each device; "
            "the result differs from that of one device"
        )


@contextlib.contextmanager
def _interruptible(out):
    """InterruptedError, by which all loops end, as the Interrupted that tells how to go on."""
    try:
        yield
    except InterruptedError:
        raise Interrupted(
            "Stopped; what is done is saved.", where=out, next_step=f"tinkit distill --out {out} --resume"
        ) from None


@contextlib.contextmanager
def _told_of_a_loss(out):
    """Another process that has gone, in words; who it was is for torchrun or SLURM to say."""
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        raise TinkitError(
            "Another process of this run has ended; this one cannot go on without it.",
            where=out,
            seen=str(error).splitlines()[0][:200],
            next_step="see what torchrun or SLURM says of it, then the same command with --resume",
        ) from error


def _average(distiller, settings):
    from timm.utils import ModelEmaV3

    return ModelEmaV3(distiller, decay=settings.ema, use_warmup=True) if settings.ema else None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
