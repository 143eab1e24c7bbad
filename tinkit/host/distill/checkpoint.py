"""The checkpoints of a run, written at once and read without pickle: weights, optimiser, averages, randomness, place.

`checkpoints/STEP.pt` is torch's file followed by the sha256 of it. The last few are kept, and an older one goes only when
the new one is on disk; when the newest turns out damaged, the one before it is taken. The promise to the user: nothing
is lost beyond `checkpoint_minutes`. The end of an epoch is kept as well where writing is cheap beside the epoch.
"""

import contextlib
import hashlib
import io
import os
import pickle  # for the name of its error only
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.distill.writing import write_patiently

FOLDER = "checkpoints"
CHECKPOINT = "checkpoint.pt"  # the one file of older runs: still read
DIGEST = 32  # bytes
MINUTES, KEEP = 10.0, 2  # of the settings checkpoint_minutes and keep_checkpoints
CHEAP = 20  # an epoch's end is kept when this many times the last writing went by since

UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


def save(run, state, keep=KEEP, say=None) -> str:
    """Write `state` as the checkpoint of its step, then drop all but the last `keep`. Returns its path.

    On a full disk the last good one stays and TinkitError is raised. One copy of the state is in memory meanwhile.
    """
    data = io.BytesIO()
    torch.save(state, data)
    digest = hashlib.sha256(data.getbuffer()).digest()
    path = os.path.join(run, FOLDER, f"{state['place']['step']:08d}.pt")

    def write():
        with files.atomic(path) as partial, open(partial, "wb") as handle:
            handle.write(data.getbuffer())
            handle.write(digest)
        files.sync_folder(run)  # the folder of checkpoints may be new

    write_patiently(write, run, "writing the checkpoint", say)
    _drop(run, path, keep)
    return path


def load(run, say: Callable[[str], None] | None = None):
    """The last whole checkpoint, or None when the run has none yet. A damaged newer one is told to `say`.

    Raises TinkitError when there are checkpoints and none of them can be read.
    """
    unreadable = []
    for path in paths(run):
        try:
            state = _read(path)
        except UNREADABLE as error:
            unreadable.append((path, (str(error).splitlines() or [""])[0][:200]))
            continue
        for damaged, why in unreadable:
            if say:
                say(f"checkpoint {damaged} is damaged ({why}): going on from {os.path.basename(path)}, the one before")
        return state
    if not unreadable:
        return None
    raise TinkitError(
        "The checkpoint is damaged." if len(unreadable) == 1 else "All checkpoints are damaged.",
        where=unreadable[0][0],
        seen=unreadable[0][1],
        next_step="remove it and start again with --resume: the feature store is kept"
        if len(unreadable) == 1
        else f"remove {os.path.join(run, FOLDER)} and start again with --resume: the feature store is kept",
    )


def paths(run) -> list[str]:
    """The files of the run's checkpoints, the newest first."""
    folder, found = os.path.join(run, FOLDER), []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = [name for name in os.listdir(folder) if re.fullmatch(r"\d{8,}\.pt", name)]
    newest_first = sorted(found, key=lambda name: int(name[: -len(".pt")]), reverse=True)
    older = os.path.join(run, CHECKPOINT)
    return [os.path.join(folder, name) for name in newest_first] + ([older] if os.path.exists(older) else [])


def exists(run) -> bool:
    """Whether the run has something to go on from."""
    return bool(paths(run))


def remove(run) -> None:
    """All checkpoints and what kills left half-written go: the run is finished."""
    for path in paths(run):
        _unlink(path)
    _sweep(run)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.join(run, FOLDER))


@dataclass
class Saver:
    """When a checkpoint is due, and what writing them has taken. The clock is one that nobody sets back.

    `minutes` is the interval in minutes of this process; `seconds` and `count` tell of the writing so far.
    """

    run: str
    minutes: float
    keep: int = KEEP
    say: Callable[[str], None] | None = None
    clock: Callable[[], float] = time.monotonic
    seconds: float = 0.0
    count: int = 0
    last: float = field(init=False)
    took: float = 0.0

    def __post_init__(self):
        self.last = self.clock()

    def due(self) -> bool:
        """After a step: the interval has gone by."""
        return self.clock() - self.last >= 60 * self.minutes

    def due_after_epoch(self) -> bool:
        """After an epoch also when writing takes less than a twentieth of the time since the last."""
        return self.due() or self.clock() - self.last >= CHEAP * self.took

    def save(self, state) -> None:
        began = self.clock()
        save(self.run, state, self.keep, self.say)
        self.last = self.clock()
        self.took = self.last - began
        self.seconds, self.count = self.seconds + self.took, self.count + 1


def _read(path):
    data = io.BytesIO()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 22):
            data.write(block)
    end = max(0, data.tell() - DIGEST)
    view = data.getbuffer()
    whole = hashlib.sha256(view[:end]).digest() == bytes(view[end:])
    view.release()
    if not whole:
        raise ValueError("its hash is not the one written with it")
    data.truncate(end)
    data.seek(0)
    return torch.load(data, map_location="cpu", weights_only=True)


def _drop(run, newest, keep) -> None:
    """What is older than the last `keep` goes, and what claims to be newer: it was damaged, or it would not be here."""
    known = paths(run)
    place = known.index(newest)
    for path in known[:place] + known[place + max(1, keep) :]:
        _unlink(path)
    _sweep(run)


def _sweep(run) -> None:
    """Remove what a killed process left half-written; the run's folder is locked, so nobody else is writing."""
    for folder in (run, os.path.join(run, FOLDER)):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if re.search(r"\.\d+\.partial$", name):
                    _unlink(os.path.join(folder, name))


def _unlink(path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
