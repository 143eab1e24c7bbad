"""The learning rate of every step, and the optimiser it goes to."""

import math

import torch
from torch import nn

from tinkit.host.distill.settings import Settings
from tinkit.host.student import Student


def peak_learning_rate(settings: Settings, student: Student) -> float:
    """As asked for; else the paper's where there is softmax attention, and what a validation split preferred for a CNN."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return 5e-4 if student.has_attention else 5e-3


def learning_rate(step: int, steps: int, peak: float, settings: Settings) -> float:
    """Linear warm-up over the first `warmup` share of steps, then a cosine down to 2 % (the paper: 1e-5 of 5e-4)."""
    warm = max(1, round(settings.warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(module: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW, all in one kernel; no decay on biases and norms (1-D parameters)."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)
