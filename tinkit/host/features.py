"""One kind of features for every backbone: a global vector, local ones on a grid.

A ViT's global is its class token and its local the patch tokens, both after the final norm. A CNN's local is the map of
`forward_features`, flattened, and its global the mean of that. Legend: B batch, L positions, D width, C channels.
"""

from dataclasses import dataclass, field

import torch

from tinkit.errors import TinkitError

LOCAL_ONLY = ("local",)  # the parts of a teacher's features beside the global one, where nothing else is asked for


@dataclass
class Features:
    """What a network says about a batch. grid is (height, width) of the local positions, L = height * width."""

    global_BD: torch.Tensor
    local_BLD: torch.Tensor | None = None
    grid: tuple[int, int] | None = None
    logits_BC: torch.Tensor | None = None
    taps: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, target) -> "Features":
        """All tensors on a device, or in a dtype."""

        def move(tensor):
            return None if tensor is None else tensor.to(target)

        taps = {name: tap.to(target) for name, tap in self.taps.items()}
        return Features(self.global_BD.to(target), move(self.local_BLD), self.grid, move(self.logits_BC), taps)


def joined(found: list[Features]) -> Features:
    """The features of several batches as those of one."""

    def join(tensors):
        return None if tensors[0] is None else torch.cat(tensors)

    return Features(
        torch.cat([features.global_BD for features in found]),
        join([features.local_BLD for features in found]),
        found[0].grid,
        join([features.logits_BC for features in found]),
        {name: torch.cat([features.taps[name] for features in found]) for name in found[0].taps},
    )


def backbone_features(backbone, images_BCHW) -> Features:
    """`Features` of a timm backbone; raises TinkitError for an output that is neither a map nor tokens."""
    out = backbone.forward_features(images_BCHW)
    return features_of(out, backbone, images_BCHW.shape[-2:])


def features_of(out, backbone, image_size) -> Features:
    if not isinstance(out, torch.Tensor) or out.ndim not in (3, 4):
        raise TinkitError(
            "The backbone gives features that tinkit cannot read.",
            seen=f"{type(backbone).__name__}: {tuple(getattr(out, 'shape', ())) or type(out).__name__}",
            next_step="choose a backbone whose forward_features gives a map (B,C,H,W) or tokens (B,T,D)",
        )
    if out.ndim == 4:
        if getattr(backbone, "output_fmt", None) == "NHWC":
            out = out.permute(0, 3, 1, 2)
        local = out.flatten(2).transpose(1, 2)
        return Features(out.mean((2, 3)), local, tuple(out.shape[-2:]))
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    local = out[:, prefix:]
    has_class_token = prefix > 0 and getattr(backbone, "cls_token", None) is not None
    global_BD = out[:, 0] if has_class_token else local.mean(1)
    return Features(global_BD, local, token_grid(backbone, local.shape[1], image_size))


def token_grid(backbone, positions, image_size):
    """(height, width) of a ViT's patch tokens; falls back to the grid of the image's own proportions."""
    patches = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if patches and patches[0] * patches[1] == positions:
        return tuple(patches)
    height = max(1, round((positions * image_size[0] / image_size[1]) ** 0.5))
    if positions % height:
        raise TinkitError("The backbone's tokens do not form a grid.", seen=f"{positions} tokens")
    return (height, positions // height)


def resample_grid(local_BLD, grid, wanted):
    """Local features on another grid: area average when shrinking, bilinear when growing. (B,L,D) -> (B,L',D)."""
    if grid == wanted:
        return local_BLD
    return resample_map(as_map(local_BLD, grid), wanted).flatten(2).transpose(1, 2)


def resample_map(map_BCHW: torch.Tensor, wanted: tuple[int, int]) -> torch.Tensor:
    """A map on another grid, by the same rule. (B,C,H,W) -> (B,C,H',W')."""
    height, width = map_BCHW.shape[-2:]
    if (height, width) == tuple(wanted):
        return map_BCHW
    if wanted[0] <= height and wanted[1] <= width:
        return torch.nn.functional.adaptive_avg_pool2d(map_BCHW, wanted)
    return torch.nn.functional.interpolate(map_BCHW, size=wanted, mode="bilinear", align_corners=False)


def as_map(local_BLD, grid) -> torch.Tensor:
    """Local features as a map. (B,L,D) -> (B,D,H,W)."""
    return local_BLD.transpose(1, 2).unflatten(2, grid)
