"""SP ("Similarity-Preserving Knowledge Distillation"): Tung, Mori, ICCV 2019, arXiv 1907.09682.

Pictures that excite the teacher alike should excite the student alike: the batch's matrix of inner products, each row
scaled to length 1, is copied. As in the code that its author verified (RepDistiller; mdistiller is the same, both read)
the features are the flattened last map; `features="global"` takes the global vectors instead, and so does a pair in
which one network has no map. Sizes and widths of the two maps need not agree: only (B, B) matrices are compared.
(torchdistill divides the rows by their L1 norm, which is another loss; with the L2 norm it gives the same numbers.)
"""

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.gather import gather
from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.methods.checks import at_least, one_of


class SP(nn.Module):
    """Keeps the batch's matrix of inner products, rows scaled to length 1, on the flattened last map.

    x: last map (B, L*D), or global features (B, D), of either network.
        G_ij = <x_i, x_j> / |row i|                                  (B, B)
        loss = 3000 * mean_ij (G^S_ij - G^T_ij)^2
    """

    paper = "arXiv 1907.09682"
    needs = ()
    uses = ("local",)
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing, as in the authors' code; gather=True: the features that are compared, with gradient"

    def __init__(self, pair: Pair, *, weight: float = 3000.0, features: str = "map", gather: bool = False):
        super().__init__()
        at_least(0, weight=weight)
        one_of(("map", "global"), features=features)
        self.weight, self.features, self.gather = weight, features, gather

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        student, teacher = batch.student.global_BD, batch.teacher.global_BD
        ours_BLD, theirs_BLD = batch.student.local_BLD, batch.teacher.local_BLD
        if self.features == "map" and ours_BLD is not None and theirs_BLD is not None:
            student, teacher = ours_BLD.flatten(1), theirs_BLD.flatten(1)
        if self.gather:
            student, teacher = gather(student), gather(teacher)
        error = ((similarities(student) - similarities(teacher)) ** 2).mean()
        return {"similarity": error, "loss": self.weight * error}


def similarities(points_BX) -> torch.Tensor:
    """Inner products, each row scaled to length 1: (B, B)."""
    return F.normalize(points_BX @ points_BX.mT, dim=1)
