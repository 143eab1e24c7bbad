"""CRD ("Contrastive Representation Distillation"): Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699.

Out of the picture itself and K others, the student's embedding should pick out the teacher's embedding of the same
picture, and the other way round. The K others come from two memory banks, one row a picture, so their number does not
hang on the batch. Formulas as in the authors' code (RepDistiller, crd/, read): noise-contrastive estimation, constants
Z set once at the first training step, rows moved by `momentum` towards the new embedding after the loss. What differs:
* The authors draw negatives from other classes. Here no label is asked for: any other picture, with replacement, or each
  other picture exactly once where there are no more than K.
* A picture that is twice in a batch moves its row once, by the mean of its embeddings.
* Worked out in logarithms; the code's 1e-7 in the numerators' logarithm (a constant of about 3e-7 a negative) is gone.
Memory: 2 * N * 128 numbers for the banks, and a few (B, N) matrices while a step lasts.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.gather import gather
from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import above, at_least, below

EPS = 1e-7


class CRD(nn.Module):
    """Picks the teacher's embedding of the same picture out of thousands of others, and the reverse.

    s, t: global features through a linear layer to 128, length 1 (B, E); S, T: the banks (N, E); j over i and K others.
        P_ij = exp(<s_i, T_j> / tau) / Z_s          (teacher: exp(<t_i, S_j> / tau) / Z_t)
        Z = N * mean of exp(...) at the first step,     c = K / N
        student = -mean_i [ log P_ii / (P_ii + c)  +  sum_{j != i} log c / (P_ij + c) ]     (teacher likewise)
        loss = 0.8 * (student + teacher)
    The student part trains the student and its layer, the teacher part the teacher's layer alone (banks are constants).
    """

    paper = "arXiv 1910.10699"
    needs = ()
    uses = ()
    reconstruction = False
    label_weight = 1.0
    gathers = (
        "nothing with gradient; embeddings and numbers of all pictures go into every process's banks, Z is their mean"
    )

    bank_student_NE: torch.Tensor
    bank_teacher_NE: torch.Tensor
    log_z: torch.Tensor

    def __init__(
        self,
        pair: Pair,
        *,
        embed_dim: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
        weight: float = 0.8,
    ):
        super().__init__()
        if pair.pictures < 1:
            raise ValueError("CRD keeps a row a picture: Pair.pictures must be their number")
        at_least(1, embed_dim=embed_dim, negatives=negatives)
        above(0, tau=tau)
        at_least(0, momentum=momentum, weight=weight)
        below(1, momentum=momentum)
        self.negatives = min(negatives, pair.pictures - 1)
        self.tau, self.momentum, self.weight = tau, momentum, weight
        self.embed_student = nn.Linear(pair.student.dim, embed_dim)
        self.embed_teacher = nn.Linear(pair.teacher.dim, embed_dim)
        generator = torch.Generator().manual_seed(pair.seed)
        bound = (3 / embed_dim) ** 0.5  # rows of about length 1
        for name in ("bank_student_NE", "bank_teacher_NE"):
            bank = torch.rand(pair.pictures, embed_dim, generator=generator) * 2 * bound - bound
            self.register_buffer(name, bank)
        self.register_buffer("log_z", torch.full((2,), torch.nan))  # student, teacher; NaN: not set yet

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student_BE = F.normalize(self.embed_student(batch.student.global_BD), dim=1)
        teacher_BE = F.normalize(self.embed_teacher(batch.teacher.global_BD), dim=1)
        index_B = batch.index_B.to(student_BE.device)
        chosen_BK = torch.cat([index_B[:, None], self._others(batch, index_B)], dim=1)
        scores = [
            self._scores(student_BE, self.bank_teacher_NE, chosen_BK),
            self._scores(teacher_BE, self.bank_student_NE, chosen_BK),
        ]
        log_z = self._constants(scores)
        parts = {name: self._nce(s - z) for name, s, z in zip(("student", "teacher"), scores, log_z)}
        if self.training:
            self._remember(student_BE.detach(), teacher_BE.detach(), index_B)
        parts["loss"] = self.weight * (parts["student"] + parts["teacher"])
        return parts

    def _others(self, batch: Batch, index_B):
        """Numbers of the negatives (B, K): never the picture's own, however often it stands in the batch."""
        others = len(self.bank_student_NE) - 1
        if self.negatives == others:
            draws_BK = torch.arange(others).expand(len(index_B), -1)
        else:
            draws_BK = torch.randint(others, (len(index_B), self.negatives), generator=batch.generator())
        draws_BK = draws_BK.to(index_B.device)
        return draws_BK + (draws_BK >= index_B[:, None])  # jump over the own number

    def _scores(self, anchors_BE, bank_NE, chosen_BK):
        """<anchor, row> / tau of the chosen rows: (B, 1 + K), the positive first."""
        # All N products, then a choice: K rows of 128 numbers a picture would be far more memory than N products.
        # A copy of the bank, because the bank is written before the backward pass.
        return (anchors_BE @ bank_NE.clone().mT).gather(1, chosen_BK) / self.tau

    def _constants(self, scores):
        """log Z of both directions; set at the first training step, the same on every process."""
        if not self.log_z.isnan().any():
            return self.log_z
        own_2 = torch.stack([_log_mean_exp(s.detach().flatten()) for s in scores])
        log_z = _log_mean_exp(gather(own_2[None])) + math.log(len(self.bank_student_NE))
        if self.training:
            self.log_z.copy_(log_z)
        return log_z

    def _nce(self, log_p_BK):
        """Noise-contrastive loss of log P (B, 1 + K): is it the positive, or one of K drawn uniformly from N?"""
        log_c = math.log(self.negatives / len(self.bank_student_NE) + EPS)
        positive_B = F.logsigmoid(log_p_BK[:, 0] - log_c)
        negative_B = F.logsigmoid(log_c - log_p_BK[:, 1:]).sum(1)
        return -(positive_B + negative_B).mean()

    @torch.no_grad()
    def _remember(self, student_BE, teacher_BE, index_B):
        """Moves the rows of the pictures seen, of all processes, and scales them to length 1."""
        index_B = gather(index_B)
        same_BB = (index_B[:, None] == index_B).to(student_BE.dtype)
        same_BB /= same_BB.sum(1, keepdim=True)
        for bank_NE, rows_BE in ((self.bank_student_NE, student_BE), (self.bank_teacher_NE, teacher_BE)):
            mean_BE = same_BB @ gather(rows_BE)  # equal for copies of a picture, so the order of writing is no matter
            moved_BE = self.momentum * bank_NE[index_B] + (1 - self.momentum) * mean_BE
            bank_NE[index_B] = F.normalize(moved_BE, dim=1)


def _log_mean_exp(values):
    return torch.logsumexp(values, 0) - math.log(len(values))
