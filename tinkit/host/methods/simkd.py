"""SimKD: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001.

The student's last map, behind a projector of three convolutions, is fitted to the teacher's last map before pooling; no
cross-entropy, no soft labels. From the authors' code (read): 1x1, 3x3, 1x1 without bias, batch normalisation and ReLU
after each, half the teacher's channels inside, and the larger grid averaged down to the smaller. What differs: a
batch of one picture on a grid of one place, where batch normalisation stops, is normalised by the running statistics.

The paper's student keeps the projector and the teacher's classifier at inference; that is its point, and its price. Here
both are dropped and the embedding below the projector ships, so an accuracy found here is not one of SimKD's setting.
Two traps. The last ReLU cannot reach negative numbers: for a teacher whose local features are signed (every ViT) say
last_relu=false. And only local features are trained: a CNN's embedding is their mean, but a ViT student's is its class
token, which no term reaches; then add one that does, for example `simkd+mse`.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.features import as_map, resample_map
from tinkit.host.methods.checks import within
from tinkit.host.methods.lone_norm import BatchNorm2d


class SimKD(nn.Module):
    """Squared error between the student's last map, behind a bottleneck of convolutions, and the teacher's.

    feature = mean (P(S) - T)^2       S (B,ds,H,W)    T (B,dt,H,W), both on the smaller grid
    P       = ReLU BN 1x1 . ReLU BN 3x3 . ReLU BN 1x1        ds -> dt/factor -> dt/factor -> dt
    loss    = feature
    """

    paper = "arXiv 2203.14001"
    needs = ("local",)
    uses = ()
    reconstruction = False
    label_weight = 0.0
    gathers = "nothing; batch normalisation of the projector sees each process's own pictures"

    def __init__(self, pair: Pair, *, factor: int = 2, last_relu: bool = True):
        super().__init__()
        ds, dt = pair.student.local_dim, pair.teacher.local_dim
        if ds is None or dt is None:
            raise ValueError("student and teacher must have local features")
        within(1, dt, factor=factor)
        inner = dt // factor
        self.projector = nn.Sequential(
            *(nn.Conv2d(ds, inner, 1, bias=False), BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, inner, 3, padding=1, bias=False), BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, dt, 1, bias=False), BatchNorm2d(dt)),
            *([nn.ReLU()] if last_relu else []),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher = batch.student, batch.teacher
        if student.local_BLD is None or teacher.local_BLD is None:
            raise ValueError("this method needs local features of student and teacher")
        ours, theirs = as_map(student.local_BLD, student.grid), as_map(teacher.local_BLD.detach(), teacher.grid)
        height, width = map(min, ours.shape[-2:], theirs.shape[-2:])
        feature = F.mse_loss(self.projector(resample_map(ours, (height, width))), resample_map(theirs, (height, width)))
        return {"feature": feature, "loss": feature}
