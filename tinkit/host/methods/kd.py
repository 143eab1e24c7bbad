"""KD: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

The first of the family and the baseline of every table: the student's class probabilities are pulled to the teacher's,
both softened by a temperature, so that the small probabilities (what the teacher confuses with what) count too.
Temperature and weights are those of mdistiller, where the field's CIFAR tables come from: 0.9 here, 0.1 on the labels.
Other tables use other ones (the baseline of DIST's ImageNet table: 1.0 here, 0.9 on the labels, tau 4). torchdistill's
KDLoss is the same with labels, and drops tau^2 where there are none; here tau^2 is always there.
Legend: B pictures, C classes.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import above, at_least


class KD(nn.Module):
    """Pulls softened class probabilities to the teacher's.

    p = softmax(teacher_BC / tau), q = softmax(student_BC / tau), rows over C;
        kl = tau^2 * mean_B sum_C p log(p / q),   loss = loss_weight * kl.
    Zero at equality; a constant added to a row of logits changes nothing. tau^2 keeps the gradient's size as tau grows.
    """

    paper = "arXiv 1503.02531"
    needs = ("logits",)
    uses = ()
    reconstruction = False
    label_weight = 0.1
    gathers = "nothing: every picture has its own term"

    def __init__(self, pair: Pair, *, tau: float = 4.0, loss_weight: float = 0.9):
        super().__init__()
        above(0, tau=tau)
        at_least(0, loss_weight=loss_weight)
        self.tau, self.loss_weight = tau, loss_weight

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student_BC, teacher_BC = logits_of(batch)
        kl = self.tau**2 * soft_kl(student_BC, teacher_BC, self.tau)
        return {"kl": kl, "loss": self.loss_weight * kl}


def soft_kl(student_BC, teacher_BC, tau=1.0) -> torch.Tensor:
    """Mean over pictures of KL(softmax(teacher / tau) || softmax(student / tau)), without tau^2."""
    log_q, log_p = F.log_softmax(student_BC / tau, dim=1), F.log_softmax(teacher_BC / tau, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def logits_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(student_BC, teacher_BC), the teacher's without gradient."""
    student_BC, teacher_BC = batch.student.logits_BC, batch.teacher.logits_BC
    if student_BC is None or teacher_BC is None:
        raise ValueError("this method needs logits of student and teacher")
    return student_BC, teacher_BC.detach()
