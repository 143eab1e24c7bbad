"""Training with what is kept of it: log, bar, monitor after every epoch, and checkpoints to go on from."""

import os
import time

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host import run
from tinkit.host.distill import checkpoint, heldout
from tinkit.host.distill.log import Log
from tinkit.host.distill.loop import train
from tinkit.host.distill.prepare import Parts
from tinkit.host.distill.state import State


def train_with_records(state: State, parts: Parts, settings, out, fabric, progress, stop) -> None:
    """Run the loop with log, bar, monitor and checkpoints around it."""
    total = settings.epochs * (len(parts.train) // settings.batch_size)
    bar = progress.bar("training", total * settings.batch_size, state.step * settings.batch_size)
    writer = _tensorboard(out)
    began, earlier = time.monotonic(), state.seconds
    with Log(os.path.join(out, run.LOG), state.step, state.epoch) as log:

        def after_step(record):
            log.write(record)
            if writer:
                for name, value in record.items():
                    writer.add_scalar(name, value, record["step"])
            bar(
                settings.batch_size,
                " ".join(f"{n} {record[n]:.3f}" for n in ("loss", "token", "feature") if n in record),
            )

        def after_epoch():
            state.seconds = earlier + time.monotonic() - began
            best = state.best
            student_ND = heldout.embed(best.student, parts.held_out, fabric.device)
            mapped_ND = heldout.map_all(best.method.mapping, parts.held_out, fabric.device)
            found = heldout.metrics(student_ND, mapped_ND, parts.held_out.teacher.global_BD.numpy())
            state.history.append({"epoch": state.epoch, "step": state.step, **log.means(), **found})
            log.write({"event": "epoch", **state.history[-1]})
            progress.say(
                f"epoch {state.epoch}/{settings.epochs}  loss {state.history[-1]['loss']:.4f}  "
                + heldout.in_words(found)
            )
            checkpoint.save(out, {**state.state_dict(), "trained_on": _trained_on(parts)})

        try:
            complete = train(
                state, parts.views, parts.source, settings, fabric, after_step, after_epoch, stop, parts.labels_N
            )
        finally:
            if writer:
                writer.close()
        if not complete:
            state.seconds = earlier + time.monotonic() - began
            checkpoint.save(out, {**state.state_dict(), "trained_on": _trained_on(parts)})
            raise InterruptedError


def _trained_on(parts: Parts) -> str:
    """One hash of the training pictures, their labels and the teacher: a run goes on with these or not at all."""
    contents = [picture.content for picture in parts.train]
    labels = None if parts.labels is None else [list(parts.labels.classes), parts.labels.of(parts.train).tolist()]
    return files.sha256_of_json({"pictures": contents, "labels": labels, "teacher": parts.teacher.identity})


def refuse_others(saved, parts: Parts, out) -> None:
    if saved.get("trained_on") != _trained_on(parts):
        raise TinkitError(
            "The pictures, their labels or the teacher are not those that the run was started with.",
            where=out,
            seen=f"{len(parts.train)} training pictures, teacher {parts.teacher.identity['name']}"
            + ("" if parts.labels is None else f", {parts.labels.in_words()}"),
            next_step="restore them, or start a new run",
        )


def _tensorboard(out):
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(os.path.join(out, "tensorboard"))
