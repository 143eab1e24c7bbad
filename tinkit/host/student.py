"""The student: a timm backbone, and for a CNN a linear neck, because a one-sided activation cannot reach signed targets.

`Student` is what is trained; `deploy()` gives what ships: re-parameterised where timm can (FastViT, RepViT, MobileOne),
in eval mode, with named outputs. A linear head on the embedding gives logits to the methods that need them, and ships
only when asked for; taps inside the backbone are read while training, and never after. Parts that timm runs only after
the pooling (mobilenetv4's 960 -> 1280 convolution, classifier norms) take no part in the features; they are removed and
not counted.
"""

import copy
import warnings
from dataclasses import dataclass, replace

import timm
import torch
from timm.data import resolve_model_data_config
from timm.utils import reparameterize_model
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host.features import Features, backbone_features
from tinkit.host.taps import tapped_features
from tinkit.host.weights import load_into, read_weights
from tinkit.pixels import Preprocessing
from tinkit.strict import nearest

DEFAULT_DIM = 384  # of a CNN's neck; a ViT keeps its own width

# Export was compared with PyTorch on real pictures for these (benchmarks/students.py); others may work as well.
PROVEN = (
    "mobilenetv3_small_100", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "efficientnet_lite0",
    "efficientvit_b0", "fastvit_t8", "repvit_m1_0", "mobileone_s0", "tiny_vit_5m_224", "edgenext_xx_small",
    "vit_tiny_patch16_224", "convnext_atto",
)  # fmt: skip
KNOWN_FAILURES = {
    "efficientvit_b0": "fp16 targets: its linear attention sums beyond 65504 on some pictures; export keeps it in fp32 there",
}


@dataclass(frozen=True)
class StudentSpec:
    """All that is needed to build the student again. dim: None for a backbone without a neck; classes: without a head."""

    architecture: str
    size: int
    dim: int | None
    preprocessing: Preprocessing
    classes: int | None = None


class Student(nn.Module):
    """images (B,3,size,size), normalised -> `Features` with global_BD and local_BLD of width `dim`.

    logits_BC with a head; taps when `tapped` names entries of timm's feature information (tinkit.host.taps).
    """

    def __init__(self, backbone, neck, spec: StudentSpec, head=None):
        super().__init__()
        self.backbone, self.neck, self.head, self.spec = backbone, neck, head, spec
        self.tapped: tuple[int, ...] = ()

    @property
    def dim(self):
        return self.neck.out_features if self.neck is not None else self.backbone.num_features

    @property
    def has_attention(self):
        """Whether softmax attention is in it, as timm marks it: a ViT, or a hybrid such as tiny_vit."""
        return any(hasattr(module, "fused_attn") for module in self.backbone.modules())

    def forward(self, images_BCHW) -> Features:
        if self.tapped:
            features = tapped_features(self.backbone, images_BCHW, self.tapped)
        else:
            features = backbone_features(self.backbone, images_BCHW)
        if self.neck is not None:
            features.global_BD, features.local_BLD = self.neck(features.global_BD), self.neck(features.local_BLD)
        if self.head is not None:
            features.logits_BC = self.head(features.global_BD)
        return features

    def set_head(self, head: nn.Linear | None) -> None:
        """Put a linear head on the embedding, or take it off."""
        self.head = head
        self.spec = replace(self.spec, classes=None if head is None else head.out_features)

    def deploy(self, local=False) -> "Deployed":
        """A copy for export on the CPU: eval mode, branches folded, train-only parts gone. Outputs as a tuple."""
        student = copy.deepcopy(self).cpu().eval()
        student.tapped = ()
        student.backbone = reparameterize_model(student.backbone, inplace=True)
        return Deployed(student, local).eval()


class Deployed(nn.Module):
    """What ships: images -> (embedding_BD, and with them logits_BC, local_BLD). `output_names` tells which."""

    def __init__(self, student: Student, local: bool):
        super().__init__()
        self.student, self.local = student, local

    @property
    def output_names(self):
        return ["embedding"] + ["logits"] * (self.student.head is not None) + ["local"] * self.local

    def forward(self, images):
        features = self.student(images)
        by_name = {"embedding": features.global_BD, "logits": features.logits_BC, "local": features.local_BLD}
        return tuple(by_name[name] for name in self.output_names)


def build_student(architecture, size=None, dim=None, weights=None, classes=None) -> Student:
    """A student by timm name. `size` in pixels (default: the architecture's own); `weights` a file to start from;
    `classes` for a linear head on the embedding."""
    if not timm.is_model(architecture):
        raise TinkitError(
            "timm has no model of this name.", seen=architecture, next_step=nearest(architecture, timm.list_models())
        )
    backbone = create_backbone(architecture, size)
    if weights is not None:
        load_into(backbone, read_weights(weights), weights, optional=head_names(backbone))
    preprocessing = preprocessing_of(backbone, size)
    try:
        width = _remove_unused(backbone, preprocessing.size)
    except (AssertionError, RuntimeError, ValueError) as error:  # timm asserts that patches divide the picture
        raise TinkitError(
            f"{architecture} does not run at this size.",
            seen=f"{preprocessing.size} pixels: {(str(error) or type(error).__name__).splitlines()[0]}",
            next_step="choose another --student-size, or leave it out",
        ) from None
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            _thin_first(module)
    is_vit = getattr(backbone, "num_prefix_tokens", 0) > 0
    wanted = dim if dim is not None else (None if is_vit else DEFAULT_DIM)
    neck = None if wanted is None else nn.Linear(width, wanted)
    student = Student(backbone, neck, StudentSpec(architecture, preprocessing.size, wanted, preprocessing))
    if classes is not None:
        student.set_head(nn.Linear(student.dim, classes))
    return student


def create_backbone(architecture, size=None, classes=0):
    """A timm network without weights, and without classifier unless `classes` says how wide; a ViT is built for `size`."""
    options = {}
    config = timm.get_pretrained_cfg(architecture)
    if size is not None and config is not None and config.fixed_input_size and size != config.input_size[-1]:
        options["img_size"] = size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(architecture, pretrained=False, num_classes=classes, **options)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise TinkitError(
            f"timm cannot build {architecture}" + (f" for {size} pixels." if size else "."),
            seen=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_step="choose another --student, or leave its size as it is",
        ) from None


def preprocessing_of(backbone, size=None) -> Preprocessing:
    """The network's own preprocessing as timm records it, for `size` pixels when given."""
    config = resolve_model_data_config(backbone)
    built_for = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    native = built_for[0] if built_for else config["input_size"][-1]
    return Preprocessing(
        size=int(size or native),
        mean=_rgb(config["mean"]),
        std=_rgb(config["std"]),
        crop_pct=float(config["crop_pct"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def _rgb(values) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def head_names(backbone):
    """Prefixes of classifier tensors that a weights file may bring along."""
    classifier = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _thin_first(conv: nn.Conv2d) -> None:
    """Let a strided 1x1 convolution of few channels thin out its input and then step by 1: the same numbers.

    oneDNN writes beyond its memory in the backward pass of these, channels last (the stems of FastViT and MobileOne;
    seen as a crash with torch 2.15, https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    plain = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    if plain and conv.stride != (1, 1) and conv.in_channels < 16:
        down, right = conv.stride
        conv.stride = (1, 1)
        conv.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, :, ::down, ::right], *inputs[1:]))


def _remove_unused(backbone, size):
    """Replace direct children whose parameters never reach the features. Found by gradients, not by names.

    Returns the width of the features.
    """
    backbone.eval().zero_grad(set_to_none=True)
    features = backbone_features(backbone, torch.zeros(1, 3, size, size))
    features.local_BLD.sum().backward()  # a class token's own path runs through the same modules
    for name, child in list(backbone.named_children()):
        parameters = list(child.parameters())
        if parameters and all(parameter.grad is None for parameter in parameters):
            setattr(backbone, name, nn.Identity())
    backbone.zero_grad(set_to_none=True)
    backbone.train()  # some attention layers keep what they computed in eval mode, with its graph; this lets go of it
    return features.global_BD.shape[1]
