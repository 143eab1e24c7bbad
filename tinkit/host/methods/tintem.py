"""TinTeM ("teacher in the middle", released as CosPress): Mannix et al., arXiv 2411.15239.

The teacher is mapped into the student's space so that cosine similarities survive (L_global over the batch, L_local over
the positions of each picture; both train the mapping alone), and the student is trained straight on the mapped teacher
(L_feature, L_token; a stop-gradient stands between). Mapping and student learn at the same time and do not disturb each
other. The released form is `mapping="learned", center=False, cosines_weight=0`. tinkit's own additions, on by default and
measured in docs/mapping.md: the closed-form mapping and centring (`tinkit.host.mapping`), and a direct term on the
batch's cosine matrices. The paper's student is a ViT; a CNN's mean and map stand for class token and patches here (a reading).
Switches for ablations: temperatures, form, feature_cosine, the weights, head="linear" (no LayerNorm, no bias) and
stop_gradient=False (the student pulls at the mapping too). Those of the mapping's own training are refused where it is frozen.
Legend: B pictures, T = 1 + L tokens of a picture (the global one first), D width, n points.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.gather import gather
from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.features import Features
from tinkit.host.mapping import GLOBAL, HEADS, LOCAL, Mapping, MappingSpec, Moments
from tinkit.host.methods import options_of
from tinkit.host.methods.checks import above, at_least, one_of
from tinkit.host.methods.flat_cosine import SquaredNorms, flat_cosine, pooled_target, resampling_matrix
from tinkit.host.methods.sne import TEMPERATURES, sne


class TinTeM(nn.Module):
    """The teacher mapped into the student's space, angles kept; the student trained straight on it.

        loss = local + global + feature + token + cosines      (local and global only where the mapping learns)
        local   = mean over pictures of sne(teacher's tokens, mapped tokens)       within each picture, n = T
        global  = sne(teacher's globals, mapped globals)                           over the batch, n = B
        feature = mean of 1 - cos(student's tokens, mapped tokens)                 all T*D numbers as one vector
        token   = mean of 1 - cos(student's global, mapped global)
        cosines = mean over pairs of (cos(s_i, s_j) - cos(m_i, m_j))^2             tinkit's own; s student, m mapped

    form: "full" (symmetric joint probabilities) or "half" (conditional); feature_cosine: "flat" (as released) or
    "per_token"; mapping, center, head: see tinkit.host.mapping. A frozen mapping (pca, the default) leaves form,
    temperatures, head, stop_gradient, local_weight and global_weight nothing to do, so they must be as they are then.
    """

    paper = "arXiv 2411.15239"
    needs = ()
    uses = ("local",)
    reconstruction = False
    label_weight = 0.0
    gathers = (
        "the global term (and the cosines) over all processes, with gradient, as released; all else is per picture"
    )

    def __init__(
        self,
        pair: Pair,
        *,
        mapping="pca",
        center=True,
        head="ln_linear",
        stop_gradient=True,
        temperatures=TEMPERATURES,
        form="full",
        feature_cosine="flat",
        local_weight=1.0,
        global_weight=1.0,
        feature_weight=1.0,
        token_weight=1.0,
        cosines_weight=1.0,
    ):
        super().__init__()
        one_of(("full", "half"), form=form)
        one_of(("flat", "per_token"), feature_cosine=feature_cosine)
        one_of(HEADS, head=head)
        above(0, temperatures=min(temperatures, default=0))
        at_least(0, local_weight=local_weight, global_weight=global_weight, cosines_weight=cosines_weight)
        at_least(0, feature_weight=feature_weight, token_weight=token_weight)
        self.mapping = Mapping(mapping_spec(pair, mapping, center, head))
        if not self.mapping.learned:
            refuse_idle(
                form=form,
                temperatures=tuple(temperatures),
                head=head,
                stop_gradient=stop_gradient,
                local_weight=local_weight,
                global_weight=global_weight,
            )
        self.seed, self.stop_gradient = pair.seed, stop_gradient
        self.norms = SquaredNorms()
        self.temperatures, self.form, self.feature_cosine = temperatures, form, feature_cosine
        self.weights = {
            "local": local_weight if self.mapping.learned else 0.0,
            "global": global_weight if self.mapping.learned else 0.0,
            "feature": feature_weight,
            "token": token_weight,
            "cosines": cosines_weight,
        }

    def fit(self, teacher) -> None:
        """The closed form: PCA basis and means from the teacher's moments."""
        if self.mapping.spec.kind != "learned":
            moments = Moments(local=self.mapping.spec.heads == 2)
            for features in teacher():
                moments.add(features)
            self.mapping.fit(moments, self.seed)
            self.norms = SquaredNorms()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """{"loss", and each part with a weight}: scalars. The parts are before weighting."""
        parts = self._parts(batch.student, batch.teacher, batch.row_B)
        parts["loss"] = sum(self.weights[name] * part for name, part in parts.items())
        return parts

    def _parts(self, student: Features, teacher: Features, row_B):
        mapped_BD = self.mapping.raw(teacher.global_BD, GLOBAL)
        token_BD = student.global_BD
        if self.training:
            self.mapping.observe(mapped_BD, GLOBAL)
        target_BD = self.mapping.target(mapped_BD, GLOBAL, self.stop_gradient)
        parts = {"token": (1 - F.cosine_similarity(token_BD, target_BD, dim=1)).mean()}
        if self.weights["global"]:
            parts["global"] = sne(gather(teacher.global_BD), gather(mapped_BD), self.temperatures, self.form)
        if self.weights["cosines"]:
            parts["cosines"] = cosine_matrix_error(gather(token_BD), gather(target_BD))
        if teacher.local_BLD is not None and (self.weights["local"] or self.weights["feature"]):
            parts.update(self._local_parts(student, teacher, mapped_BD, target_BD, row_B))
        if self.training:
            self.mapping.steps += 1
        return parts

    def _local_parts(self, student, teacher, mapped_BD, target_BD, row_B):
        """Terms over all T tokens of a picture; a student's grid of another size is resampled to the teacher's."""
        parts, U_Ll = {}, None
        if student.grid != teacher.grid:
            U_Ll = resampling_matrix(student.grid, teacher.grid, target_BD.dtype, target_BD.device)
        few = U_Ll is not None and U_Ll.shape[1] < U_Ll.shape[0] and row_B is not None and not U_Ll.is_cuda
        if self.weights["feature"] and self.feature_cosine == "flat" and few and not self.mapping.learned:
            parts["feature"] = self._feature_of_few(student, teacher, target_BD, row_B, U_Ll)
            return parts
        mapped_BLD = self.mapping.raw(teacher.local_BLD, LOCAL)
        if self.training:
            self.mapping.observe(mapped_BLD, LOCAL)
        if self.weights["local"]:
            # With two heads the global vector lives in another space than the patches: then patches only.
            shared = len(self.mapping.head) == 1
            high = _tokens(teacher.global_BD, teacher.local_BLD) if shared else teacher.local_BLD
            parts["local"] = sne(
                high, _tokens(mapped_BD, mapped_BLD) if shared else mapped_BLD, self.temperatures, self.form
            ).mean()
        if self.weights["feature"]:
            local_BLD = self.mapping.target(mapped_BLD, LOCAL, self.stop_gradient)
            parts["feature"] = self._feature(student, target_BD, local_BLD, U_Ll)
        return parts

    def _feature(self, student, target_BD, target_BLD, U_Ll):
        """1 - cosine of the student's tokens and the target's, mean over pictures (and over tokens)."""
        ours_BD, local_Bld = student.global_BD, student.local_BLD
        if self.feature_cosine == "flat":
            pooled = target_BLD if U_Ll is None else torch.matmul(U_Ll.mT, target_BLD)
            return (
                1 - flat_cosine(ours_BD, local_Bld, target_BD, pooled, target_BLD.square().sum((1, 2)), U_Ll)
            ).mean()
        local_BLD = local_Bld if U_Ll is None else torch.matmul(U_Ll, local_Bld)
        return (1 - F.cosine_similarity(_tokens(ours_BD, local_BLD), _tokens(target_BD, target_BLD), dim=-1)).mean()

    def _feature_of_few(self, student, teacher, target_BD, row_B, U_Ll):
        """The same with a frozen mapping, a store and a student of fewer positions: only so many are mapped."""

        def raw(features_D):
            return self.mapping.raw(features_D, LOCAL)

        offset_D = self.mapping.mean[LOCAL] if self.mapping.spec.center else None
        pooled_Bld = pooled_target(teacher.local_BLD, raw, offset_D, U_Ll)
        norms_B = self.norms.of(teacher.local_BLD, lambda x: self.mapping.target(raw(x), LOCAL), row_B)
        return (1 - flat_cosine(student.global_BD, student.local_BLD, target_BD, pooled_Bld, norms_B, U_Ll)).mean()

    def map_teacher(self, features: Features) -> torch.Tensor:
        """The mapped teacher's embedding (B, D), as the student should give it."""
        return self.mapping(features)


def refuse_idle(**options) -> None:
    """ValueError for a value other than the default of what a frozen mapping leaves nothing to do."""
    defaults = options_of(TinTeM)
    for name, value in options.items():
        if value != defaults[name]:
            raise ValueError(f"{name} {value} does nothing where the mapping is frozen: mapping=learned or learned-pca")


def _tokens(global_BD, local_BLD):
    """The global vector in front of the local ones: (B, 1 + L, D)."""
    return torch.cat([global_BD[:, None], local_BLD], dim=1)


def mapping_spec(pair: Pair, kind, center, head) -> MappingSpec:
    """Two heads where the global feature does not live in the space of the local ones."""
    teacher = pair.teacher
    two = teacher.local_dim is not None and (pair.pooled or teacher.local_dim != teacher.dim)
    return MappingSpec(
        kind, center, teacher.dim, pair.student.dim, 2 if two else 1, teacher.local_dim if two else None, head
    )


def cosine_matrix_error(student_BD, target_BD) -> torch.Tensor:
    """Mean squared difference of the two batch cosine matrices, self-pairs left out (tinkit's own term)."""
    ours, theirs = F.normalize(student_BD, dim=1), F.normalize(target_BD, dim=1)
    count = max(len(ours) * (len(ours) - 1), 1)
    return ((ours @ ours.T - theirs @ theirs.T) ** 2).sum() / count
