"""Proteus: Zhang, Ma, Bai, Wang and Fu, "Accessing Vision Foundation Models via ImageNet-1K", ICLR 2025, arXiv 2407.10366.

The main competitor of TinTeM: no labels, no teacher logits, squared error on the features themselves at three levels.
Heads of LayerNorm and a linear layer sit on the student's side (TinTeM's sits on the teacher's) and are dropped, so the
student ships a space of its own. From the authors' code (read): heads, terms, and weights 1, 1, 1 for DINOv2 teachers.

The default is Proteus without its patch term, as the authors of TinTeM (CosPress) ran it as their competitor (certain:
their configuration). The paper has the term: it shows the student every picture a second time, in half of them with half
of the patches masked, and asks for the teacher's features at the masked places. Here a method gets one pass of the
student a step, and a CNN's input cannot be masked by patches. So patch_weight=1 takes the term at places drawn in the
same way from the unmasked student (a reading): it regresses places that the student sees and guesses nothing that is
hidden, so it adds little but a head and some weight to what the feature term asks for. A CNN's mean and map stand for
class token and patches (a reading).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import above, at_least, within
from tinkit.host.methods.mse import local_features


class Proteus(nn.Module):
    """Squared error on the class token and on all tokens, each behind its own head on the student.

    h = Linear(LayerNorm(.)): ds -> dt         s, t (B,D) global    S, T (B,L,D) local, on the teacher's grid
    token   = mean (h_token(s) - t)^2
    feature = mean ([h_token(s); h_feature(S)] - [t; T])^2             over all numbers
    loss    = token_weight token + feature_weight feature

    patch_weight > 0 adds a third term on places drawn at random, which are not masked: it regresses what is in sight.
    patch   = mean (h_patch(S_m) - T_m)^2      m: mask_ratio of the places in mask_share of the pictures
    """

    paper = "arXiv 2407.10366"
    needs = ("local",)
    uses = ()
    reconstruction = False
    label_weight = 0.0
    gathers = "nothing: every picture has its own terms, and each process draws the places of its own pictures"

    def __init__(
        self,
        pair: Pair,
        *,
        token_weight: float = 1.0,
        feature_weight: float = 1.0,
        patch_weight: float = 0.0,
        mask_ratio: float = 0.5,
        mask_share: float = 0.5,
    ):
        super().__init__()
        weights = {"token": token_weight, "feature": feature_weight, "patch": patch_weight}
        ours, theirs = pair.student, pair.teacher
        if ours.local_dim is None or theirs.local_dim is None:
            raise ValueError("student and teacher must have local features")
        at_least(0, token_weight=token_weight, feature_weight=feature_weight, patch_weight=patch_weight)
        above(0, mask_ratio=mask_ratio, mask_share=mask_share)
        within(0, 1, mask_ratio=mask_ratio, mask_share=mask_share)
        self.weights, self.mask_ratio, self.mask_share = weights, mask_ratio, mask_share
        self.token_head = head(ours.dim, theirs.dim)
        self.feature_head = head(ours.local_dim, theirs.local_dim) if feature_weight else None
        self.patch_head = head(ours.local_dim, theirs.local_dim) if patch_weight else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (ours_BLD, theirs_BLD), theirs_BD = local_features(batch), batch.teacher.global_BD.detach()
        ours_BD = self.token_head(batch.student.global_BD)
        parts = {"token": F.mse_loss(ours_BD, theirs_BD)}
        if self.feature_head is not None:
            parts["feature"] = F.mse_loss(
                torch.cat([ours_BD, self.feature_head(ours_BLD).flatten(1)], dim=1),
                torch.cat([theirs_BD, theirs_BLD.flatten(1)], dim=1),
            )
        if self.patch_head is not None:
            pictures, places = ours_BLD.shape[:2]
            mask_BL = draw_mask(pictures, places, self.mask_ratio, self.mask_share, batch.generator())
            mask_BL = mask_BL.to(ours_BLD.device)
            parts["patch"] = F.mse_loss(self.patch_head(ours_BLD[mask_BL]), theirs_BLD[mask_BL])
        return {**parts, "loss": torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()}


def head(ds: int, dt: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(ds), nn.Linear(ds, dt))


def draw_mask(pictures: int, places: int, ratio: float, share: float, generator: torch.Generator) -> Tensor:
    """(B,L) bool: the same number of places in each of `share` of the pictures, at least one of each. On the CPU."""
    chosen = torch.randperm(pictures, generator=generator)[: max(1, round(share * pictures))]
    order_BL = torch.rand(pictures, places, generator=generator).argsort(dim=1)
    mask_BL = torch.zeros(pictures, places, dtype=torch.bool)
    mask_BL[chosen] = order_BL[chosen] < max(1, round(ratio * places))
    return mask_BL
