"""DIST: Huang, You, Wang, Qian and Xu, "Knowledge Distillation from a Stronger Teacher", arXiv 2205.10536.

A strong teacher's probabilities are too sharp to be copied, so only their linear relation is asked for: Pearson's
correlation of a picture's probabilities over the classes (inter-class), and of a class's probabilities over the
pictures of the batch (intra-class). Scale and shift of each row are then free.
Two readings of the paper. The released code scales both by tau^2, the paper's pseudo-code does not: `tau2_scale`, on as
released; at tau 1 there is no difference. The class defaults beta = gamma = 1 are doubled by every released
configuration: loss_weight 2. tau is 1 there for ImageNet and 4 for CIFAR-100. Classes that no picture of the batch
belongs to count as well. Released code keeps the intra-class batch local; `gather` takes that of all processes.
eps is added to the product of the norms, as released, so the loss at equality is not quite zero (about 1e-8 over the
norms' product); torchdistill clamps the norms instead and differs by as much. A student whose rows are all equal meets
slopes of up to 1 / eps, as in the released code. Left out: detection and segmentation (DIST on pixels), and DIST+.
Legend: B pictures (rows of all processes with `gather`), C classes.
"""

import torch
from torch import nn

from tinkit.host.distill.gather import gather as gather_rows
from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import above, at_least
from tinkit.host.methods.kd import logits_of

EPS = 1e-8


class DIST(nn.Module):
    """Asks for the teacher's correlations: over the classes of a picture, and over the pictures of a class.

    y = softmax(logits_BC / tau), rows over C;
        inter = s * (1 - mean_B pearson(y_student[b, :], y_teacher[b, :]))
        intra = s * (1 - mean_C pearson(y_student[:, c], y_teacher[:, c])),   s = tau^2, or 1 without tau2_scale
        loss  = loss_weight * (beta * inter + gamma * intra)
    Near zero at equality; a constant student gives inter = intra = s; with B = 1 intra is s and teaches nothing.
    """

    paper = "arXiv 2205.10536"
    needs = ("logits",)
    uses = ()
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing by default, as released; with gather=True both logits, with gradient, for inter and intra"

    def __init__(
        self,
        pair: Pair,
        *,
        tau: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        loss_weight: float = 2.0,
        tau2_scale: bool = True,
        gather: bool = False,
    ):
        super().__init__()
        above(0, tau=tau)
        at_least(0, beta=beta, gamma=gamma, loss_weight=loss_weight)
        self.tau, self.beta, self.gamma, self.loss_weight = tau, beta, gamma, loss_weight
        self.scale = tau**2 if tau2_scale else 1.0
        self.gather = gather

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        logits = logits_of(batch)
        if self.gather:
            logits = gather_rows(logits[0]), gather_rows(logits[1])
        student_BC, teacher_BC = ((z / self.tau).softmax(1) for z in logits)
        inter = self.scale * (1 - pearson(student_BC, teacher_BC).mean())
        intra = self.scale * (1 - pearson(student_BC.T, teacher_BC.T).mean())
        return {"inter": inter, "intra": intra, "loss": self.loss_weight * (self.beta * inter + self.gamma * intra)}


def pearson(one, other) -> torch.Tensor:
    """Correlation of each row of `one` (R, n) with the same row of `other`: (R,), 0 for a constant row."""
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (one, other))
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1) + EPS)
