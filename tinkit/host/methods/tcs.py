"""TCS, tailored coordinate system: Zhou, Zhu, Wu, AAAI 2025, arXiv 2412.09388. A READING: there is no public code.

One pass of a self-supervised teacher over the training pictures gives a coordinate system by PCA; the student's feature
is expressed in it and classified from there, and the coordinates are tailored by feature selection: a mask is trained,
and step by step the dimensions that matter least are dropped. Every module is linear, so all of it folds into one
classifier on the student's embedding and costs nothing at inference. What is known and what is ours:
    [A] abstract: one pass of the teacher, PCA, iterative feature selection, no cost at inference.
    [S] third-party summary: trainable mask, accumulated gradients say what is dropped; optional mimicking by the LSH loss
        (Wang, Ge, Wu 2021, its code seen) on cached features of unaugmented pictures; a random basis is much worse.
    [*] design choices: the trainable map A before the basis, d = all D_t dimensions, the score sum |dL/dm|, `keep` = half
        of them, `drops` = 10 over the first third of training, 2048 bits, weights 1, the L2 term kept, no whitening.
With A and C free the basis would bind nothing (C diag(m) U' A is any linear map), so the terms that tie v = A(f) to the
teacher's own space are on by default; `basis="random"` and `basis="none"` are the controls. The teacher's features of a
batch are those of the pictures as stored (tinkit's views), not of unaugmented ones. Poor with fewer pictures than
dimensions [S]: PCA's last directions are arbitrary then.
Legend: B pictures, N pictures of `fit`, S and D widths of student and teacher, H bits, K classes.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.features import Features
from tinkit.host.methods.checks import at_least, one_of, within

BASES = ("pca", "random", "none")


class TCS(nn.Module):
    """Classifies the student in the teacher's PCA coordinates and drops, step by step, those that matter least.

    v = A(f) (B,D),  z = (v - mean) U (B,D),  logits = C(m * z) (B,K);  f (B,S) student, t (B,D) teacher
        ce  = cross-entropy of the logits, over labelled pictures
        lsh = BCE with logits of (W v + b) against [W t + b > 0], W (H,D) random and fixed, b = -median of W t
        l2  = MSE(v, t)
    loss = ce_weight ce + lsh_weight lsh + l2_weight l2;  lsh and l2 take every picture.
    m (D) starts at 1; its score is the sum over steps of |d ce / d m|. See `dimensions_at` for when how many remain.
    """

    paper = "arXiv 2412.09388"
    needs = ("labels",)
    uses = ()
    reconstruction = True
    label_weight = 0.0  # it brings its own cross-entropy, through its own classifier
    gathers = (
        "nothing: the cross-entropy is the mean over each process's own labelled pictures; the mask's gradient is "
        "averaged over processes for the scores, so that all drop the same"
    )
    active_D: torch.Tensor  # buffers, from here on
    score_D: torch.Tensor
    W_HD: torch.Tensor
    b_H: torch.Tensor
    mean_D: torch.Tensor
    U_DD: torch.Tensor
    fitted: torch.Tensor

    def __init__(
        self,
        pair: Pair,
        *,
        basis: str = "pca",
        whiten: bool = False,
        bits: int = 2048,
        keep: int = 0,
        drops: int = 10,
        ce_weight: float = 1.0,
        lsh_weight: float = 1.0,
        l2_weight: float = 1.0,
    ):
        super().__init__()
        S, D = pair.student.dim, pair.teacher.dim
        if not pair.classes:
            raise ValueError("tcs needs the number of classes")
        one_of(BASES, basis=basis)
        at_least(1, bits=bits, drops=drops)
        within(0, D, keep=keep)
        at_least(0, ce_weight=ce_weight, lsh_weight=lsh_weight, l2_weight=l2_weight)
        self.basis, self.whiten, self.drops = basis, whiten, drops
        self.classes, self.dimensions, self.keep = pair.classes, D, keep or max(1, D // 2)
        self.last_drop = max(1, pair.epochs // 3)  # epoch
        self.weights = {"ce": ce_weight, "lsh": lsh_weight, "l2": l2_weight}
        self.A, self.C = nn.Linear(S, D), nn.Linear(D, pair.classes)
        self.mask_D = nn.Parameter(torch.ones(D))
        self.register_buffer("active_D", torch.ones(D, dtype=torch.bool))
        self.register_buffer("score_D", torch.zeros(D))
        generator = torch.Generator().manual_seed(pair.seed)
        self.register_buffer("W_HD", torch.randn(bits, D, generator=generator))
        self.register_buffer("b_H", torch.zeros(bits))
        self.register_buffer("mean_D", torch.zeros(D))
        self.register_buffer("U_DD", _random_basis(D, generator) if basis == "random" else torch.eye(D))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def fit(self, teacher: Callable[[], Iterator[Features]]) -> None:
        """Mean, basis and hash thresholds from one pass over the teacher's global features, in float64."""
        rows = [features.global_BD.detach().double().cpu() for features in teacher()]
        if not rows:
            raise ValueError("tcs cannot fit on no pictures")
        rows_ND = torch.cat(rows)
        mean_D = rows_ND.mean(0)
        centred_ND = rows_ND - mean_D
        covariance_DD = centred_ND.T @ centred_ND / max(len(rows_ND) - 1, 1)
        U_DD = pca_basis(covariance_DD) if self.basis == "pca" else self.U_DD.double().cpu()
        if self.whiten:
            variance_D = (U_DD * (covariance_DD @ U_DD)).sum(0)
            # Directions in which the teacher hardly moves are not blown up without bound.
            U_DD = U_DD / (variance_D + 1e-5 * variance_D.max() + 1e-12).sqrt()
        self.mean_D.copy_(mean_D)
        self.U_DD.copy_(U_DD)
        self.b_H.copy_(-_median_of_hashes(rows_ND, self.W_HD.double().cpu()))
        self.fitted.fill_(True)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """{"loss", "ce", "lsh", "l2"}: scalars, before weighting. ValueError before `fit`."""
        if not self.fitted:
            raise ValueError("tcs must be fitted on the teacher before training")
        if self.training:
            self._drop_at(batch.epoch)
        f_BS, t_BD = batch.student.global_BD, batch.teacher.global_BD.detach()
        v_BD = self.A(f_BS)
        z_BD = (v_BD - self.mean_D) @ self.U_DD
        logits_BK = self.C(z_BD * self._mask())
        ce, error_BK = labelled_cross_entropy(logits_BK, batch.labels_B)
        if self.training and batch.epoch < self.last_drop:
            self._score(z_BD, error_BK)
        signs_BH = (F.linear(t_BD, self.W_HD, self.b_H) > 0).to(v_BD)
        lsh = F.binary_cross_entropy_with_logits(F.linear(v_BD, self.W_HD, self.b_H), signs_BH)
        parts = {"ce": ce, "lsh": lsh, "l2": F.mse_loss(v_BD, t_BD)}
        parts["loss"] = sum(self.weights[name] * part for name, part in parts.items())
        return parts

    def head(self) -> nn.Linear:
        """A, basis, mask and C as one classifier on the student's embedding (S -> K); folded in float64."""
        with torch.no_grad():
            C_KD = self.C.weight.double() * self._mask().double() @ self.U_DD.double().T
            folded = nn.Linear(self.A.in_features, self.classes, device=C_KD.device, dtype=self.A.weight.dtype)
            folded.weight.copy_(C_KD @ self.A.weight.double())
            folded.bias.copy_(C_KD @ (self.A.bias.double() - self.mean_D.double()) + self.C.bias.double())
        return folded

    def dimensions_at(self, epoch: int) -> int:
        """How many dimensions remain in this epoch: all in the first, `keep` from a third of training on, in between
        `drops` equal steps (fewer where that time has fewer epochs). A training of one epoch drops none."""
        done = min(self.drops, self.drops * epoch // self.last_drop)
        return self.dimensions - round((self.dimensions - self.keep) * done / self.drops)

    def _mask(self):
        """m with exact zeros, and no gradient, where a dimension is dropped."""
        return self.mask_D * self.active_D.to(self.mask_D)

    @torch.no_grad()
    def _score(self, z_BD, error_BK):
        """Add |d ce / d m|, with d ce / d m = sum over B of z * (error C), written out: no hook that a copy could share.

        Averaged over processes before the absolute value: that is the gradient which DDP applies.
        """
        gradient_D = (z_BD * (error_BK @ self.C.weight)).sum(0) * self.active_D
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient_D)
            gradient_D /= torch.distributed.get_world_size()
        self.score_D += gradient_D.abs()

    @torch.no_grad()
    def _drop_at(self, epoch: int):
        """Keep the highest scores of those still there; of equals (no labels seen) the direction of more variance."""
        count = self.dimensions_at(epoch)
        if int(self.active_D.sum()) <= count:
            return
        scores = torch.where(self.active_D, self.score_D, -1.0)
        kept = scores.argsort(descending=True, stable=True)[:count]
        self.active_D.zero_()
        self.active_D[kept] = True
        self.score_D.zero_()


def labelled_cross_entropy(logits_BK, labels_B):
    """(mean cross-entropy over rows with a label, its gradient by the logits (B,K)); both 0 without such rows."""
    if labels_B is None:
        labels_B = torch.full((len(logits_BK),), -1, device=logits_BK.device)
    count = (labels_B >= 0).sum().clamp(min=1)
    loss = F.cross_entropy(logits_BK, labels_B, ignore_index=-1, reduction="sum") / count
    truth_BK = F.one_hot(labels_B.clamp(min=0), logits_BK.shape[1])
    error_BK = (logits_BK.detach().softmax(1) - truth_BK) * (labels_B >= 0)[:, None] / count
    return loss, error_BK


def pca_basis(covariance_DD: torch.Tensor) -> torch.Tensor:
    """Eigenvectors as columns, most variance first; the largest entry of each is positive (eigh leaves the sign open)."""
    U_DD = torch.linalg.eigh(covariance_DD).eigenvectors.flip(1)
    largest_D = U_DD.gather(0, U_DD.abs().argmax(0, keepdim=True))
    return U_DD * torch.where(largest_D < 0, -1.0, 1.0)


def _random_basis(D: int, generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0].float()


def _median_of_hashes(rows_ND, W_HD, at_once=256):
    """Median over the rows of W t, (H) float64; some bits at a time bound memory."""
    medians = [np.median((some @ rows_ND.T).numpy(), axis=1) for some in W_HD.split(at_once)]
    return torch.from_numpy(np.concatenate(medians))
