"""Weight files: safetensors or a plain state dict, read without pickle, and compared with the network tensor by tensor."""

import os
import sys

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tinkit import files
from tinkit.errors import TinkitError


def read_weights(path):
    """name -> tensor. Unwraps {"state_dict": ...} and {"model": ...}; anything but tensors inside is refused."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise TinkitError("The weights file is missing.", where=path)
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise TinkitError("The weights file cannot be read.", where=path, seen=_first_line(error)) from None
    except Exception as error:  # noqa: BLE001 - pickle.UnpicklingError and its many cousins
        raise TinkitError(
            "The weights file holds more than tensors, and tinkit does not run what is in a file.",
            where=path,
            seen=_first_line(error),
            next_step="save the state dict as safetensors",
        ) from None
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TinkitError("The weights file is not a state dict of tensors.", where=path, seen=type(state).__name__)
    return state


def write_weights(path, tensors, metadata=None):
    """Write tensors as safetensors, atomically."""
    with files.atomic(path, "writing {}".format(path)) as partial:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)
        except SafetensorError as error:  # a full disk comes back as text only
            raise OSError(_errno_of(error), str(error), path) from None


def load_into(network, tensors, where, optional=()):
    """Load tensors into a network. Missing, unknown and misshapen tensors are named; `optional` prefixes may be absent."""
    own = network.state_dict()
    tensors = _as_timm_reads(network, tensors, where)
    misshapen = [
        "{} is {}, the network wants {}".format(name, list(tensors[name].shape), list(own[name].shape))
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    missing = [name for name in own if name not in tensors and not name.startswith(tuple(optional))]
    unknown = [name for name in tensors if name not in own and not name.startswith(tuple(optional))]
    if misshapen or missing or unknown:
        raise TinkitError(
            "The weights do not fit the network.",
            where=where,
            seen="; ".join(
                filter(
                    None,
                    (
                        _some("shape", misshapen),
                        _some("missing", missing),
                        _some("unknown", unknown),
                    ),
                )
            ),
            next_step="check that the weights belong to this architecture and size",
        )
    network.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)


def _as_timm_reads(network, tensors, where):
    """The tensors through timm's own filter for this family: other people's names, position embeddings of another size."""
    family = sys.modules.get(type(network).__module__)
    filter_fn = getattr(family, "checkpoint_filter_fn", None)
    if filter_fn is None:
        return tensors
    try:
        return filter_fn(dict(tensors), network)
    except (KeyError, AttributeError, RuntimeError, ValueError, IndexError, TypeError) as error:
        raise TinkitError(
            "timm cannot read these weights for the network.",
            where=where,
            seen=_first_line(error),
            next_step="check that the weights belong to this architecture",
        ) from None


def _some(label, names, most=3):
    if not names:
        return ""
    more = ", and {} more".format(len(names) - most) if len(names) > most else ""
    return "{}: {}{}".format(label, ", ".join(names[:most]), more)


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _errno_of(error):
    import errno

    text = str(error).lower()
    return errno.EFBIG if "too large" in text else errno.EROFS if "read-only" in text else errno.ENOSPC
