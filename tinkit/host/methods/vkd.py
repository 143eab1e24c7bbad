"""VkD: Miles, Elezi and Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", arXiv 2403.06213.

A projector between student and teacher can learn a representation of its own, of which the student then knows nothing.
VkD lets it only turn the student's space into the teacher's, without stretching: W^T W = I keeps every inner product,
z W^T W z'^T = z z'^T. The teacher is normalised, so that no dimension of it outweighs the others. From the authors'
code (read): smooth L1, teacher-only layer norm, T^2 KL with gamma = 1 on the raw logits, cross-entropy beside it. Their
student has two heads, one for labels and one for the teacher's logits, and averages them; here one head gets both.
Their detection code adds a scale and a bias to each projected channel, which "standardise" on both sides would undo:
left out. Whitening is for generative models and is not in their repository: teacher only, a reading. Where the teacher
is narrower than the student, W has orthonormal rows instead and inner products are not kept.

How W stays orthonormal is a question of price. The paper has the exponential of a skew matrix, the code Householder
reflections; with a wide teacher both cost more than a small student's whole step. Here W is the orthonormal factor of a
free matrix V, through the Cholesky factor of its Gram matrix (L L^T = V^T V, W = V L^-T, never formed: z W^T =
(z L^-1) V^T). It reaches the same set of matrices, does not see the scale of V (so weight decay does not matter), and
the Gram matrix and L are kept in float64, because a Cholesky factor squares the condition of V.

    forward + backward of the projection alone, ms         192 -> 1280   384 -> 1280   largest |W^T W - I|
    plain linear layer, no constraint                      {TABLE}
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from tinkit.host.pair import Batch, Pair

NORMS = ("layernorm", "standardise", "whiten")
TINY = 1e-6  # floor of a variance over the batch: one picture, or a dimension that never changes


class VkD(nn.Module):
    """Smooth L1 between the student, turned by an orthonormal projection, and the normalised teacher.

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
        norm="layernorm",
        parametrization="cholesky",
        alpha=1.0,
        gamma=1.0,
        tau=1.0,
        whiten_eps=1e-3,
    ):
        super().__init__()
        if norm not in NORMS or parametrization not in PROJECTIONS:
            raise ValueError(f"norm {norm!r} of {NORMS}, parametrization {parametrization!r} of {tuple(PROJECTIONS)}")
        if tau <= 0 or not 0 < whiten_eps < 1 or min(alpha, gamma) < 0:
            raise ValueError(f"tau {tau}, whiten_eps {whiten_eps}, alpha {alpha}, gamma {gamma}")
        self.norm, self.alpha, self.gamma, self.tau, self.whiten_eps = norm, alpha, gamma, tau, whiten_eps
        self.projection = PROJECTIONS[parametrization](pair.student.dim, pair.teacher.dim)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = batch.student, batch.teacher
        ours_BD, theirs_BD = self.projection(student.global_BD), teacher.global_BD
        if self.norm == "layernorm":
            theirs_BD = F.layer_norm(theirs_BD, theirs_BD.shape[-1:])
        elif self.norm == "standardise":
            ours_BD, theirs_BD = standardise(ours_BD), standardise(theirs_BD)
        else:
            theirs_BD = whiten(theirs_BD, self.whiten_eps)
        parts = {"feature": F.smooth_l1_loss(ours_BD, theirs_BD)}
        loss = self.alpha * parts["feature"]
        if self.gamma and student.logits_BC is not None and teacher.logits_BC is not None:
            log_q, log_p = (F.log_softmax(logits / self.tau, dim=1) for logits in (student.logits_BC, teacher.logits_BC))
            parts["kl"] = self.tau**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
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

    @property
    def weight(self) -> Tensor:
        """W (dt,ds), in float64."""
        W = _times_inverse(self.V.double(), self._factor().T, upper=True)
        return W.T if self.wide else W

    def _factor(self) -> Tensor:
        V = self.V.double()
        half = V.T @ V.detach()
        gram = half + half.T - half.detach()  # V^T V, and its gradient, at two products instead of three
        return torch.linalg.cholesky(gram)


def _times_inverse(rows: Tensor, triangle: Tensor, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(triangle, rows, upper=upper, left=False)


class Reflections(nn.Module):
    """A parametrization of `weight`: the product of the Householder reflections below the diagonal of V.

    torch's own map multiplies by the diagonal of V cut to integers; weight decay makes -1 to -0.99997, that is cut to
    0, and the projection is 0 after one step of AdamW (torch 2.15). Here the diagonal is not read.
    """

    def forward(self, V: Tensor) -> Tensor:
        if V.shape[0] < V.shape[1]:
            return self.forward(V.T).T
        below = V.tril(-1)
        return torch.linalg.householder_product(below, 2 / (1 + below.square().sum(0)))

    def right_inverse(self, W: Tensor) -> Tensor:
        return self.right_inverse(W.T).T if W.shape[0] < W.shape[1] else torch.geqrf(W)[0]


def householder(ds: int, dt: int) -> nn.Module:
    linear = nn.Linear(ds, dt, bias=False)
    parametrize.register_parametrization(linear, "weight", Reflections())
    return linear


def matrix_exp(ds: int, dt: int) -> nn.Module:
    """The first columns of exp(A - A^T), A (longer, longer), turned by a fixed random rotation (torch's own map)."""
    return orthogonal(nn.Linear(ds, dt, bias=False), orthogonal_map="matrix_exp")


PROJECTIONS = {"cholesky": CholeskyProjection, "householder": householder, "matrix_exp": matrix_exp}
