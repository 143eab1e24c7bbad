"""PKT ("Learning Deep Representations with Probabilistic Knowledge Transfer"): Passalis, Tefas, ECCV 2018, 1803.10837.

Each picture sees the others of the batch with a probability that grows with their cosine; the student's probabilities
should be the teacher's. Formula as in the authors' code (kept by RepDistiller and mdistiller, read there): a picture's
own entry is part of its row (some descriptions leave it out), and the mean is over all B * B entries, not over rows,
which is why the weight of those repositories is 30000.
"""

import torch
from torch import nn

from tinkit.host.distill.gather import gather
from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import at_least

EPS = 1e-7


class PKT(nn.Module):
    """Keeps each picture's distribution of cosine similarity over the batch, on global features.

    x: global features (B, D) of either network; the two widths need not agree.
        k_ij = (1 + cos(x_i, x_j)) / 2,   p_ij = k_ij / sum_j k_ij   (j runs over all B, i itself included)
        loss = 30000 * mean_ij  p^T_ij log(p^T_ij / p^S_ij)
    """

    paper = "arXiv 1803.10837"
    needs = ()
    uses = ()
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing, as in the authors' code; gather=True: the global features of both networks, with gradient"

    def __init__(self, pair: Pair, *, weight: float = 30000.0, gather: bool = False):
        super().__init__()
        at_least(0, weight=weight)
        self.weight, self.gather = weight, gather

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student_BD, teacher_BD = batch.student.global_BD, batch.teacher.global_BD
        if self.gather:
            student_BD, teacher_BD = gather(student_BD), gather(teacher_BD)
        ours_BB, theirs_BB = probabilities(student_BD), probabilities(teacher_BD)
        divergence = (theirs_BB * ((theirs_BB + EPS) / (ours_BB + EPS)).log()).mean()
        return {"divergence": divergence, "loss": self.weight * divergence}


def probabilities(points_BD) -> torch.Tensor:
    """Rows of cosine similarities, moved to 0..1 and divided by their sum: (B, B)."""
    unit_BD = points_BD / (torch.linalg.vector_norm(points_BD, dim=1, keepdim=True) + EPS)
    kernel_BB = (1 + unit_BD @ unit_BD.mT) / 2
    return kernel_BB / kernel_BB.sum(1, keepdim=True)
