"""DKD: Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", arXiv 2203.08679.

KD's divergence falls into two: how sure the teacher is of the target class (TCKD), and how it spreads the rest over the
other classes (NCKD), the second damped by 1 - p_t, so by the teacher's own certainty. DKD weighs them freely.
Released defaults (mdistiller): alpha 1, beta 8, tau 4, and a linear warm-up over the first 20 of 240 epochs.
What differs here. The warm-up is that share of the epochs, whatever their number. The target class is the label where
there is one; for a picture without a label it is the teacher's top class (ours: the paper has labels throughout). The
other classes' logits are taken out, where the released code pushes the target's down by 1000: the same number. All in
log-probabilities, so that a certain teacher or student (p_t = 1 in float32) gives no NaN.
Legend: B pictures, C classes, R = C - 1 other classes.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import above, at_least, within
from tinkit.host.methods.kd import logits_of


class DKD(nn.Module):
    """KD taken apart: the target class against the rest, and the rest among itself, weighed freely.

    p, q = softmax of teacher_BC / tau and student_BC / tau; t the target class; p^ = p_c / (1 - p_t) for c other than t:
        tckd = tau^2 * mean_B [ p_t log(p_t / q_t) + (1 - p_t) log((1 - p_t) / (1 - q_t)) ]
        nckd = tau^2 * mean_B sum_R p^ log(p^ / q^)
        loss = min((epoch + 1) / (warmup * epochs), 1) * (alpha * tckd + beta * nckd)      epoch from 0, as in Batch
    A picture's KL is TCKD + (1 - p_t) NCKD (at tau 1), so beta = 8 keeps alive what certainty would damp.
    """

    paper = "arXiv 2203.08679"
    needs = ("logits",)
    uses = ("labels",)
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing: every picture has its own term"

    def __init__(
        self, pair: Pair, *, alpha: float = 1.0, beta: float = 8.0, tau: float = 4.0, warmup: float = 20 / 240
    ):
        super().__init__()
        if pair.classes is not None and pair.classes < 2:
            raise ValueError(f"{pair.classes} classes: there is no other class")
        at_least(0, alpha=alpha, beta=beta)
        above(0, tau=tau)
        within(0, 1, warmup=warmup)
        self.alpha, self.beta, self.tau = alpha, beta, tau
        self.warmup_epochs = warmup * pair.epochs

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student_BC, teacher_BC = logits_of(batch)
        target_B = target_classes(teacher_BC, batch.labels_B)
        tckd_B, nckd_B = decoupled(student_BC / self.tau, teacher_BC / self.tau, target_B)
        tckd, nckd = self.tau**2 * tckd_B.mean(), self.tau**2 * nckd_B.mean()
        warm = min((batch.epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return {"tckd": tckd, "nckd": nckd, "loss": warm * (self.alpha * tckd + self.beta * nckd)}


def decoupled(student_BC, teacher_BC, target_B) -> tuple[torch.Tensor, torch.Tensor]:
    """(TCKD, NCKD) of each picture, (B,) both; their KL is TCKD + (1 - p_t) NCKD."""
    (q_B2, q_BR), (p_B2, p_BR) = (_target_and_rest(logits, target_B) for logits in (student_BC, teacher_BC))
    return _kl(p_B2, q_B2), _kl(p_BR, q_BR)


def target_classes(teacher_BC, labels_B) -> torch.Tensor:
    """(B,) class numbers: the label where there is one (>= 0), else the teacher's top class."""
    top_B = teacher_BC.argmax(1)
    return top_B if labels_B is None else torch.where(labels_B >= 0, labels_B, top_B)


def _target_and_rest(logits_BC, target_B):
    """Logs of (p_t, 1 - p_t), (B, 2), and of the other classes' shares of the rest, (B, R)."""
    log_p = F.log_softmax(logits_BC, dim=1)
    others = torch.ones_like(log_p, dtype=torch.bool).scatter(1, target_B[:, None], False)
    rest_BR = log_p[others].view(len(log_p), -1)
    log_rest_B1 = rest_BR.logsumexp(1, keepdim=True)
    return torch.cat([log_p.gather(1, target_B[:, None]), log_rest_B1], dim=1), rest_BR - log_rest_B1


def _kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(1)
