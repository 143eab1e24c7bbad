"""A teacher from another framework, as an ONNX file that onnxruntime runs.

A file may hold its weights beside itself; those are read only from its own folder, and are part of its identity.
"""

import os
from dataclasses import replace

import numpy as np
import torch

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.features import LOCAL_ONLY, Features
from tinkit.host.views import normalise_on_device
from tinkit.pixels import Preprocessing

LOGITS = "logits"  # the name of the classifier's output


class OnnxTeacher:
    """A teacher that is run by onnxruntime, on the CPU.

    Outputs are taken by name where they say what they are (`global` or `embedding`, `local` or `tokens`), else by rank:
    the first (B,D) is the global feature, the first (B,L,D) or (B,C,H,W) the local ones.
    """

    named_classes = False  # a file does not say what its classes are called

    def __init__(self, path, size, mean, std):
        weights = [path, *external_data(path)]
        onnxruntime = _onnxruntime()
        try:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no other base
            raise TinkitError("onnxruntime cannot load the teacher.", where=path, seen=str(error)[:300]) from None
        (image, *others) = self.session.get_inputs()
        shape = image.shape
        if others or len(shape) != 4 or shape[1] != 3 or image.type != "tensor(float)":
            raise TinkitError(
                "An ONNX teacher wants one input of float32 (B,3,H,W).",
                where=path,
                seen=", ".join(f"{i.name} {i.type} {i.shape}" for i in self.session.get_inputs()),
            )
        native = shape[2] if isinstance(shape[2], int) else None
        if native and size and native != size:
            raise TinkitError("The ONNX teacher has a fixed size.", where=path, seen=f"{native}, asked for {size}")
        self.fixed_batch = shape[0] if isinstance(shape[0], int) else None
        self.input = image.name
        self.outputs = _pick_outputs(self.session, path)
        self.preprocessing = Preprocessing(
            size or native or 224, tuple(mean or (0.485, 0.456, 0.406)), tuple(std or (0.229, 0.224, 0.225))
        )
        classes = {output.name: output.shape[-1] for output in self.session.get_outputs()}.get(LOGITS)
        self.classes = classes if isinstance(classes, int) else 0
        self.identity = {
            "name": os.path.basename(path),
            "architecture": "onnx",
            "weights": files.sha256_of_json([files.sha256_of_file(part) for part in weights]),
            "preprocessing": self.preprocessing.to_json(),
            "global": "/".join(filter(None, self.outputs)),
        }

    def to(self, device):
        return self

    def features(self, pixels_BCHW, parts=LOCAL_ONLY) -> Features:
        images = normalise_on_device(pixels_BCHW.cpu(), self.preprocessing).contiguous().numpy()
        step = self.fixed_batch or len(images)
        wanted = (*self.outputs, LOGITS if "logits" in parts else None)
        runs = [self._run(images[start : start + step], step, wanted) for start in range(0, len(images), step)]
        arrays = [None if part[0] is None else torch.from_numpy(np.concatenate(part)) for part in zip(*runs)]
        features = _from_arrays(*arrays[:2])
        features.logits_BC = arrays[2]
        return features if "local" in parts else replace(features, local_BLD=None)

    def _run(self, images, step, wanted):
        short = step - len(images)
        if short:
            images = np.concatenate([images, np.repeat(images[-1:], short, 0)])
        names = [name for name in wanted if name is not None]
        try:
            found = dict(zip(names, self.session.run(names, {self.input: images})))
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no other base
            raise TinkitError(
                "The ONNX teacher failed on a batch.",
                where=self.identity["name"],
                seen=f"input {images.shape}: {str(error).splitlines()[0][:200]}",
                next_step="check --teacher-size",
            ) from None
        return [None if name is None else found[name][: step - short] for name in wanted]


def _from_arrays(global_BD, local) -> Features:
    """`Features` of an ONNX teacher's outputs; without a global one it is the class token, or the mean."""
    if local is None:
        return Features(global_BD)
    if local.ndim == 4:
        side_y, side_x = local.shape[-2:]
        own_BD, local_BLD = local.mean((2, 3)), local.flatten(2).transpose(1, 2)
    else:
        side_y = side_x = int(local.shape[1] ** 0.5)
        extra = local.shape[1] - side_y * side_x  # class and register tokens in front of a square grid
        own_BD, local_BLD = local[:, 0] if extra else local.mean(1), local[:, extra:]
    return Features(own_BD if global_BD is None else global_BD, local_BLD, (side_y, side_x))


def _pick_outputs(session, path):
    outputs = {output.name: len(output.shape) for output in session.get_outputs() if output.name != LOGITS}

    def pick(names, ranks):
        named = [name for name in names if name in outputs]
        ranked = [name for name, rank in outputs.items() if rank in ranks]
        return (named or ranked or [None])[0]

    chosen = pick(("global", "embedding"), (2,)), pick(("local", "tokens"), (3, 4))
    if chosen == (None, None):
        raise TinkitError(
            "The ONNX teacher has no output that looks like features.",
            where=path,
            seen=", ".join(f"{name} of rank {rank}" for name, rank in outputs.items()),
            next_step="give it an output of (B,D), (B,L,D) or (B,C,H,W)",
        )
    return chosen


def external_data(path) -> list[str]:
    """The files with an ONNX model's external data, sorted.

    Raises TinkitError when the model or one of them is missing or damaged, or lies outside the model's folder.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    if not os.path.isfile(path):
        raise TinkitError("The teacher's ONNX file is missing.", where=path)
    try:
        model = onnx.load(path, load_external_data=False)
        located = {ExternalDataInfo(t).location for t in _get_all_tensors(model) if uses_external_data(t)}
    except (DecodeError, ValueError, OSError) as error:
        raise TinkitError("The teacher is not a readable ONNX file.", where=path, seen=str(error)[:200]) from None
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    found = []
    for location in sorted(located):
        target = os.path.realpath(os.path.join(folder, location))
        if os.path.isabs(location) or os.path.commonpath([folder, target]) != folder:
            raise TinkitError("The teacher's external data point outside its folder.", where=path, seen=location)
        if not os.path.isfile(target):
            raise TinkitError("A file with the teacher's external data is missing.", where=target)
        found.append(target)
    return found


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError:
        raise TinkitError("An ONNX teacher needs onnxruntime.", next_step='pip install "tinkit[host,cpu]"') from None
    return onnxruntime
