"""CMKD, a RECONSTRUCTION: Niu, Wang, Cai and Hou, "Correlation Matching Knowledge Distillation", arXiv 2410.06561.

The paper's formulas were not available when this was written. Known of it: Pearson's correlation for the values and
Spearman's for the ranks of the class outputs, weighed picture by picture by difficulty, a differentiable sorting, and a
z-score normalisation. All below that is more exact than this is ours, and no number of ours is the paper's: entropy of
the teacher as the difficulty, hard pictures lean on ranks, ranks of the student by pairwise sigmoids (the paper sorts),
the teacher's hard, ranks of z-scored logits, classes of a picture only (no intra-class term), tau, eps and loss_weight
(DIST's, with tau^2).
The rank part is not zero at equality: soft ranks are not quite the hard ones; the gap closes as eps goes to 0.
Soft ranks cost B * C^2 sigmoids, forward and again backward (recomputed), in pieces of bounded memory.
Legend: B pictures, C classes.
"""

import math

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import above, at_least, one_of, within
from tinkit.host.methods.dist import pearson
from tinkit.host.methods.kd import logits_of

PIECE = 2**20  # pairs compared at once: 4 MB in float32, a few times that at the peak
WEIGHTINGS = ("hard_to_ranks", "hard_to_values", "constant")


class CMKD(nn.Module):
    """Matches values (Pearson) and ranks (Spearman) of the class outputs, by the teacher's entropy. Reconstruction.

    z = (logits - mean_C) / (std_C + 1e-7), y = softmax(z / tau), H the entropy:
        values = mean_B (1 - w) * (1 - pearson_C(y_student, y_teacher))
        ranks  = mean_B w * (1 - pearson_C(softrank(z_student), rank(teacher)))
        w      = H(softmax(teacher_logits)) / log C          0 for a certain teacher, 1 for one that knows nothing
        loss   = loss_weight * tau^2 * (values + ranks)
    weighting: "hard_to_ranks" (w as above), "hard_to_values" (1 - w), "constant" (w = rank_share for every picture).
    eps: softness of the ranks, in standard deviations of the logits.
    """

    paper = "arXiv 2410.06561"
    needs = ("logits",)
    uses = ()
    reconstruction = True
    label_weight = 1.0
    gathers = "nothing: every picture has its own term"

    def __init__(
        self,
        pair: Pair,
        *,
        tau: float = 1.0,
        loss_weight: float = 2.0,
        eps: float = 0.1,
        weighting: str = "hard_to_ranks",
        rank_share: float = 0.5,
    ):
        super().__init__()
        if pair.classes is not None and pair.classes < 2:
            raise ValueError(f"{pair.classes} classes: nothing to rank")
        above(0, tau=tau, eps=eps)
        at_least(0, loss_weight=loss_weight)
        one_of(WEIGHTINGS, weighting=weighting)
        within(0, 1, rank_share=rank_share)
        self.tau, self.loss_weight, self.eps = tau, loss_weight, eps
        self.weighting, self.rank_share = weighting, rank_share

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student_BC, teacher_BC = logits_of(batch)
        z_BC = zscore(student_BC)
        y_student, y_teacher = (z_BC / self.tau).softmax(1), (zscore(teacher_BC) / self.tau).softmax(1)
        w_B = self._rank_weight(teacher_BC)
        values = ((1 - w_B) * (1 - pearson(y_student, y_teacher))).mean()
        ranks = (w_B * (1 - pearson(soft_rank(z_BC, self.eps), hard_rank(teacher_BC)))).mean()
        return {"values": values, "ranks": ranks, "loss": self.loss_weight * self.tau**2 * (values + ranks)}

    def _rank_weight(self, teacher_BC):
        if self.weighting == "constant":
            return torch.full_like(teacher_BC[:, 0], self.rank_share)
        difficulty_B = normalised_entropy(teacher_BC)
        return difficulty_B if self.weighting == "hard_to_ranks" else 1 - difficulty_B


def zscore(logits_BC) -> torch.Tensor:
    """Each row with mean 0 and standard deviation 1 (n - 1 in the denominator); a constant row becomes 0."""
    return (logits_BC - logits_BC.mean(1, keepdim=True)) / (logits_BC.std(1, keepdim=True) + 1e-7)


def normalised_entropy(logits_BC) -> torch.Tensor:
    """Entropy of softmax(logits) over log C: (B,), in [0, 1]."""
    log_p = logits_BC.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1) / math.log(logits_BC.shape[1])


def hard_rank(values_BC) -> torch.Tensor:
    """1 for the smallest of a row, C for the largest; equal values share the mean of their ranks."""
    values_BC = values_BC.contiguous()
    ordered = values_BC.sort(1).values
    smaller = torch.searchsorted(ordered, values_BC)
    smaller_or_equal = torch.searchsorted(ordered, values_BC, right=True)
    return (smaller + smaller_or_equal + 1).to(values_BC.dtype) / 2


def soft_rank(values_BC, eps: float, piece: int = PIECE) -> torch.Tensor:
    """0.5 + sum_j sigmoid((x_i - x_j) / eps): (B, C), the hard ranks as eps goes to 0.

    The comparison is made in pieces and made again on the way back: memory is B * C and a few pieces.
    """
    return _SoftRank.apply(values_BC, eps, max(1, piece // max(values_BC.numel(), 1)))


class _SoftRank(torch.autograd.Function):
    """`step` classes of every picture are compared with all classes at a time: (B, step, C)."""

    @staticmethod
    def forward(ctx, values_BC, eps, step):
        ctx.save_for_backward(values_BC)
        ctx.eps, ctx.step = eps, step
        return torch.cat([0.5 + s_BKC.sum(2) for _, s_BKC in _sigmoids(values_BC, eps, step)], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, slope_BC):
        """d / d x_k = sum_j sigmoid'((x_k - x_j) / eps) * (slope_k - slope_j) / eps, as sigmoid' is even."""
        pieces = []
        for some, s_BKC in _sigmoids(ctx.saved_tensors[0], ctx.eps, ctx.step):
            bell_BKC = s_BKC.addcmul_(s_BKC, s_BKC, value=-1)
            others_BK = (bell_BKC @ slope_BC[:, :, None]).squeeze(2)
            pieces.append((slope_BC[:, some] * bell_BKC.sum(2) - others_BK) / ctx.eps)
        return torch.cat(pieces, dim=1), None, None


def _sigmoids(values_BC, eps, step):
    for first in range(0, values_BC.shape[1], step):
        some = slice(first, first + step)
        yield some, (values_BC[:, some, None] - values_BC[:, None, :]).div_(eps).sigmoid_()
