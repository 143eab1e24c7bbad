"""Batch normalisation that a lone value does not stop. Not a method, but a part of several.

One value a channel (one picture, at one place) has no variance, and torch refuses to train on it. Here it is normalised
by the running statistics, and teaches them nothing. All else is torch's own.
"""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class _LoneNorm(_BatchNorm):
    def forward(self, values: Tensor) -> Tensor:
        if values.numel() > values.shape[1]:
            return super().forward(values)
        return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class BatchNorm1d(_LoneNorm, nn.BatchNorm1d):
    """Of rows (B,C)."""


class BatchNorm2d(_LoneNorm, nn.BatchNorm2d):
    """Of maps (B,C,H,W)."""
