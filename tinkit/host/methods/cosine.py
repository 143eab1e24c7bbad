"""Cosine: the baseline that looks at directions only. A linear layer on the student, and one minus the cosine.

No paper of its own; the plain form of what several feature-distillation papers use as one of their terms (CosPress' code
has it as CosineLoss). Lengths of the teacher's vectors are not learned. As in `mse`, the layers are on the student's side,
are trained along and dropped, and local features, where both have them, get a layer of their own (local_weight=0: none).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import at_least
from tinkit.host.methods.mse import local_features, local_layer


class Cosine(nn.Module):
    """One minus the cosine between the student behind a linear layer and the teacher.

    global = mean_B  (1 - cos(h(s), t))        s (B,ds)    t (B,dt)    h: linear ds -> dt, with bias
    local  = mean_BL (1 - cos(g(s), t))        s (B,L,ds)  t (B,L,dt)  g: linear ds -> dt, with bias
    loss   = global + local_weight local;      0 <= each part <= 2
    """

    paper = "baseline, no paper"
    needs = ()
    uses = ("local",)
    reconstruction = False
    label_weight = 0.0
    gathers = "nothing: every picture has its own term"

    def __init__(self, pair: Pair, *, local_weight: float = 1.0):
        super().__init__()
        at_least(0, local_weight=local_weight)
        self.local_weight = local_weight
        self.global_head = nn.Linear(pair.student.dim, pair.teacher.dim)
        self.local_head = local_layer(pair) if local_weight else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        parts = {"global": cosine_error(self.global_head(batch.student.global_BD), batch.teacher.global_BD.detach())}
        loss = parts["global"]
        if self.local_head is not None:
            ours_BLD, theirs_BLD = local_features(batch)
            parts["local"] = cosine_error(self.local_head(ours_BLD), theirs_BLD)
            loss = loss + self.local_weight * parts["local"]
        return {**parts, "loss": loss}


def cosine_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean of 1 - cos over the rows (..., D); a row of zeros counts as cosine 0."""
    return (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()
