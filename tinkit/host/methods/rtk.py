"""RTK ("representative teacher keys"): Yang, Kao, Huang 2022, arXiv 2206.12788. A RECONSTRUCTION.

Only title and abstract were at hand, no formula and no code. They say: attention between feature maps of teacher and
student, useless information filtered out, better than the best attention-based method before it. tinkit's reading, with
AFD (see `afd`) as the certain base: the roles are turned round. Each student tap asks, the teacher's taps are the keys,
and only the best `top_k` keys of each picture are kept and share the weight. Whatever this measures is ours, not RTK's.

With one key kept its weight is A / A = 1, and the literal formula gives the projections no gradient at all: the keys
would be chosen by chance. So, a choice of ours: the student is trained on the kept keys, the attention as if all were
kept (`straight_through`), with the same value of the loss; `straight_through=False` is the literal formula.

Nothing behind the deepest tap gets gradient from the attention. Without labels only the KL term trains the embedding that
ships, and without logits nothing does: then add a method that does, for example `rtk+kd` or `rtk+mse`.
"""

import torch
from torch import nn

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.afd import Projection, check_options, map_errors, pooled, with_kd
from tinkit.host.methods.checks import at_least


class RTK(nn.Module):
    """Each student tap takes the attention map of its representative teacher taps, found by attention (reconstruction).

    f_t, f_s: taps (B, C, H, W), T of the teacher, S of the student; GAP: mean over positions; d = 128; v as in AFD.
        q_s  = BN(W_s GAP f_s)   (B, S, d),      k_t = ReLU(BN(W_t GAP f_t))   (B, T, d)
        A_st = softmax_t( (<q_s, k_t> + <p_s, p_t>) / sqrt(d) )                (B, S, T); p learned
        A'   = A * mask / sum_t(A * mask),  mask: the top_k of each row, or with top_k = 0 all A_st >= 1/T
        attention = sum_s mean_b sum_t A'_st mean_hw (v_s - v_t)^2,  v_s on the grid of t
        loss = 200 * attention + 0.9 * 4^2 KL(teacher || student at temperature 4)
    The mask has no gradient.
    """

    paper = "arXiv 2206.12788"
    needs = ("student_taps", "teacher_taps")
    uses = ("logits",)
    reconstruction = True
    label_weight = 1.0
    gathers = "nothing; batch normalisation of keys and queries sees each process's own pictures"

    def __init__(
        self,
        pair: Pair,
        *,
        top_k: int = 1,
        straight_through: bool = True,
        qk_dim: int = 128,
        weight: float = 200.0,
        kd_weight: float = 0.9,
        temperature: float = 4.0,
    ):
        super().__init__()
        check_options(pair, qk_dim, weight, kd_weight, temperature)
        at_least(0, top_k=top_k)
        ours, theirs = pair.student.taps, pair.teacher.taps
        self.student_taps, self.teacher_taps = [t.name for t in ours], [t.name for t in theirs]
        self.top_k, self.straight_through = min(top_k, len(theirs)), straight_through
        self.weight, self.kd_weight, self.temperature = weight, kd_weight, temperature
        self.query = nn.ModuleList(Projection(tap.channels, qk_dim) for tap in ours)
        self.key = nn.ModuleList(Projection(tap.channels, qk_dim) for tap in theirs)
        self.place_s = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(ours), qk_dim)))
        self.place_t = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(theirs), qk_dim)))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student = [batch.student.taps[name] for name in self.student_taps]
        teacher = [batch.teacher.taps[name] for name in self.teacher_taps]
        weights_BST = self.attention(student, teacher)
        kept_BST = keep(weights_BST, self.top_k)
        if self.straight_through:
            kept_BST = kept_BST.detach() + weights_BST - weights_BST.detach()
        parts = {"attention": (kept_BST * map_errors(student, teacher).mT).sum((1, 2)).mean()}
        return with_kd(parts, batch, self.weight, self.kd_weight, self.temperature)

    def attention(self, student, teacher) -> torch.Tensor:
        """(B, S, T), every row over the teacher's taps adds up to 1."""
        query_BSd, key_BTd = pooled(self.query, student), pooled(self.key, teacher).relu()
        logits_BST = query_BSd @ key_BTd.mT + self.place_s @ self.place_t.mT
        return (logits_BST / query_BSd.shape[-1] ** 0.5).softmax(dim=2)


def keep(weights_BST, top_k) -> torch.Tensor:
    """The weights of the top_k keys of each row (0: of all with at least 1/T), others 0, rows adding up to 1 again."""
    fixed_BST = weights_BST.detach()
    if top_k:
        mask_BST = torch.zeros_like(fixed_BST).scatter_(2, fixed_BST.topk(top_k, dim=2).indices, 1)
    else:  # the largest is never below 1/T, but rounding may say so
        mean = 1 / weights_BST.shape[2]
        mask_BST = (fixed_BST >= fixed_BST.amax(2, keepdim=True).clamp(max=mean)).to(fixed_BST.dtype)
    masked_BST = weights_BST * mask_BST
    return masked_BST / masked_BST.sum(2, keepdim=True)
