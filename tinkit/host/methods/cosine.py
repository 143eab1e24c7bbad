"""Cosine: the baseline that looks at directions only. A linear layer on the student, and one minus the cosine.

No paper of its own; the plain form of what several feature-distillation papers use as one of their terms (CosPress' code
has it as CosineLoss). Lengths of the teacher's vectors are not learned. As in `mse`, the layers are on the student's side,
are trained along and dropped, and local features, where both have them, get a layer of their own (local_weight=0: none).
"""

from torch import Tensor
from torch.nn import functional as F

from tinkit.host.methods.mse import MSE


def cosine_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean of 1 - cos over the rows (..., D); a row of zeros counts as cosine 0."""
    return (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()


class Cosine(MSE):
    """One minus the cosine between the student behind a linear layer and the teacher.

    global = mean_B  (1 - cos(h(s), t))        s (B,ds)    t (B,dt)    h: linear ds -> dt, with bias
    local  = mean_BL (1 - cos(g(s), t))        s (B,L,ds)  t (B,L,dt)  g: linear ds -> dt, with bias
    loss   = global + local_weight local;      0 <= each part <= 2
    """

    error = staticmethod(cosine_error)
