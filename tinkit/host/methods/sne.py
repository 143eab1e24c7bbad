"""Similarity distributions of teacher and mapped teacher, compared at several temperatures: TinTeM's local and global terms.

Ten temperatures and their gradients would keep dozens of (n, n) matrices until the backward pass. Here the gradient is
worked out at once, a temperature and a few pictures at a time, so that memory holds the matrices of one temperature and
one group, and afterwards the gradient by the points alone. Nothing is computed twice: each backward pass is done as soon
as it can be, and scaled when the real one comes.
"""

import torch
from torch.nn import functional as F

TEMPERATURES = tuple(k / 100 for k in range(1, 11))
SELF_MASK = 1e8  # finite: with infinity, 0 * (inf - inf) would be NaN
GROUP = 2**22  # numbers of a (pictures, n, n) matrix that are worked on at a time


def sne(high, low, temperatures=TEMPERATURES, form="full") -> torch.Tensor:
    """KL between similarity distributions of teacher points `high` (..., n, D) and mapped points `low` (..., n, D').

    Cosine kernels with the self-pairs masked, mean over temperatures, one value for each leading index.
        full:  P_ij = (p_j|i + p_i|j) / 2n,   sum_ij P_ij log(P_ij / Q_ij)
        half:  mean over i of  sum_j p_j|i log(p_j|i / q_j|i)
    Zero at equality; does not change when points are rotated or scaled. Gradient once: not differentiable twice.
    """
    leading = high.shape[:-2]
    flat = [points.reshape(-1, *points.shape[-2:]) for points in (high, low)]
    return _apart(*flat, tuple(temperatures), form).reshape(leading)


@torch.compiler.disable
def _apart(high, low, temperatures, form):
    return _Divergence.apply(high, low, temperatures, form)


class _Divergence(torch.autograd.Function):
    """(pictures, n, D), (pictures, n, D') -> (pictures); its gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx, high, low, temperatures, form):
        wanted = ctx.needs_input_grad[:2]
        group = max(1, GROUP // high.shape[-2] ** 2)
        values, gradients = [], ([], [])
        for pair in zip(high.split(group), low.split(group)):
            value, found = _of_group(pair, wanted, temperatures, form)
            values.append(value)
            for kept, gradient in zip(gradients, found):
                kept.append(gradient)
        ctx.save_for_backward(*(torch.cat(kept) if want else None for want, kept in zip(wanted, gradients)))
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        high, low = (g if g is None else g * upstream[:, None, None] for g in ctx.saved_tensors)
        return high, low, None, None


def _of_group(pair, wanted, temperatures, form):
    """(values, gradients by both points) of some pictures; None for a gradient that is not wanted."""
    with torch.enable_grad():
        points = [rows.detach().requires_grad_(want) for rows, want in zip(pair, wanted)]
        cosines = [masked_cosines(rows) for rows in points]
    by_cosine = [torch.zeros_like(c) if want else None for c, want in zip(cosines, wanted)]
    total = 0
    for temperature in temperatures:
        with torch.enable_grad():
            leaves = [c.detach().requires_grad_(want) for c, want in zip(cosines, wanted)]
            value = divergence(*(leaf / temperature for leaf in leaves), form)
            whole = value.sum()
        if any(wanted):
            asked = [leaf for leaf in leaves if leaf.requires_grad]
            for sums, found in zip([g for g in by_cosine if g is not None], torch.autograd.grad(whole, asked)):
                sums += found
        total = total + value.detach()
    gradients = [
        torch.autograd.grad(cosine, rows, sums / len(temperatures))[0] if want else None
        for cosine, rows, sums, want in zip(cosines, points, by_cosine, wanted)
    ]
    return total / len(temperatures), gradients


def divergence(high_nn, low_nn, form="full") -> torch.Tensor:
    """The same of logits (..., n, n), at one temperature."""
    log_probabilities = log_joint if form == "full" else log_conditional
    log_p, log_q = log_probabilities(high_nn), log_probabilities(low_nn)
    total = (log_p.exp() * (log_p - log_q)).sum((-2, -1))
    return total if form == "full" else total / high_nn.shape[-2]


def log_conditional(logits_nn):
    """log p_j|i, rows over j."""
    return F.log_softmax(logits_nn, dim=-1)


def log_joint(logits_nn):
    """log of (p_j|i + p_i|j) / 2n."""
    log_p = log_conditional(logits_nn)
    joint = torch.logaddexp(log_p, log_p.mT)
    return joint - torch.logsumexp(joint, dim=(-2, -1), keepdim=True)


def masked_cosines(points):
    """Cosines of all pairs (..., n, n), those of a point with itself far below all others."""
    unit = F.normalize(points, dim=-1)
    return unit @ unit.mT - SELF_MASK * torch.eye(points.shape[-2], dtype=points.dtype, device=points.device)
