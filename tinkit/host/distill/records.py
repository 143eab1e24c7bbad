"""Training with what is kept of it: log, bar, monitor after every epoch, and checkpoints to go on from.

With several processes the first alone keeps records: the state is the same in all of them.
"""

import hashlib
import json
import os
import time

from tinkit.errors import TinkitError
from tinkit.host import run
from tinkit.host.distill import checkpoint, heldout
from tinkit.host.distill.best import best_epoch, weights_of, write_best
from tinkit.host.distill.log import Log
from tinkit.host.distill.loop import train
from tinkit.host.distill.prepare import Parts
from tinkit.host.distill.state import State


def train_with_records(state: State, parts: Parts, settings, out, fabric, progress, stop, saved=None) -> dict:
    """Run the loop with log, bar, monitor and checkpoints around it. Returns timings: what writing checkpoints took.

    saved: the checkpoint that the run goes on from, as `checkpoint.load` gave it; None for a run from the start.
    Raises InterruptedError when `stop()` ended it early, with a checkpoint written.
    """
    if not fabric.is_global_zero:
        return _train_without(state, parts, settings, fabric, stop)
    records = Records(state, parts, settings, out, fabric, progress, saved or {})
    with records.log:
        try:
            complete = train(
                state,
                parts.plan,
                parts.views,
                parts.source,
                settings,
                fabric,
                records.after_step,
                records.after_epoch,
                stop,
                parts.labels_N,
                say=progress.say,
            )
        finally:
            records.close()
        records.save()
    if not complete:
        raise InterruptedError
    write_best(out, state.history, records.best)
    return records.timings()


class Records:
    """What the loop calls after a step and after an epoch."""

    def __init__(self, state: State, parts: Parts, settings, out, fabric, progress, saved):
        self.state, self.parts, self.settings = state, parts, settings
        self.device, self.progress = fabric.device, progress
        self.log = Log(os.path.join(out, run.LOG), state.step, state.epoch, progress.say)
        self.saver = checkpoint.Saver(
            out,
            settings.checkpoint_minutes,
            settings.keep_checkpoints,
            progress.say,
            **saved.get("saving", {}),
        )
        self.best = saved.get("best", {})  # weights of the best epoch so far
        self.trained_on = trained_on(parts)
        total = settings.epochs * parts.plan.batches
        self.bar = progress.bar("training", total * settings.batch_size, state.step * settings.batch_size)
        self.writer = _tensorboard(out)
        self.began, self.earlier = time.monotonic(), state.seconds

    def after_step(self, record) -> None:
        self.log.write(record)
        if self.writer:
            for name, value in record.items():
                self.writer.add_scalar(name, value, record["step"])
        told = " ".join(f"{n} {record[n]:.3f}" for n in ("loss", "token", "feature") if n in record)
        self.bar(self.settings.batch_size, told)
        if record["step"] == self.state.step and self.saver.due():
            self.save()

    def after_epoch(self) -> None:
        state, best = self.state, self.state.best
        state.seconds = self.earlier + time.monotonic() - self.began
        student_ND = heldout.embed(best.student, self.parts.held_out, self.device)
        mapped_ND = heldout.map_all(best.method.mapping, self.parts.held_out, self.device)
        found = heldout.metrics(student_ND, mapped_ND, self.parts.held_out.teacher.global_BD.numpy())
        entry = {"epoch": state.epoch, "step": state.step, **self.log.means(), **found}
        state.history = [*(state.history or []), entry]
        self.log.write({"event": "epoch", **entry})
        self.progress.say(
            f"epoch {state.epoch}/{self.settings.epochs}  loss {entry['loss']:.4f}  " + heldout.in_words(found)
        )
        nearest = best_epoch(state.history)
        if nearest and nearest["epoch"] == state.epoch:
            self.best = weights_of(best, self.settings.keep_head)
        if state.epoch < self.settings.epochs and self.saver.due_after_epoch():
            self.save()

    def save(self) -> None:
        """A checkpoint of now; the log's lines up to here are on disk before it."""
        self.state.seconds = self.earlier + time.monotonic() - self.began
        self.log.flush(sync=True)
        saving = {"seconds": self.saver.seconds, "count": self.saver.count}
        self.saver.save({**self.state.state_dict(), "trained_on": self.trained_on, "best": self.best, "saving": saving})

    def timings(self) -> dict:
        return {"checkpoints_s": self.saver.seconds, "checkpoints": self.saver.count}

    def close(self) -> None:
        if self.writer:
            self.writer.close()


def _train_without(state: State, parts: Parts, settings, fabric, stop) -> dict:
    """The loop of a process that keeps no records."""

    def nothing(*_):
        pass

    complete = train(
        state, parts.plan, parts.views, parts.source, settings, fabric, nothing, nothing, stop, parts.labels_N
    )
    if not complete:
        raise InterruptedError
    return {}


def trained_on(parts: Parts) -> str:
    """One hash of the training pictures, their labels and the teacher: a run goes on with these or not at all.

    It is `files.sha256_of_json` of the three, without a million addresses in memory.
    """
    labels = None if parts.labels is None else [list(parts.labels.classes), parts.labels.of(parts.train).tolist()]
    digest = hashlib.sha256(b'{"labels":' + _json(labels) + b',"pictures":[')
    for number, picture in enumerate(parts.train):
        digest.update((b"," if number else b"") + _json(picture.content))
    digest.update(b'],"teacher":' + _json(parts.teacher.identity) + b"}")
    return digest.hexdigest()


def _json(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def refuse_others(saved, parts: Parts, out) -> None:
    if saved.get("trained_on") != trained_on(parts):
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
