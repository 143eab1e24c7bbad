"""The checkpoint of a run, written at once and read without pickle: weights, optimiser, averages, randomness, place."""

import os

import torch

from tinkit import files
from tinkit.errors import TinkitError

CHECKPOINT = "checkpoint.pt"


def save(run, state) -> None:
    """Replace the run's checkpoint. On a full disk the last good one stays and TinkitError is raised."""
    path = os.path.join(run, CHECKPOINT)
    with files.atomic(path, "writing the checkpoint") as partial:
        try:
            torch.save(state, partial)
        except RuntimeError as error:  # torch's writer reports a full disk in its own words
            raise OSError(_errno_of(partial), f"torch: {str(error).splitlines()[0]}", path) from None


def load(run):
    """The last checkpoint, or None when the run has none yet."""
    path = os.path.join(run, CHECKPOINT)
    if not os.path.exists(path):
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise TinkitError(
            "The checkpoint is damaged.",
            where=path,
            seen=(str(error).splitlines() or [""])[0][:200],
            next_step="remove it and start again with --resume: the feature store is kept",
        ) from None


def _errno_of(path):
    """Why a write failed: try to write a little more and ask the system."""
    import errno

    try:
        with open(path, "ab") as handle:
            handle.write(b"\0" * 4096)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        return error.errno
    return errno.EIO
