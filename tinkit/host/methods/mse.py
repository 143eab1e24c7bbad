"""MSE: the plain baseline. A linear layer on the student, and the squared difference to the teacher's features.

No paper of its own: it stands for "just regress the features", with the linear layer on the student's side because the
widths differ; it is trained along and dropped. What the layer h learns the student need not know, which is what the other
methods of this family work on. The local features, where both have them, get a layer of their own (a reading: the tables
of the field compare the pooled vector alone; local_weight=0 is that). Their grid is resampled to the teacher's.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.features import resample_grid
from tinkit.host.methods.checks import at_least


class MSE(nn.Module):
    """Squared difference between the student behind a linear layer and the teacher, mean over all numbers.

    global = mean (h(s) - t)^2        s (B,ds)    t (B,dt)    h: linear ds -> dt, with bias
    local  = mean (g(s) - t)^2        s (B,L,ds)  t (B,L,dt)  g: linear ds -> dt, with bias
    loss   = global + local_weight local
    """

    paper = "baseline, no paper"
    needs = ()
    uses = ("local",)
    reconstruction = False
    label_weight = 0.0
    gathers = "nothing: every picture has its own term"
    error: Callable[..., Tensor] = staticmethod(F.mse_loss)

    def __init__(self, pair: Pair, *, local_weight: float = 1.0):
        super().__init__()
        at_least(0, local_weight=local_weight)
        self.local_weight = local_weight
        self.global_head = nn.Linear(pair.student.dim, pair.teacher.dim)
        self.local_head = local_layer(pair) if local_weight else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        parts = {"global": self.error(self.global_head(batch.student.global_BD), batch.teacher.global_BD.detach())}
        loss = parts["global"]
        if self.local_head is not None:
            ours_BLD, theirs_BLD = local_features(batch)
            parts["local"] = self.error(self.local_head(ours_BLD), theirs_BLD)
            loss = loss + self.local_weight * parts["local"]
        return {**parts, "loss": loss}


def local_layer(pair: Pair) -> nn.Linear | None:
    """Linear from the student's local width to the teacher's; None where one of them has no local features."""
    if pair.student.local_dim is None or pair.teacher.local_dim is None:
        return None
    return nn.Linear(pair.student.local_dim, pair.teacher.local_dim)


def local_features(batch: Batch) -> tuple[Tensor, Tensor]:
    """Both networks' local features (B,L,D) on the teacher's grid, the teacher's without gradient."""
    student, teacher = batch.student, batch.teacher
    if student.local_BLD is None or teacher.local_BLD is None:
        raise ValueError("this method needs local features of student and teacher")
    return resample_grid(student.local_BLD, student.grid, teacher.grid), teacher.local_BLD.detach()
