"""The mapping: from the teacher's latent space into the student's, angles kept as well as the width allows.

    learned      LayerNorm + Linear, trained by TinTeM's similarity terms (the released form of arXiv 2411.15239)
    learned-pca  the same, started from the PCA basis
    pca          the PCA basis of the centred teacher features, in closed form: fitted once, frozen, nothing to train
    fitted       a ridge regression from teacher to student after training, for methods that have no mapping of their own

`center` subtracts the mean of the mapped teacher from the target: the similarity terms do not see a constant, so without
it a small student spends itself on one large common direction. For `pca` that is the mean of the fit, for the learned
ones a running mean. The mean of global and local features is kept apart; the map itself is shared (one head), unless the
global feature is the teacher's own pooled vector, which lives elsewhere: then there are two. Closed form and centring
are tinkit's own, not the paper's.
"""

from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from tinkit.errors import TinkitError
from tinkit.host.distill.gather import gather
from tinkit.host.features import Features

KINDS = ("pca", "learned", "learned-pca")
FITTED = "fitted"  # not a choice: what a method without a mapping gets after training
HEADS = ("ln_linear", "linear")
GLOBAL, LOCAL = 0, 1  # rows of the means


@dataclass(frozen=True)
class MappingSpec:
    """Widths of the teacher (`teacher_dim`, and `local_dim` where it differs) and of the student."""

    kind: str
    center: bool
    teacher_dim: int
    dim: int
    heads: int = 1
    local_dim: int | None = None
    head: str = "ln_linear"  # of a learned mapping

    def to_json(self):
        return asdict(self)


class Mapping(nn.Module):
    """teacher (.., teacher_dim) -> student space (.., dim). Buffers hold basis and means; all travel in one file."""

    mean: torch.Tensor  # (2, dim): of the mapped global and local features
    steps: torch.Tensor  # how often the running mean was updated

    def __init__(self, spec: MappingSpec):
        super().__init__()
        if spec.kind not in (*KINDS, FITTED):
            raise TinkitError("There is no such mapping.", seen=spec.kind, next_step="one of " + ", ".join(KINDS))
        if spec.head not in HEADS:
            raise ValueError(f"head {spec.head!r}, one of {', '.join(HEADS)}")
        self.spec = spec
        widths = [spec.teacher_dim, spec.local_dim or spec.teacher_dim][: spec.heads]
        self.head = nn.ModuleList([_make_head(spec, width) for width in widths])
        self.register_buffer("mean", torch.zeros(2, spec.dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def learned(self) -> bool:
        return self.spec.kind not in ("pca", FITTED)

    def raw(self, features_D: torch.Tensor, which: int) -> torch.Tensor:
        """The mapped teacher before centring; carries gradient to a learned head."""
        return self.head[min(which, len(self.head) - 1)](features_D)

    def target(self, mapped_D: torch.Tensor, which: int, stop_gradient=True) -> torch.Tensor:
        """What the student is trained on: detached, and centred when asked for."""
        mapped_D = mapped_D.detach() if stop_gradient else mapped_D
        return mapped_D - self.mean[which] if self.spec.center else mapped_D

    @torch.no_grad()
    def observe(self, mapped_D: torch.Tensor, which: int) -> None:
        """Let the running mean of a learned mapping follow; short memory at first, then 0.99."""
        if self.learned and self.spec.center:
            keep = min(0.99, (1 + self.steps.item()) / (10 + self.steps.item()))
            mean_D = gather(mapped_D.detach().to(self.mean).flatten(0, -2).mean(0, keepdim=True)).mean(0)
            self.mean[which].lerp_(mean_D, 1 - keep)

    def forward(self, features: Features) -> torch.Tensor:
        """The mapped global feature (B, dim): the target of the student's embedding."""
        return self.target(self.raw(features.global_BD, GLOBAL), GLOBAL)

    @torch.no_grad()
    def fit(self, features: "Moments", seed: int) -> None:
        """Set basis and means from the teacher's moments (pca and learned-pca)."""
        for which, head in enumerate(self.head):
            basis_Dd = features.basis(which, self.spec.dim, seed)
            cast(_FrozenBasis, head).start_from(basis_Dd, features.mean(which))
        for which in (GLOBAL, LOCAL):
            self.mean[which] = self.raw(features.mean(which)[None].float(), which)[0]
        if self.learned:
            self.mean.zero_()


def _make_head(spec: MappingSpec, width):
    if spec.kind in ("pca", FITTED):
        return _FrozenBasis(width, spec.dim)
    return _LearnedHead(width, spec.dim) if spec.head == "ln_linear" else _LinearHead(width, spec.dim)


class _FrozenBasis(nn.Module):
    """x -> x @ basis, an orthonormal projection (a rotation when the student is at least as wide)."""

    def __init__(self, width, dim):
        super().__init__()
        self.register_buffer("basis", torch.zeros(width, dim))

    def forward(self, features_D):
        return features_D @ self.basis

    def start_from(self, basis_Dd, mean_D):
        self.basis.copy_(basis_Dd)


class _LearnedHead(nn.Sequential):
    """LayerNorm + Linear with bias, the released head; teacher-side, maps down."""

    def __init__(self, width, dim):
        super().__init__(nn.LayerNorm(width), nn.Linear(width, dim))

    def start_from(self, basis_Dd, mean_D):
        """The PCA basis behind the LayerNorm, whose scale is left to training; the mean goes to the bias."""
        linear = self[1]
        linear.weight.copy_(basis_Dd.T)
        linear.bias.copy_(-(self[0](mean_D[None].float()) @ linear.weight.T)[0])


class _LinearHead(nn.Linear):
    """A plain matrix: orthogonality can be read off it."""

    def __init__(self, width, dim):
        super().__init__(width, dim, bias=False)

    def start_from(self, basis_Dd, mean_D):
        self.weight.copy_(basis_Dd.T)


def fit_afterwards(teacher_ND, student_ND) -> tuple[Mapping, float] | None:
    """A ridge regression from teacher features to the student's embeddings, and its share of explained variance.

    The penalty is chosen on every tenth row, which the fit does not see, and the share is theirs. None when not even the
    best explains anything there: then there is no mapping to speak of.
    """
    teacher_ND, student_ND = np.asarray(teacher_ND, np.float64), np.asarray(student_ND, np.float64)
    kept = np.arange(len(teacher_ND)) % 10 == 9
    if not kept.any():
        return None
    mean_D, mean_d = teacher_ND[~kept].mean(0), student_ND[~kept].mean(0)
    inputs, answers = teacher_ND - mean_D, student_ND - mean_d
    values, vectors_DD = np.linalg.eigh(inputs[~kept].T @ inputs[~kept])
    across_Dd = vectors_DD.T @ (inputs[~kept].T @ answers[~kept])
    best_share, best_Dd = 0.0, None
    for penalty in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        weight_Dd = vectors_DD @ (across_Dd / (values + penalty * max(values.mean(), 1e-12))[:, None])
        wrong = ((inputs[kept] @ weight_Dd - answers[kept]) ** 2).sum()
        share = 1 - wrong / max((answers[kept] ** 2).sum(), 1e-12)
        if share > best_share:
            best_share, best_Dd = float(share), weight_Dd
    if best_Dd is None:
        return None
    mapping = Mapping(MappingSpec(FITTED, True, teacher_ND.shape[1], student_ND.shape[1]))
    cast(_FrozenBasis, mapping.head[0]).start_from(torch.from_numpy(best_Dd).float(), None)
    mapping.mean[:] = torch.from_numpy(mean_D @ best_Dd - mean_d).float()
    return mapping, best_share


class Moments:
    """Sum and outer products of teacher features, in float64: all that PCA needs of any number of pictures.

    `local`: the local features have a head of their own and need their products too; otherwise their mean will do.
    """

    def __init__(self, local=True):
        self.local = local
        self.count, self.total, self.outer = [0, 0], [None, None], [None, None]

    def add(self, features: Features) -> None:
        """Take in a batch."""
        for which, rows in ((GLOBAL, features.global_BD), (LOCAL, features.local_BLD)):
            if rows is None:
                continue
            rows = rows.detach().flatten(0, -2).double().cpu()
            self.count[which] += len(rows)
            self.total[which] = rows.sum(0) + (0 if self.total[which] is None else self.total[which])
            if which == GLOBAL or self.local:
                self.outer[which] = rows.T @ rows + (0 if self.outer[which] is None else self.outer[which])

    def mean(self, which) -> torch.Tensor:
        which = which if self.count[which] else GLOBAL
        return self.total[which] / self.count[which]

    def basis(self, which, dim, seed) -> torch.Tensor:
        """(D, dim) float32: the leading eigenvectors of the covariance, largest first.

        With dim > D all of them, turned into the wider space by a random rotation drawn from `seed`: inner products stay.
        """
        mean_D = self.mean(which)
        covariance_DD = self.outer[which] / self.count[which] - torch.outer(mean_D, mean_D)
        _, vectors_DD = torch.linalg.eigh(covariance_DD)
        basis = vectors_DD.flip(1)[:, :dim]
        if dim > len(mean_D):
            generator = torch.Generator().manual_seed(seed)
            rotation, _ = torch.linalg.qr(torch.randn(dim, len(mean_D), dtype=torch.float64, generator=generator))
            basis = basis @ rotation.T
        return basis.float()
