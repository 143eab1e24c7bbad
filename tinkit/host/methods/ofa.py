"""OFA: Hao, Guo, Han, Tang, Hu, Wang and Xu, "One-for-All" for unlike networks, arXiv 2310.19444.

A transformer's features and a CNN's do not compare, but what they say of the classes does: every stage of the student
gets a classifier of its own, and all of them, with the student's own logits, follow the teacher's probabilities. The
target class is lifted by an exponent eps, more for teachers that are less to be trusted.
What differs here: a stage's classifier is global average pooling and one linear layer on the stage's map. The authors
put separable convolutions (CNN) or patch merging and transformer blocks (ViT) before it, much more to train and with
more to hide in. There is one head for each tap of the student (as a rule four, as theirs). The target class
of a picture without a label is the teacher's top class (ours); with eps = 1, the default, the target drops out and no
label is looked at. The heads are used in training only.
Legend: B pictures, C classes, F channels of a tap.
"""

import torch
from torch import nn

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import above, at_least
from tinkit.host.methods.dkd import target_classes
from tinkit.host.methods.kd import logits_of


class OFA(nn.Module):
    """Classifiers on every stage of the student follow the teacher's class probabilities.

    p = softmax(teacher_BC / tau), q = softmax(z / tau), 1_t is 1 at the target class and 0 elsewhere:
        ofa(z)  = mean_B sum_C -((p + 1_t)^eps - 1_t) log q
        logits  = ofa(student_BC),   stages = sum over taps of ofa(linear(mean_HW(tap)))
        loss    = loss_weight * logits + stage_weight * stages
    eps: one value for all, or one for each tap from shallow to deep and a last one for the logits. At eps = 1 ofa is
    the cross-entropy to the teacher's probabilities; its floor is their entropy, not 0. No tau^2, as released.
    """

    paper = "arXiv 2310.19444"
    needs = ("logits", "student_taps")
    uses = ("labels",)
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing: every picture has its own term"

    def __init__(
        self,
        pair: Pair,
        *,
        eps: tuple[float, ...] = (1.0,),
        tau: float = 1.0,
        loss_weight: float = 1.0,
        stage_weight: float = 1.0,
    ):
        super().__init__()
        taps = pair.student.taps
        if not taps or not pair.classes:
            raise ValueError("OFA needs the student's taps and the number of classes")
        if len(eps) not in (1, len(taps) + 1):
            raise ValueError(f"eps must be 1 number, or {len(taps) + 1} for {len(taps)} taps and the logits, not {eps}")
        above(0, tau=tau, eps=min(eps))
        at_least(0, loss_weight=loss_weight, stage_weight=stage_weight)
        self.names = tuple(tap.name for tap in taps)
        self.heads = nn.ModuleList(_stage_head(tap.channels, pair.classes) for tap in taps)
        self.eps = tuple(eps) if len(eps) > 1 else tuple(eps) * (len(taps) + 1)
        self.tau, self.loss_weight, self.stage_weight = tau, loss_weight, stage_weight

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student_BC, teacher_BC = logits_of(batch)
        target_B = target_classes(teacher_BC, batch.labels_B)
        logits = ofa_loss(student_BC, teacher_BC, target_B, self.eps[-1], self.tau)
        pooled = [batch.student.taps[name].mean((2, 3)) for name in self.names]
        stages = torch.stack(
            [
                ofa_loss(head(pooled_BF), teacher_BC, target_B, eps, self.tau)
                for head, pooled_BF, eps in zip(self.heads, pooled, self.eps)
            ]
        ).sum()
        return {"logits": logits, "stages": stages, "loss": self.loss_weight * logits + self.stage_weight * stages}


def ofa_loss(logits_BC, teacher_BC, target_B, eps=1.0, tau=1.0) -> torch.Tensor:
    """mean_B sum_C -((p + 1_t)^eps - 1_t) log q."""
    log_q = (logits_BC / tau).log_softmax(1)
    p_BC = (teacher_BC / tau).softmax(1)
    target_BC = torch.zeros_like(p_BC).scatter(1, target_B[:, None], 1.0)
    return -(((p_BC + target_BC) ** eps - target_BC) * log_q).sum(1).mean()


def _stage_head(channels, classes):
    """Small weights and a bias of 0, as released: at first a stage knows nothing."""
    head = nn.Linear(channels, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
