"""The parts of DiffKD (arXiv 2305.15712): denoiser, noise adapter, and the schedule of DDIM in closed form.

Sizes and order of the layers are those of the authors' code, in its two forms: kernel 3 for feature maps, kernel 1 for
logits (a map of one position). Legend: B pictures, D channels, H W height and width, T noise levels.
"""

import torch
from torch import nn

from tinkit.host.methods.checks import within
from tinkit.host.methods.lone_norm import BatchNorm2d

LEVELS = 1000  # T


class Denoiser(nn.Module):
    """eps(x (B,D,H,W), t (B)): the noise in x; the time is a learned vector added at every position."""

    def __init__(self, D: int, kernel: int):
        super().__init__()
        self.time = nn.Embedding(LEVELS, D)
        if kernel == 3:
            self.body = nn.Sequential(
                Bottleneck(D, 4), Bottleneck(D, 4), nn.Conv2d(D, D, 1, bias=False), BatchNorm2d(D)
            )
        else:
            self.body = nn.Sequential(
                *_conv(D, 4 * D, 1),
                nn.ReLU(),
                *_conv(4 * D, D, 1),
                *_conv(D, 4 * D, 1),
                nn.ReLU(),
                nn.Conv2d(4 * D, D, 1),
            )

    def forward(self, x, t_B):
        return self.body(x + self.time(t_B)[:, :, None, None])


class NoiseAdapter(nn.Module):
    """g(x (B,D,H,W)) in (0, 1) (B): the share of x that is kept. 1 means no noise, as in the code (a reply of the
    authors says the opposite)."""

    def __init__(self, D: int, kernel: int):
        super().__init__()
        self.body = (
            Bottleneck(D, 8) if kernel == 3 else nn.Sequential(*_conv(D, 2 * D, 1), nn.ReLU(), *_conv(2 * D, D, 1))
        )
        self.choice = nn.Linear(D, 2)

    def forward(self, x):
        return self.choice(self.body(x).mean((2, 3))).softmax(dim=1)[:, 0]


class Bottleneck(nn.Module):
    """x + [1x1 narrow, 3x3, 1x1 wide], each with a batch norm; `reduction` says how narrow."""

    def __init__(self, D: int, reduction: int):
        super().__init__()
        narrow = max(1, D // reduction)
        self.body = nn.Sequential(
            *_conv(D, narrow, 1), nn.ReLU(), *_conv(narrow, narrow, 3), nn.ReLU(), *_conv(narrow, D, 1)
        )

    def forward(self, x):
        return x + self.body(x)


def _conv(before: int, after: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), BatchNorm2d(after)


def alphas_cumprod() -> torch.Tensor:
    """a_t = prod over s <= t of (1 - beta_s), (T,) float64; beta runs linearly from 1e-4 to 0.02."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, LEVELS, dtype=torch.float64), dim=0)


def ddim_schedule(steps: int) -> list[tuple[int, float, float]]:
    """(t, c_x, c_e) of the last `steps` of 2 * steps equal strides; a step of DDIM is x <- c_x x + c_e eps(x, t).

    From x0 = (x - sqrt(1 - a_t) e) / sqrt(a_t) and x <- sqrt(b) x0 + sqrt(1 - b) e with b = a_(t - stride), 1 below 0:
    c_x = sqrt(b / a_t), c_e = sqrt(1 - b) - sqrt(b (1 - a_t) / a_t).
    """
    within(1, LEVELS // 2, steps=steps)
    stride = LEVELS // (2 * steps)
    alphas = alphas_cumprod().tolist()
    schedule = []
    for t in range((steps - 1) * stride, -1, -stride):
        a, b = alphas[t], alphas[t - stride] if t else 1.0
        schedule.append((t, (b / a) ** 0.5, (1 - b) ** 0.5 - (b * (1 - a) / a) ** 0.5))
    return schedule
