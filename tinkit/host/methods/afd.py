"""AFD ("Show, Attend and Distill: Attention-based Feature Matching"): Ji, Heo, Park, AAAI 2021, arXiv 2102.02973.

No pairing of layers by hand: for every teacher tap an attention over all student taps says which of them should learn
its attention map (AT's), and is trained along. As in the authors' code (clovaai/attention-feature-distillation, read):
student maps are brought to the teacher's grid by adaptive average pooling, in either direction, and nothing is detached,
so the student also moves through the keys. What differs: a batch of one picture, where the code stops, is normalised by
the running statistics; and the KL term is there only when both networks have logits. The authors tap every residual
block, tinkit one map a stage. (A method of the same letters, "attentive feature distillation and selection", is another.)

Nothing behind the deepest tap gets gradient from the attention. Without labels only the KL term trains the embedding that
ships, and without logits nothing does: then add a method that does, for example `afd+kd` or `afd+mse`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.at import attention_map, energy
from tinkit.host.methods.checks import above, at_least
from tinkit.host.methods.kd import soft_kl
from tinkit.host.methods.lone_norm import BatchNorm1d


class AFD(nn.Module):
    """Learns which student tap should take each teacher tap's attention map, all against all.

    f_t, f_s: taps (B, C, H, W), T of the teacher, S of the student; GAP: mean over positions; d = 128.
        q_t  = BN(W_t GAP f_t)                                      (B, T, d)
        k_st = BN(W [ReLU(BN(W_s GAP f_s))]), a piece for each t    (B, S, T, d)
        v    = AT's map (B, H*W), length 1; v_s on the grid of t
        A_ts = softmax_s( (<k_st, q_t> + <p_t, p_s>) / sqrt(d) )    (B, T, S); p learned
        attention = sum_t mean_b sum_s A_ts mean_hw (v_s - v_t)^2
        loss = 200 * attention + 0.9 * 4^2 KL(teacher || student at temperature 4)
    """

    paper = "arXiv 2102.02973"
    needs = ("student_taps", "teacher_taps")
    uses = ("logits",)
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing; batch normalisation of keys and queries sees each process's own pictures"

    def __init__(
        self, pair: Pair, *, qk_dim: int = 128, weight: float = 200.0, kd_weight: float = 0.9, temperature: float = 4.0
    ):
        super().__init__()
        check_options(pair, qk_dim, weight, kd_weight, temperature)
        ours, theirs = pair.student.taps, pair.teacher.taps
        self.student_taps, self.teacher_taps = [t.name for t in ours], [t.name for t in theirs]
        self.weight, self.kd_weight, self.temperature = weight, kd_weight, temperature
        self.query = nn.ModuleList(Projection(tap.channels, qk_dim) for tap in theirs)
        self.key = nn.ModuleList(Projection(tap.channels, qk_dim) for tap in ours)
        self.bilinear = Projection(qk_dim, qk_dim * len(theirs))
        self.place_t = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(theirs), qk_dim)))
        self.place_s = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(ours), qk_dim)))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student = [batch.student.taps[name] for name in self.student_taps]
        teacher = [batch.teacher.taps[name] for name in self.teacher_taps]
        weights_BTS = self.attention(student, teacher)
        parts = {"attention": (weights_BTS * map_errors(student, teacher)).sum((1, 2)).mean()}
        return with_kd(parts, batch, self.weight, self.kd_weight, self.temperature)

    def attention(self, student, teacher) -> torch.Tensor:
        """(B, T, S), every row over the student's taps adds up to 1."""
        query_BTd = pooled(self.query, teacher)
        key_BSd = pooled(self.key, student).relu()
        key_BSTd = self.bilinear(key_BSd.flatten(0, 1)).unflatten(1, (len(teacher), -1)).unflatten(0, key_BSd.shape[:2])
        logits_BTS = torch.einsum("bstd,btd->bts", key_BSTd, query_BTd) + self.place_t @ self.place_s.mT
        return (logits_BTS / query_BTd.shape[-1] ** 0.5).softmax(dim=2)


class Projection(nn.Module):
    """Linear layer and batch normalisation of rows; a single row is normalised by the running statistics."""

    def __init__(self, width, out):
        super().__init__()
        self.linear, self.norm = nn.Linear(width, out), BatchNorm1d(out)

    def forward(self, rows):
        return self.norm(self.linear(rows))


def pooled(projections, maps) -> torch.Tensor:
    """Each tap's mean over positions through its own projection: (B, taps, d)."""
    return torch.stack([project(f.mean((2, 3))) for project, f in zip(projections, maps)], dim=1)


def map_errors(student, teacher) -> torch.Tensor:
    """Mean squared difference of every student tap's attention map to every teacher tap's, on its grid: (B, T, S)."""
    energies = [energy(f)[:, None] for f in student]
    errors, on_grid = [], {}
    for theirs in teacher:
        grid = tuple(theirs.shape[-2:])
        if grid not in on_grid:
            maps = [F.adaptive_avg_pool2d(e, grid).flatten(1) for e in energies]
            on_grid[grid] = F.normalize(torch.stack(maps, dim=1), dim=2)  # (B, S, H*W)
        errors.append(((on_grid[grid] - attention_map(theirs)[:, None]) ** 2).mean(2))
    return torch.stack(errors, dim=1)


def with_kd(parts, batch: Batch, weight, kd_weight, temperature) -> dict[str, torch.Tensor]:
    """The parts with the KL term, where both networks have logits, and the weighted sum."""
    loss = weight * parts["attention"]
    student_BC, teacher_BC = batch.student.logits_BC, batch.teacher.logits_BC
    if kd_weight and student_BC is not None and teacher_BC is not None:
        parts["kd"] = temperature**2 * soft_kl(student_BC, teacher_BC, temperature)
        loss = loss + kd_weight * parts["kd"]
    return {**parts, "loss": loss}


def check_options(pair: Pair, qk_dim, weight, kd_weight, temperature):
    if not pair.student.taps or not pair.teacher.taps:
        raise ValueError("both networks must have taps")
    at_least(1, qk_dim=qk_dim)
    at_least(0, weight=weight, kd_weight=kd_weight)
    above(0, temperature=temperature)
