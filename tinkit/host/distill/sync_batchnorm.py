"""Batch normalisation over the whole batch of several processes.

Each process sees its share of a batch alone, and a share's mean and variance are noisier than the batch's: trained so, a
student is another one. On a GPU torch's SyncBatchNorm does it; torch's refuses a CPU, so that there is a small one here:
sums over all processes by one all_reduce each way, in double precision. Names in the state dict stay those of plain
batch normalisation, and `restore` puts the plain modules back before anything is shipped.

Ioffe & Szegedy, "Batch Normalization", arXiv 1502.03167; the backward pass is theirs with sums over all processes.
"""

import torch
import torch.distributed as processes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tinkit.host.distill.gather import several


def synchronise(module: nn.Module, device: torch.device) -> int:
    """Let every batch normalisation below `module` see the rows of all processes; returns how many there are.

    Parameters and buffers stay the same tensors. All processes must run the same layers in the same order in training;
    a layer in eval mode talks to nobody.
    """
    found = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                setattr(parent, name, _across(child, device))
                found += 1
    return found


def restore(module: nn.Module) -> None:
    """Undo `synchronise`: the plain modules again, with what was learned meanwhile."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            plain = getattr(child, "plain", None)
            if isinstance(child, (BatchNormAcross, nn.SyncBatchNorm)) and plain:
                plain[0]._parameters.update(child._parameters)
                plain[0]._buffers.update(child._buffers)
                plain[0].train(child.training)
                setattr(parent, name, plain[0])


def _across(plain: _BatchNorm, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        return BatchNormAcross(plain)
    from timm.layers import (
        convert_sync_batchnorm,
    )  # torch's own; timm's also keeps the activation that some layers hold

    synced = convert_sync_batchnorm(plain)
    synced.plain = (plain,)  # in a tuple: torch would take it for a part of the module
    return synced


class BatchNormAcross(nn.Module):
    """A batch normalisation whose mean and variance are those of all processes; plain without others, and in eval mode.

    Holds the parameters and buffers of `plain` under their names, and what follows it in the same module (timm's `drop`
    and `act`).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, plain: _BatchNorm):
        super().__init__()
        self.plain = (plain,)
        self.eps, self.momentum = plain.eps, plain.momentum
        for name, parameter in plain._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in plain._buffers.items():
            self.register_buffer(name, buffer)
        for name, child in plain.named_children():
            self.add_module(name, child)
        self.train(plain.training)

    def forward(self, values: Tensor) -> Tensor:
        """(B,C) or (B,C,...) -> the same shape."""
        if self.training and several():
            values, mean_C, var_C, count = _Normalise.apply(values, self.weight, self.bias, self.eps)
            self._learn(mean_C, var_C * (count / (count - 1).clamp(min=1)))
        else:
            own = self.training or self.running_mean is None
            momentum = self._count() if self.training and self.running_mean is not None else 0.0
            values = F.batch_norm(
                values, self.running_mean, self.running_var, self.weight, self.bias, own, momentum, self.eps
            )
        for child in self.children():
            values = child(values)
        return values

    @torch.no_grad()
    def _learn(self, mean_C, var_C) -> None:
        """Running statistics as plain batch normalisation keeps them: the variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None:
            return
        share = self._count()
        self.running_mean.lerp_(mean_C.to(self.running_mean), share)
        self.running_var.lerp_(var_C.to(self.running_var), share)

    def _count(self) -> float:
        """One more batch seen; how much it weighs in the running statistics."""
        if self.num_batches_tracked is None:
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        return 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


class _Normalise(torch.autograd.Function):
    """(values - mean) / sqrt(variance + eps) * weight + bias over the rows of all processes.

    Also gives mean_C, var_C (biased) and the number of values a channel, none of them with gradient. As with gathered
    rows, the gradient that arrives is that of the sum of the losses of all processes; DDP's mean does the rest.
    """

    @staticmethod
    def forward(ctx, values, weight_C, bias_C, eps):
        own = values.numel() // values.shape[1]
        own_mean_C, own_var_C = torch.batch_norm_update_stats(values.detach(), None, None, 0.0)  # biased
        own_var_C, own_mean_C = own_var_C.double(), own_mean_C.double()
        square_C = own_var_C + own_mean_C**2
        count, mean_C, square_C = _sum_over_processes(torch.ones_like(own_mean_C), own_mean_C, square_C, times=own)
        count = count[:1]
        mean_C = mean_C / count
        var_C = (square_C / count - mean_C**2).clamp(min=0)
        scale_C = (var_C + eps).rsqrt()
        ctx.save_for_backward(values, weight_C, mean_C, scale_C, count)
        ctx.eps, ctx.own = eps, own
        out = F.batch_norm(values, mean_C.to(values), var_C.to(values), weight_C, bias_C, False, 0.0, eps)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return out, mean_C, var_C, count

    @staticmethod
    def backward(ctx, gradient, *_):
        """torch's own kernel, in one pass, as if there were this process alone; then what the others change of it.

        With n = (values - mean) * scale: own = weight * scale * (gradient - mean_own(gradient) - n mean_own(gradient n)), and
        the means are to be those of all. So two numbers a channel are missing, one of them times n.
        """
        values, weight_C, mean_C, scale_C, count = ctx.saved_tensors
        shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
        inner, products_C, sums_C = torch.ops.aten.native_batch_norm_backward(
            gradient, values, weight_C, None, None, mean_C.to(values), scale_C.to(values),
            True, ctx.eps, [True, True, True],
        )  # fmt: skip
        own_C = torch.stack([sums_C.double(), products_C.double()])
        missing_C = own_C / ctx.own - _sum_over_processes(*own_C) / count
        factor_C = scale_C if weight_C is None else scale_C * weight_C.double()
        slope_C = factor_C * missing_C[1] * scale_C
        offset_C = factor_C * missing_C[0] - slope_C * mean_C
        inner.add_(offset_C.to(values).view(shape)).addcmul_(values, slope_C.to(values).view(shape))
        return inner, None if weight_C is None else products_C, None if weight_C is None else sums_C, None


def _sum_over_processes(*rows_C: Tensor, times: int = 1) -> Tensor:
    """Each of the rows, times a whole number, summed over all processes, (number of rows, C)."""
    total = torch.stack(rows_C) * times
    processes.all_reduce(total)
    return total
