"""What an engine was made of and for: TensorRT, GPU, module, model and options, as plain data that is compared.

An engine is code for one TensorRT on one GPU. Another board of the same chip loads it at best with a warning and runs it
slowly at worst, so the parts that tell boards apart are in it too. The power mode is not: it moves the clocks, not the
code; it is recorded beside the engine.
"""

import json

from tinkit import files
from tinkit.device import board
from tinkit.device.board_files import text
from tinkit.device.jetson import l4t_version
from tinkit.errors import from_os_error


def engine_identity(model_path, tensorrt, gpu, options, root="/"):
    """What an engine is made of, as plain data. gpu: a `Gpu`; options: plain data, everything that the build is told.

    Every Orin calls itself "Orin", so the count of multiprocessors, the memory and the module's names from the device
    tree stand beside it. Memory in whole GiB: what the system keeps for itself differs a little between releases. The
    model's hash is of the one file: weights outside of it are not looked at (tinkit exports none).
    """
    return dict(
        timing_identity(tensorrt, gpu, root),
        kind="engine",
        onnx_sha256=_hash_of(model_path),
        options=json.loads(json.dumps(options)),
    )


def timing_identity(tensorrt, gpu, root="/"):
    """What a timing cache is good for: one TensorRT on one GPU, whatever the model."""
    return {
        "kind": "timing",
        "tensorrt": str(tensorrt),
        "gpu": gpu.name,
        "sm": gpu.sm,
        "multiprocessors": gpu.multiprocessors,
        "memory_gib": round(gpu.memory_bytes / (1 << 30)),
        "arch": board.architecture(),
        "module": text(root, "proc/device-tree/compatible").replace("\0", " ").strip(),
        "l4t": l4t_version(root),
    }


def differences(seen, wanted):
    """Which parts of two identities differ, in words; [] for none."""
    parts = sorted(set(seen) | set(wanted))
    told = "{}: made with {!r}, here it is {!r}"
    return [told.format(part, seen.get(part), wanted.get(part)) for part in parts if seen.get(part) != wanted.get(part)]


def _hash_of(model_path):
    try:
        return files.sha256_of_file(model_path)
    except OSError as error:
        raise from_os_error(error, "reading the model") from error
