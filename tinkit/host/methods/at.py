"""AT ("Paying More Attention to Attention"): Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928.

Where a network looks is the mean square of its channels at each position; the student should look where the teacher
looks, at several depths. Activation-based form with p = 2. As in RepDistiller and mdistiller (read in code): the mean of
the squared differences with weight 1000, where the paper writes an L2 norm; and where sizes differ the larger features
are averaged down to the smaller grid, whichever network they belong to, before squaring (maps that are larger in one
direction only do not occur there: here the grid is the smaller of each direction). Taps are paired from the deep end.

Nothing behind the deepest tap gets gradient from this term. Without labels nothing trains the embedding that ships: then
add a method that does, for example `at+kd` or `at+mse`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.features import resample_map
from tinkit.host.methods.checks import at_least
from tinkit.host.taps import match_taps


class AT(nn.Module):
    """Makes the student look where the teacher looks: attention maps at several depths.

    f: a tap (B, C, H, W), both networks' on one grid.
        a = normalise(mean_c f_c^2)                    (B, H*W), length 1
        loss = 1000 * sum over pairs of taps of mean (a^S - a^T)^2
    """

    paper = "arXiv 1612.03928"
    needs = ("student_taps", "teacher_taps")
    uses = ()
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing: every picture stands for itself"

    def __init__(self, pair: Pair, *, weight: float = 1000.0):
        super().__init__()
        self.pairs = [(ours.name, theirs.name) for ours, theirs in match_taps(pair)]
        if not self.pairs:
            raise ValueError("both networks must have taps")
        at_least(0, weight=weight)
        self.weight = weight

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        errors = [attention_error(batch.student.taps[s], batch.teacher.taps[t]) for s, t in self.pairs]
        attention = torch.stack(errors).sum()
        return {"attention": attention, "loss": self.weight * attention}


def attention_error(student_BCHW, teacher_BCHW) -> torch.Tensor:
    """Mean squared difference of the two attention maps, on the smaller grid."""
    height, width = map(min, student_BCHW.shape[-2:], teacher_BCHW.shape[-2:])
    ours, theirs = (attention_map(resample_map(f, (height, width))) for f in (student_BCHW, teacher_BCHW))
    return ((ours - theirs) ** 2).mean()


def energy(map_BCHW) -> torch.Tensor:
    """Mean square over the channels: (B, H, W)."""
    return map_BCHW.pow(2).mean(1)


def attention_map(map_BCHW) -> torch.Tensor:
    """Energy of every position, flattened, scaled to length 1: (B, H*W)."""
    return F.normalize(energy(map_BCHW).flatten(1), dim=1)
