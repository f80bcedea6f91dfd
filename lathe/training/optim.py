"""A decoder's parameters become an optimizer."""

from __future__ import annotations

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
