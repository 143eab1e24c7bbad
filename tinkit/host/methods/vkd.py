"""VkD: Miles, Elezi and Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", arXiv 2403.06213.

A projector between student and teacher can learn a representation of its own, of which the student then knows nothing.
VkD lets it only turn the student's space into the teacher's, without stretching: W^T W = I keeps every inner product,
z W^T W z'^T = z z'^T. The teacher is normalised, so that no dimension of it outweighs the others. From the authors'
code (read): smooth L1, teacher-only layer norm, T^2 KL with gamma = 1 on the raw logits, cross-entropy beside it. Their
student has two heads, one for labels and one for the teacher's logits, and averages them; here one head gets both. Their
z_s is the mean of a ViT's patch tokens; here it is the global feature, which ships: a ViT's class token, and the mean of
its map for a CNN, where the two are one.
Their detection code adds a scale and a bias to each projected channel, which "standardise" on both sides would undo:
left out. Whitening is for generative models and is not in their repository: teacher only, a reading. Where the teacher
is narrower than the student, W has orthonormal rows instead and inner products are not kept.

How W stays orthonormal is a question of price: the paper has the exponential of a skew matrix, the code torch's
Householder map. Two cheap exact ways are here, both one Gram matrix and one triangular solve. "cholesky" (default): W is
the orthonormal factor of a free matrix V, W = V L^-T with L L^T = V^T V, never formed, as z W^T = (z L^-1) V^T; the scale
of V does not matter (nor does its weight decay), and L is float64, because V^T V squares the condition of V. "householder":
the reflections of the code in compact form; cheaper still, but slower to fit random linear teachers (48 -> 160, 64 -> 64,
AdamW with lr 5e-4 to 5e-3, three seeds), so not the default. Forward + backward of the projection alone, median CPU ms
over 3 (matrix_exp), 7 (torch's own householder, cayley) or 100 steps, and max |W^T W - I| after 100 steps of AdamW, lr
5e-3; batch 64, float32, one thread of an AMD EPYC shared with other work, torch 2.15.0:

                                     192 -> 1280    384 -> 1280    96 -> 320   max |W^T W - I| (96 -> 320)
    a linear layer, no constraint            1.6            2.8          0.4   2.8
    cholesky                                 9.6             36          1.5   9e-8
    householder, compact                     6.0             18          1.2   9e-7
    householder, torch's own                 807           2113           24   2e-7; 1.0 with weight decay, see below
    cayley, torch's own                      292            304          9.8   2e-7
    matrix_exp, torch's own                 3599           3678           80   2e-5

torch's Householder map multiplies by the diagonal of its parameter cut to an integer. One step of AdamW with weight decay
makes -1 to -0.99975, that is cut to 0, and the projection is 0 from then on (torch 2.15.0). It is not used here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import above, at_least, below, one_of
from tinkit.host.methods.kd import soft_kl

NORMS = ("layernorm", "standardise", "whiten")
TINY = 1e-6  # floor of a variance over the batch: one picture, or a dimension that never changes


class VkD(nn.Module):
    """Smooth L1 between the student, turned by a projection that keeps inner products, and the normalised teacher.

        feature = smooth_l1(z_s W^T, norm(z_t))                      z_s (B,ds)  W (dt,ds)  z_t (B,dt)   W^T W = I
        kl      = tau^2 mean_B KL(softmax(l_t / tau) || softmax(l_s / tau))   l (B,C), only where both have logits
        loss    = alpha feature + gamma kl

    norm: "layernorm" over the teacher's dimensions, no affine (classification); "standardise" each dimension over the
    batch, on both sides (detection); "whiten" the teacher over the batch (generation): with B <= dt pictures the
    covariance is not full and `whiten_eps` decides much of the result. parametrization: "cholesky", "householder",
    "matrix_exp".
    """

    paper = "arXiv 2403.06213"
    needs = ()
    uses = ("logits",)
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing: every process compares its own pictures (and normalises over them)"

    def __init__(
        self,
        pair: Pair,
        *,
        norm: str = "layernorm",
        parametrization: str = "cholesky",
        alpha: float = 1.0,
        gamma: float = 1.0,
        tau: float = 1.0,
        whiten_eps: float = 1e-3,
    ):
        super().__init__()
        one_of(NORMS, norm=norm)
        one_of(PROJECTIONS, parametrization=parametrization)
        at_least(0, alpha=alpha, gamma=gamma)
        above(0, tau=tau, whiten_eps=whiten_eps)
        below(1, whiten_eps=whiten_eps)
        self.norm, self.alpha, self.gamma, self.tau, self.whiten_eps = norm, alpha, gamma, tau, whiten_eps
        self.projection = PROJECTIONS[parametrization](pair.student.dim, pair.teacher.dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = batch.student, batch.teacher
        ours_BD, theirs_BD = self.projection(student.global_BD), teacher.global_BD.detach()
        if self.norm == "layernorm":
            theirs_BD = F.layer_norm(theirs_BD, theirs_BD.shape[-1:])
        elif self.norm == "standardise":
            ours_BD, theirs_BD = standardise(ours_BD), standardise(theirs_BD)
        else:
            theirs_BD = whiten(theirs_BD, self.whiten_eps)
        parts = {"feature": F.smooth_l1_loss(ours_BD, theirs_BD)}
        loss = self.alpha * parts["feature"]
        if self.gamma and student.logits_BC is not None and teacher.logits_BC is not None:
            parts["kl"] = self.tau**2 * soft_kl(student.logits_BC, teacher.logits_BC.detach(), self.tau)
            loss = loss + self.gamma * parts["kl"]
        return {**parts, "loss": loss}


def standardise(rows_BD: Tensor) -> Tensor:
    """Each dimension with mean 0 and variance 1 (B - 1 in the denominator, as the code has it) over the batch."""
    centred = rows_BD - rows_BD.mean(0)
    variance = centred.square().sum(0) / max(len(rows_BD) - 1, 1)
    return centred / variance.clamp_min(TINY).sqrt()


def whiten(rows_BD: Tensor, eps: float) -> Tensor:
    """Rows whose covariance over the batch is I: (x - mean) inv(L)^T with L L^T = (1 - eps) cov + eps I, in float64."""
    centred = (rows_BD - rows_BD.mean(0)).double()
    covariance = centred.T @ centred / max(len(rows_BD) - 1, 1)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    L = torch.linalg.cholesky((1 - eps) * covariance + eps * identity)
    return torch.linalg.solve_triangular(L, centred.T, upper=False).T.to(rows_BD.dtype)


class CholeskyProjection(nn.Module):
    """z (B,ds) -> z W^T (B,dt); W = V L^-T with L L^T = V^T V, V (longer, shorter) free and orthonormal at the start."""

    def __init__(self, ds: int, dt: int):
        super().__init__()
        self.wide = dt < ds  # then W = L^-1 V^T, with orthonormal rows
        self.V = nn.Parameter(nn.init.orthogonal_(torch.empty(max(ds, dt), min(ds, dt))))

    def forward(self, z_BD: Tensor) -> Tensor:
        L, V = self._factor(), self.V.to(z_BD.dtype)
        if self.wide:
            return _times_inverse((z_BD @ V).double(), L.T, upper=True).to(z_BD.dtype)
        return _times_inverse(z_BD.double(), L, upper=False).to(z_BD.dtype) @ V.T

    def _factor(self) -> Tensor:
        return torch.linalg.cholesky(gram(self.V.double()))


def gram(V: Tensor) -> Tensor:
    """V^T V, written so that value and gradient cost two products instead of three."""
    half = V.T @ V.detach()
    return half + half.T - half.detach()


def _times_inverse(rows: Tensor, triangle: Tensor, upper: bool) -> Tensor:
    """rows @ triangle^-1"""
    return torch.linalg.solve_triangular(triangle, rows, upper=upper, left=False)


class HouseholderProjection(nn.Module):
    """z (B,ds) -> z W^T (B,dt); W = the first columns of H_1 ... H_k, reflections at the columns v of V, unit diagonal.

    In compact form (Schreiber and Van Loan), a Gram matrix and a triangular solve instead of k steps:
    H_1 ... H_k = I - V M^-1 V^T with M the upper triangle of V^T V, its diagonal halved.
    """

    def __init__(self, ds: int, dt: int):
        super().__init__()
        self.wide = dt < ds  # then W = (...)^T, with orthonormal rows
        self.below = nn.Parameter(torch.geqrf(torch.randn(max(ds, dt), min(ds, dt)))[0].tril(-1))

    def forward(self, z_BD: Tensor) -> Tensor:
        V = self.below.tril(-1) + torch.eye(*self.below.shape, dtype=self.below.dtype, device=self.below.device)
        top = V[: V.shape[1]]
        products = gram(V)
        M = products.triu(1) + products.diagonal().diag() / 2
        if self.wide:
            return z_BD[:, : V.shape[1]] - _times_inverse(z_BD @ V, M, upper=True) @ top.T
        return F.pad(z_BD, (0, V.shape[0] - V.shape[1])) - _times_inverse(z_BD @ top, M.T, upper=False) @ V.T


def matrix_exp(ds: int, dt: int) -> nn.Module:
    """The first columns of exp(A - A^T), A (longer, longer), turned by a fixed random rotation (torch's own map)."""
    return orthogonal(nn.Linear(ds, dt, bias=False), orthogonal_map="matrix_exp")


PROJECTIONS = {"cholesky": CholeskyProjection, "householder": HouseholderProjection, "matrix_exp": matrix_exp}
