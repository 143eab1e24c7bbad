"""DiffKD, knowledge diffusion: Huang et al., NeurIPS 2023, arXiv 2305.15712. Follows the authors' code.

A small student's feature is taken for a noisy version of the teacher's. A diffusion model learns to denoise the teacher
(in the latent space of a linear autoencoder), is run on the student's feature, and only the denoised feature is compared
with the teacher's. All of it is trained together with the student and dropped at export; the deployed student gives its
feature as it is. Two points, each with its own modules: the last feature map, and the logits where there are any.
What differs here: the student's map is resampled to the teacher's grid (the code asks for equal ones); the time
embedding has 1000 rows (the code's 1280 are never read past 999); convolutions have no bias before a batch norm, which
would take it out; and a single value a channel (one picture, one position) is normalised by running statistics.
The paper's latent has 1024 channels on ImageNet; tinkit's teachers may be narrower than that, so `ae_channels=0`
means half of the teacher's, the default of the authors' class, and `autoencoder=False` means none at all (for teachers
of some 128 channels and less, where no setting of the authors is known).
Legend: B pictures, C channels or classes, D channels of the latent, H W height and width, T noise levels.
"""

import torch
from torch import nn
from torch.nn import functional as F

from tinkit.host.distill.pair import Batch, Pair
from tinkit.host.features import as_map, resample_grid
from tinkit.host.methods.checks import above, at_least
from tinkit.host.methods.diffkd_parts import LEVELS, Denoiser, NoiseAdapter, alphas_cumprod, ddim_schedule
from tinkit.host.methods.lone_norm import BatchNorm2d


class DiffKD(nn.Module):
    """Denoises the student's feature with a diffusion model of the teacher's, and compares the result.

    At each point, with x = trans(student) (B,D,H,W) and h = encoder(teacher) (B,D,H,W) without gradient:
        x_400 = g x + (1 - g) e           g (B) = adapter(x), e ~ N(0, I): adaptive noise matching, a plain convex mix
        x_(t-100) = DDIM(x_t, eps(x_t, t))   t = 400, 300, 200, 100, 0
        kd   = MSE(proj(x), h)            logits: tau^2 KL(softmax(h / tau) || softmax(proj(x) / tau)), mean over pictures
        diff = MSE(eps(sqrt(a_t) h + sqrt(1 - a_t) n, t), n)    t ~ U{0..999} a picture, n ~ N(0, I)
        ae   = MSE(decoder(encoder(teacher)), teacher)          feature point only; for the logits h = teacher
    loss = kd_weight (kd + logits_kd) + diff_weight (diff + logits_diff) + ae_weight ae; the paper's weights are 1.
    kd trains the student, trans, adapter, eps and proj; diff trains eps alone; ae trains encoder and decoder alone.
    """

    paper = "arXiv 2305.15712"
    needs = ("local",)
    uses = ("logits",)
    reconstruction = False
    label_weight = 1.0
    gathers = "nothing: all terms are of single pictures; batch statistics are those of the process"

    def __init__(
        self,
        pair: Pair,
        *,
        autoencoder: bool = True,
        ae_channels: int = 0,
        steps: int = 5,
        tau: float = 1.0,
        kd_weight: float = 1.0,
        diff_weight: float = 1.0,
        ae_weight: float = 1.0,
    ):
        super().__init__()
        if pair.student.local_dim is None or pair.teacher.local_dim is None:
            raise ValueError("student and teacher must have local features")
        at_least(0, ae_channels=ae_channels, kd_weight=kd_weight, diff_weight=diff_weight, ae_weight=ae_weight)
        above(0, tau=tau)
        wide = pair.teacher.local_dim
        latent = (ae_channels or max(1, wide // 2)) if autoencoder else None
        self.feature = Point(pair.student.local_dim, wide, 3, latent, steps)
        self.logits = Point(pair.classes, pair.classes, 1, None, steps) if pair.classes else None
        self.tau = tau
        self.weights = {"kd": kd_weight, "diff": diff_weight, "ae": ae_weight}
        self.weights.update(logits_kd=kd_weight, logits_diff=diff_weight)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """{"loss", "kd", "diff", "ae", "logits_kd", "logits_diff"}: scalars; "ae" and the logits' only where they are."""
        student, teacher = batch.student, batch.teacher
        generator = batch.generator()
        local_BLD = resample_grid(student.local_BLD, student.grid, teacher.grid)
        target_BDHW = as_map(teacher.local_BLD, teacher.grid)
        denoised, h, parts = self.feature(as_map(local_BLD, teacher.grid), target_BDHW, generator)
        parts["kd"] = F.mse_loss(denoised, h)
        if self.logits is not None and student.logits_BC is not None and teacher.logits_BC is not None:
            denoised, h, more = self.logits(_one_place(student.logits_BC), _one_place(teacher.logits_BC), generator)
            parts["logits_diff"] = more["diff"]
            parts["logits_kd"] = self.tau**2 * F.kl_div(
                F.log_softmax(denoised.flatten(1) / self.tau, dim=1),
                F.log_softmax(h.flatten(1) / self.tau, dim=1),
                reduction="batchmean",
                log_target=True,
            )
        parts["loss"] = sum(self.weights[name] * part for name, part in parts.items())
        return parts


class Point(nn.Module):
    """One place where student and teacher meet. `latent` is the autoencoder's width D, None without one (D = C_t)."""

    def __init__(self, student_channels: int, teacher_channels: int, kernel: int, latent: int | None, steps: int):
        super().__init__()
        D = latent or teacher_channels
        self.schedule = ddim_schedule(steps)
        self.trans = nn.Conv2d(student_channels, D, 1)
        if latent:
            self.encoder = nn.Sequential(nn.Conv2d(teacher_channels, D, 1, bias=False), BatchNorm2d(D))
            self.decoder = nn.Conv2d(D, teacher_channels, 1)
        self.autoencodes = latent is not None
        self.denoiser = Denoiser(D, kernel)
        self.adapter = NoiseAdapter(D, kernel)
        self.proj = nn.Sequential(nn.Conv2d(D, D, 1, bias=False), BatchNorm2d(D))

    def forward(self, student_BCHW, teacher_BCHW, generator):
        """(the student denoised (B,D,H,W), the teacher's latent h (B,D,H,W), {"diff", maybe "ae"})."""
        teacher_BCHW = teacher_BCHW.detach()
        parts, h = {}, teacher_BCHW
        if self.autoencodes:
            h = self.encoder(teacher_BCHW)
            parts["ae"] = F.mse_loss(self.decoder(h), teacher_BCHW)
            h = h.detach()
        denoised = self.proj(self.denoise(self.match_noise(self.trans(student_BCHW), generator)))
        parts["diff"] = self.diffusion_loss(h, generator)
        return denoised, h, parts

    def match_noise(self, x, generator):
        """Bring the student to the noise level where denoising starts, with a share of noise a picture."""
        g = self.adapter(x)[:, None, None, None]
        return g * x + (1 - g) * _noise_like(x, generator)

    def denoise(self, x):
        """DDIM without fresh noise; gradient runs through every step."""
        for t, c_x, c_e in self.schedule:
            t_B = torch.full((len(x),), t, device=x.device)
            x = c_x * x + c_e * self.denoiser(x, t_B)
        return x

    def diffusion_loss(self, h, generator):
        """Teach the denoiser to tell the noise n added to the teacher's latent h."""
        t_B = torch.randint(0, LEVELS, (len(h),), generator=generator)
        a = alphas_cumprod()[t_B].to(h)[:, None, None, None]
        noise = _noise_like(h, generator)
        return F.mse_loss(self.denoiser(a.sqrt() * h + (1 - a).sqrt() * noise, t_B.to(h.device)), noise)


def _one_place(logits_BC):
    """Logits as a map of one place: (B,C,1,1)."""
    return as_map(logits_BC[:, None], (1, 1))


def _noise_like(x, generator):
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
