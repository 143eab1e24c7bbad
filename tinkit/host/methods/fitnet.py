"""FitNet: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550.

A layer in the middle of the student, behind a small regressor, is fitted to a layer in the middle of the teacher (the
hint). The paper does that first and then trains the whole student by labels and soft labels; mdistiller, where the
field's tables come from, adds the term (weight 100, layer 2) to the cross-entropy, and so does this. mdistiller's
regressor is a convolution whose shape follows from the two grids, with batch normalisation and ReLU, for taps after a
ReLU; timm's taps are often signed, so here it is a 1 x 1 convolution with bias, and the student's map is resampled.

Nothing behind the tap gets gradient from this term. Without labels that part of the student stays as it was: then add a
method that trains it, for example `fitnet+kd` or `fitnet+mse`.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.features import resample_map
from tinkit.host.methods.checks import above, within
from tinkit.host.taps import match_taps


class FitNet(nn.Module):
    """Squared error between one tap in the middle of the student, behind a 1 x 1 convolution, and the teacher's.

        hint = mean (r(s) - t)^2     s (B,cs,H,W) on the teacher's grid    t (B,ct,H,W)    r: 1 x 1 convolution, bias
        loss = weight hint

    layer: which pair of matched taps, 1 the shallowest; 0 the middle one (2 of 4).
    """

    paper = "arXiv 1412.6550"
    needs = ("student_taps", "teacher_taps")
    uses = ()
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing: every picture has its own term"

    def __init__(self, pair: Pair, *, weight: float = 100.0, layer: int = 0):
        super().__init__()
        pairs = match_taps(pair)
        if not pairs:
            raise ValueError("both networks must have taps")
        above(0, weight=weight)
        within(0, len(pairs), layer=layer)
        ours, theirs = pairs[(layer or (len(pairs) + 1) // 2) - 1]
        self.weight, self.names = weight, (ours.name, theirs.name)
        self.regressor = nn.Conv2d(ours.channels, theirs.channels, kernel_size=1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        ours, theirs = batch.student.taps[self.names[0]], batch.teacher.taps[self.names[1]].detach()
        height, width = theirs.shape[-2:]
        hint = F.mse_loss(self.regressor(resample_map(ours, (height, width))), theirs)
        return {"hint": hint, "loss": self.weight * hint}
