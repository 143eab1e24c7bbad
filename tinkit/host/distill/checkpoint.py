"""The checkpoint of a run, written at once and read without pickle: weights, optimiser, averages, randomness, place."""

import hashlib
import io
import os
import pickle  # for the name of its error only

import torch

from tinkit import files
from tinkit.errors import TinkitError

CHECKPOINT = "checkpoint.pt"  # torch's file, followed by the sha256 of it
DIGEST = 32  # bytes


def save(run, state) -> None:
    """Replace the run's checkpoint. On a full disk the last good one stays and TinkitError is raised."""
    path = os.path.join(run, CHECKPOINT)
    with files.atomic(path, "writing the checkpoint") as partial:
        try:
            torch.save(state, partial)
            with open(partial, "ab") as handle:
                handle.write(bytes.fromhex(files.sha256_of_file(partial)))
        except RuntimeError as error:  # torch's writer reports a full disk in its own words
            raise OSError(_errno_of(partial), f"torch: {str(error).splitlines()[0]}", path) from None


def load(run):
    """The last checkpoint, or None when the run has none yet."""
    path = os.path.join(run, CHECKPOINT)
    if not os.path.exists(path):
        return None
    try:
        with open(path, "rb") as handle:
            data = handle.read()
        if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
            raise ValueError("its hash is not the one written with it")
        return torch.load(io.BytesIO(data[:-DIGEST]), map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
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
