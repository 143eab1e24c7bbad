"""Feature maps inside a timm network, by timm's own feature information, and their pairing between two networks.

One map a stage: the deepest of every resolution, as `feature_info` lists them, without the stem's (stride 2), whose maps
are large and say little. A ViT's taps are blocks at equal distances, as maps. Taken in the same pass as the features.
"""

from tinkit.errors import TinkitError
from tinkit.host.distill.pair import Pair, Side, Tap
from tinkit.host.features import Features, features_of

MOST = 4  # taps of a network without stages (ViT)


def tap_indices(backbone) -> tuple[int, ...]:
    """Which of `feature_info`'s entries are tapped. TinkitError for a backbone that cannot be tapped."""
    info = getattr(backbone, "feature_info", None)
    if info is None or not hasattr(backbone, "forward_intermediates"):
        raise TinkitError(
            "This backbone does not say where it can be tapped.",
            seen=type(backbone).__name__,
            next_step="a method without taps (tinkit list methods), or a backbone with timm's feature information: "
            "efficientnet, mobilenetv3, mobilenetv4, fastvit, repvit, vit, convnext and others",
        )
    reductions = [entry["reduction"] for entry in info]
    if len(set(reductions)) == 1:  # a ViT: every block has the same grid
        count = len(reductions)
        return tuple(sorted({round((k + 1) * count / MOST) - 1 for k in range(MOST)}))
    last_of = {reduction: index for index, reduction in enumerate(reductions)}
    return tuple(index for reduction, index in sorted(last_of.items()) if reduction > 2)


def tapped_forward(backbone, images_BCHW, indices):
    """(what forward_features gives, {name: map}), in one pass."""
    out, maps = backbone.forward_intermediates(images_BCHW, indices=list(indices), output_fmt="NCHW")
    names = [str(backbone.feature_info[index]["module"]) for index in indices]
    return out, dict(zip(names, maps))


def tapped_features(backbone, images_BCHW, indices) -> Features:
    """`Features` with taps by name."""
    out, maps = tapped_forward(backbone, images_BCHW, indices)
    features = features_of(out, backbone, images_BCHW.shape[-2:])
    features.taps = maps
    return features


def side_of(features: Features) -> Side:
    """The shapes of computed features, taps included."""
    local_BLD = features.local_BLD
    width, grid = (None, None) if local_BLD is None else (local_BLD.shape[2], features.grid)
    taps = tuple(Tap(name, m.shape[1], (m.shape[2], m.shape[3])) for name, m in features.taps.items())
    return Side(features.global_BD.shape[1], width, grid, taps)


def match_taps(pair: Pair) -> list[tuple[Tap, Tap]]:
    """(student tap, teacher tap), paired from the deep end, shallow first; the longer list loses its shallowest."""
    count = min(len(pair.student.taps), len(pair.teacher.taps))
    return list(zip(pair.student.taps[-count:], pair.teacher.taps[-count:])) if count else []
