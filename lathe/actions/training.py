"""The options that all kinds of training share, in LitGPT's words where it has good ones."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Train:
    max_steps: int | None = None
    """Stop after this many optimizer steps."""
    max_tokens: int | None = None
    """Stop after this many tokens."""
    epochs: int | None = None
    """Stop after this many times through the data. The first limit reached counts; without any, it is one epoch."""
    global_batch_size: int = 32
    """Rows of max-seq-length tokens that each optimizer step learns from."""
    micro_batch_size: int = 4
    """Rows computed at once. More is faster and takes more memory; the result is the same."""
    max_seq_length: int | None = None
    """Tokens in a row. By default as many as the model has positions, or 512 for a family's name."""
    lr_warmup_steps: int | None = None
    """Steps over which the learning rate rises. By default a tenth of all, at most 2000."""
    min_lr: float = 4e-5
    """The learning rate at the end, after a cosine from --optimizer.lr."""
    max_norm: float | None = 1.0
    """Scale gradients down to this norm."""

    def steps(self, length: int, targets: int) -> int:
        """Optimizer steps until the first limit. length: tokens in a row. targets: tokens predicted in an epoch."""
        tokens = self.global_batch_size * length
        wanted = (self.max_tokens, self.epochs and self.epochs * targets)
        limits = [self.max_steps, *(limit and math.ceil(limit / tokens) for limit in wanted)]
        return min((limit for limit in limits if limit), default=math.ceil(targets / tokens))

    def warmup(self, steps: int) -> int:
        return min(2000, steps // 10) if self.lr_warmup_steps is None else self.lr_warmup_steps


@dataclass(frozen=True)
class Optimizer:
    lr: float = 4e-4
    """The highest learning rate."""
    weight_decay: float = 0.1
    """How strongly matrices are pulled towards zero."""
    beta1: float = 0.9
    """How long AdamW remembers gradients."""
    beta2: float = 0.95
    """How long it remembers their squares."""


@dataclass(frozen=True)
class Eval:
    interval: int = 1000
    """Validate every this many steps, and at the end."""
    max_iters: int = 100
    """Validate on at most this many batches of --train.micro-batch-size rows."""
