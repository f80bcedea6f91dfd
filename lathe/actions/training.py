"""What can be asked of every kind of training, in LitGPT's words where it has good ones; knows no model and no data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe.actions.bounds import above, at_least, below
from lathe.actions.launch import Devices
from lathe.actions.place import Places
from lathe.errors import UsageError
from lathe.training.methods import Name

if TYPE_CHECKING:
    from lathe.training.limits import Limits
    from lathe.training.optim import Settings
    from lathe.training.schedule import Schedule

# Options that must be above 0, where they are given, and those that may be 0.
ABOVE_ZERO = (
    *(f"train.{name}" for name in ("max_steps", "max_tokens", "epochs", "max_seconds", "max_seq_length", "max_norm")),
    *(f"train.{name}" for name in ("global_batch_size", "micro_batch_size", "decay_fraction", "save_interval", "keep")),
    *("eval.interval", "eval.max_iters", "optimizer.lr", "optimizer.eps"),
)
FROM_ZERO = (
    *(f"train.{name}" for name in ("lr_warmup_steps", "lr_warmup_fraction", "z_loss", "balance_loss")),
    "optimizer.weight_decay",
)
TRUTHS = {"true": True, "false": False}


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
    name: Name = "adamw"
    """adamw; adamw-8bit, with a quarter of its memory (needs torchao); muon, with AdamW for what is no hidden matrix;
    adafactor, with next to no memory; or another of torch.optim's, by its name in small letters."""
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
    eps: float | None = None
    """What AdamW adds to the root of the squares before it divides by it. By default 1e-8; of another of torch's what
    that has."""
    momentum: float | None = None
    """How long Muon remembers gradients. By default 0.95; of another of torch's what that has."""
    more: tuple[str, ...] = ()
    """NAME=VALUE: a further argument of torch's class, as nesterov=true. May be given several times."""

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
            dict(_argument(word) for word in self.more),
        )


def _argument(word: str) -> tuple[str, Any]:
    """NAME=VALUE as a name and a truth or a number. Raises UsageError."""
    name, _, value = word.partition("=")
    try:
        return name.replace("-", "_"), TRUTHS[value.lower()] if value.lower() in TRUTHS else float(value)
    except ValueError:
        raise UsageError(f"--optimizer.more is {word}.", "It must be NAME=VALUE, true, false or a number.") from None


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


@dataclass(frozen=True, kw_only=True)
class Options(Devices, Places):
    """What can be asked of every training."""

    data: tuple[str, ...]
    """What is learned from. May be given several times."""
    out_dir: Path = Path("out")
    """Where the run writes; its model is OUT_DIR/final."""
    overwrite: bool = False
    """Replace the model of an earlier run in OUT_DIR, once the new one is finished."""
    resume: str | None = None
    """Go on from the newest step in OUT_DIR; or from a step's folder that is named. With auto, begin where there is
    none. Everything goes on as if it had never stopped."""
    precision: Literal["32-true", "bf16-true", "bf16-mixed", "16-mixed"] | None = None
    """Number format. By default bf16-mixed on a GPU, 32-true on a CPU."""
    activation_checkpointing: bool = False
    """Compute what is between layers twice instead of remembering it: less memory, a third more time."""
    compile: bool = False
    """Compile the layers: a minute or more at first, then faster steps."""
    float8: bool = False
    """Compute the products of layers in 8-bit floats, on GPUs from Ada and Hopper on. Faster with --compile only."""
    logger: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ()
    """Also tell these what metrics.jsonl is told."""
    seed: int = 42
    """For the weights, the order of the data and what is held out."""
    val_split_fraction: float | None = None
    """The part of the data that is held out for validation. By default 0.05, or what the data says: a folder with train
    and val in it, or a name (see docs/sources.md)."""
    val_data: tuple[str, ...] = ()
    """Data to validate on, instead of a part of the other."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks to measure the model on whenever it is validated, as lathe evaluate has them: files of rows, and names."""
    eval_limit: float | None = None
    """Only so many samples of each of them; below 1, this part of them."""
    train: Train = field(default_factory=Train)
    """How long and how much."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """The method, and how far its steps go."""
    eval: Eval = field(default_factory=Eval)
    """Validation."""

    def __post_init__(self) -> None:
        self.check_devices()
        above(0, self, *ABOVE_ZERO)
        at_least(0, self, *FROM_ZERO)
        below(1, self, "val_split_fraction")
        if not 0 <= self.train.min_lr <= self.optimizer.lr:
            found = f"--train.min-lr is {self.train.min_lr} and --optimizer.lr is {self.optimizer.lr}."
            raise UsageError(found, "The learning rate falls to min-lr, so it cannot be higher.")

    def bound(self) -> list[str]:
        """The options that must not change in a run."""
        train = ("train.global_batch_size", "train.max_seq_length")
        return ["model", "data", "seed", "val_split_fraction", "precision", "optimizer.name", *train]
