"""What an engine was made of and for: TensorRT, GPU, module, model and options, as plain data that is compared.

An engine is code for one TensorRT on one GPU. Another board of the same chip loads it at best with a warning and runs it
slowly at worst, so the parts that tell boards apart are in it too. The power mode is not: it moves the clocks, not the
code; it is recorded beside the engine.
"""

import json
import os
import re

from tinkit import files
from tinkit.device import board
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
        "module": _text(root, "proc/device-tree/compatible").replace("\0", " ").strip(),
        "l4t": l4t_version(root),
    }


def l4t_version(root="/"):
    """`36.4.7` from "# R36 (release), REVISION: 4.7, ..."; "" where this is no Jetson."""
    found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text(root, "etc/nv_tegra_release"))
    return "{}.{}".format(*found.groups()) if found else ""


def power_mode(root="/"):
    """The name of a Jetson's power mode, "" where there is none. Numbers differ between boards, so they are looked up."""
    chosen = re.search(r"pmode:0*(\d+)", _text(root, "var/lib/nvpmodel/status"))
    if not chosen:
        return ""
    pattern = r"^<\s*POWER_MODEL\s+ID={}\s+NAME=(\S+?)\s*>".format(chosen.group(1))
    name = re.search(pattern, _text(root, "etc/nvpmodel.conf"), re.MULTILINE)
    return name.group(1) if name else "number " + chosen.group(1)


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


def _text(root, path):
    """A small text file of the system's; "" where it is not there."""
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as handle:
            return handle.read(65536)
    except OSError:
        return ""
