"""The options that all kinds of training share, in LitGPT's words where it has good ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lathe.errors import UsageError

if TYPE_CHECKING:
    from lathe.training.limits import Limits
    from lathe.training.optim import Settings
    from lathe.training.schedule import Schedule


@dataclass(frozen=True)
class Train:
    max_steps: int | None = None
    """Stop after this many optimizer steps."""
    max_tokens: int | None = None
    """Stop after this many tokens."""
    epochs: int | None = None
    """Stop after this many times through the data. The first limit reached counts; without any, it is one epoch."""
    max_seconds: float | None = None
    """Stop after the step that ends later than this."""
    global_batch_size: int = 32
    """Rows of max-seq-length tokens that each optimizer step learns from."""
    micro_batch_size: int = 4
    """Rows computed at once. More is faster and takes more memory; the result is the same."""
    max_seq_length: int | None = None
    """Tokens in a row. By default as many as the model has positions, or 512 for a family's name."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after its rise: as half a cosine, as a line, not at all, or at the very end (wsd)."""
    lr_warmup_steps: int | None = None
    """Steps over which the learning rate rises. By default a tenth of all, at most 2000."""
    lr_warmup_fraction: float | None = None
    """The same as a part of all steps."""
    decay_fraction: float = 0.2
    """The last part of the way, over which the schedule wsd falls."""
    min_lr: float = 4e-5
    """The learning rate at the end, down from --optimizer.lr."""
    max_norm: float | None = 1.0
    """Scale gradients down to this norm."""
    save_interval: int = 1000
    """Save a step, to be resumed, every this many steps."""
    keep: int | None = 2
    """How many of the saved steps stay, the last ones and the one with the lowest validation loss; none keeps all."""

    z_loss: float = 0.0
    """How much the size of logits counts beside the loss, so that they do not drift away: 1e-4 is usual."""
    balance_loss: float = 0.0
    """How much it counts that some experts get more tokens than others: 0.01 is usual."""

    def steps(self, length: int, targets: Callable[[], int]) -> int:
        """Optimizer steps until the first limit. length: tokens in a row. targets: tokens predicted in an epoch, asked
        for only where a number of epochs is the limit, because all data have to be encoded to know it."""
        tokens = self.global_batch_size * length
        limits = [limit for limit in (self.max_steps, self.max_tokens and math.ceil(self.max_tokens / tokens)) if limit]
        if self.epochs or not limits:
            limits.append(math.ceil((self.epochs or 1) * targets() / tokens))
        return min(limits)

    def limits(self, steps: int) -> Limits:
        """Where a run of so many steps ends."""
        from lathe.training.limits import Limits

        return Limits(steps, seconds=self.max_seconds)

    def rates(self, steps: int, lr: float) -> Schedule:
        """The factor on the learning rate `lr` at each of so many steps."""
        from lathe.training.schedule import Schedule

        if self.lr_warmup_steps is not None and self.lr_warmup_fraction is not None:
            found = "--train.lr-warmup-steps and --train.lr-warmup-fraction are both given."
            raise UsageError(found, "Keep one of them.")
        warmup = min(2000, steps // 10) if self.lr_warmup_steps is None else self.lr_warmup_steps
        if self.lr_warmup_fraction is not None:
            warmup = int(self.lr_warmup_fraction * steps)
        return Schedule(self.schedule, warmup, self.min_lr / lr, self.decay_fraction)


@dataclass(frozen=True)
class Optimizer:
    name: Literal["adamw", "adamw-8bit", "muon", "adafactor"] = "adamw"
    """adamw; adamw-8bit, with a quarter of its memory (needs torchao); muon, with AdamW for what is no hidden matrix;
    adafactor, with next to no memory."""
    lr: float = 4e-4
    """The highest learning rate."""
    weight_decay: float = 0.1
    """How strongly matrices are pulled towards zero; norms and biases are not."""
    decay_embeddings: bool = True
    """Embeddings are pulled too."""
    beta1: float = 0.9
    """How long AdamW remembers gradients."""
    beta2: float = 0.95
    """How long it remembers their squares."""
    eps: float = 1e-8
    """What AdamW adds to the root of the squares before it divides by it."""
    momentum: float = 0.95
    """How long Muon remembers gradients."""

    def settings(self) -> Settings:
        from lathe.training.optim import Settings

        return Settings(
            self.name,
            self.lr,
            self.weight_decay,
            (self.beta1, self.beta2),
            self.eps,
            self.momentum,
            self.decay_embeddings,
        )


@dataclass(frozen=True)
class Eval:
    interval: int = 1000
    """Validate every this many steps, and at the end."""
    max_iters: int = 100
    """Validate on at most this many batches of --train.micro-batch-size rows."""


@dataclass(frozen=True)
class Preference:
    beta: float = 0.1
    """How much a preference counts: for dpo, ipo and hinge, how closely the model keeps to what it was before."""
    label_smoothing: float = 0.0
    """dpo: the part of pairs that are taken to be the wrong way round."""
    margin: float = 0.5
    """simpo: by how much the chosen answer is to be likelier."""
