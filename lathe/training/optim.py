"""A decoder's parameters become an optimizer, and a step's number the factor on its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


def adamw(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) whose decay pulls on matrices only, not on norms and biases."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    matrices, others = [p for p in learned if p.ndim >= 2], [p for p in learned if p.ndim < 2]
    groups = [
        {"params": some, "weight_decay": decay, "initial_lr": lr}
        for some, decay in ((matrices, weight_decay), (others, 0.0))
        if some
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def cosine(step: int, steps: int, warmup: int, floor: float) -> float:
    """The learning rate's factor at `step` (from 0) of `steps`: linear from near 0 to 1 over `warmup` steps, then half
    a cosine down to `floor`, which the last step has. arXiv:1608.03983"""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
