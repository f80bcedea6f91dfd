"""What can be asked of a finetuning, by its method: each has a dataclass of options, and `METHODS` has them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lathe import compat
from lathe.actions import training
from lathe.actions.bounds import above, at_least, below
from lathe.actions.training import Eval, Optimizer, Preference, Train
from lathe.actions.written import Written
from lathe.errors import UsageError
from lathe.options import fields, read_recipe

if TYPE_CHECKING:
    from lathe.data.examples import Examples
    from lathe.transforms import terms

EPOCHS = 3  # where no limit is given
Method = Literal["lora", "full", "adapter", "adapter_v2"]


@dataclass(frozen=True)
class FinetuneTrain(Train):
    epochs: int | None = None
    """Stop after this many times through the data. The first limit reached counts; without any, it is three epochs."""
    global_batch_size: int = 16
    """Examples that each optimizer step learns from."""
    micro_batch_size: int = 1
    """Rows of max-seq-length tokens computed at once, of as many examples as fit, without padding. More is faster and
    takes more memory; the result is the same."""
    max_seq_length: int | None = None
    """Longer examples are cut to this many tokens. By default 2048, or as many as the model has positions."""
    min_lr: float = 0.0

    def steps_of(self, examples: Examples) -> int:
        """Optimizer steps until the first limit."""
        count, mean = len(examples), examples.tokens / len(examples)  # tokens of an example
        wanted = (self.max_tokens and self.max_tokens / mean, self.epochs and self.epochs * count)
        limits = [self.max_steps, *(limit and math.ceil(limit / self.global_batch_size) for limit in wanted)]
        return min((limit for limit in limits if limit), default=math.ceil(EPOCHS * count / self.global_batch_size))


@dataclass(frozen=True)
class FinetuneEval(Eval):
    interval: int = 50
    """Validate every this many steps, and at the end."""
    prompt: tuple[str, ...] = ()
    """Show what the model answers to this whenever it is validated. May be given several times; by default the first
    question that is held out."""
    max_new_tokens: int = 64
    """The longest of these answers; 0 shows none."""


@dataclass(frozen=True)
class LoraOptimizer(Optimizer):
    lr: float = 2e-4
    weight_decay: float = 0.0
    beta2: float = 0.999


@dataclass(frozen=True)
class FullOptimizer(LoraOptimizer):
    lr: float = 2e-5


@dataclass(frozen=True)
class AdapterOptimizer(LoraOptimizer):
    lr: float = 3e-3


@dataclass(frozen=True)
class Finetune(training.Options, Written):
    model: str
    """Folder, file or repo id of the model to begin with."""
    _: KW_ONLY
    data: tuple[str, ...]
    """A file or folder of examples: Alpaca's, ShareGPT's or OpenAI's messages, prompts and completions, texts. May be
    given several times, with weights: a.json:0.7 and b.jsonl:0.3. lathe data shows what is learned from it."""
    method: Method = "lora"
    """What learns. --help with --method shows what each takes."""
    objective: Literal["next-token", "dpo", "ipo", "hinge", "simpo", "orpo"] = "next-token"
    """What is learned: to write the answers, or to prefer those that are chosen to those that are rejected."""
    preference: Preference = field(default_factory=Preference)
    """What counts for a preference."""
    out_dir: Path = Path("out/finetune")
    """Where the run writes; its model is OUT_DIR/final."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be learned from, instead of ending with their list. lathe data shows them."""
    train: FinetuneTrain = field(default_factory=FinetuneTrain)
    """How long and how much."""
    eval: FinetuneEval = field(default_factory=FinetuneEval)
    """Validation."""

    @classmethod
    def understood(cls, words: Sequence[str]) -> tuple[type[training.Options], list[str]]:
        """The options of the method that the words, or the recipe that they name, ask for."""
        recipe = compat.value(words, "config")
        told = compat.value(words, "method") or (read_recipe(recipe).get("method") if recipe else None)
        return METHODS.get(str(told), cls), list(words)

    def bound(self) -> list[str]:
        own = [option.key for option in fields(type(self)) if option.key.startswith(("lora_", "adapter_", "quantize"))]
        return [*super().bound(), "method", "objective", "prompt_style", "loss_on", *own]

    def __post_init__(self) -> None:
        super().__post_init__()
        above(0, self, "preference.beta")
        below(0.5, self, "preference.label_smoothing")
        if not isinstance(self, METHODS[self.method]):
            raise UsageError(f"The options are those of another method than {self.method}.", "", "Type lathe finetune.")


@dataclass(frozen=True)
class Lora(Finetune):
    _: KW_ONLY
    method: Method = "lora"
    quantize: str | None = None
    """Keep the model's matrices in 4 bits (nf4, nf4-dq) or 8 (int8) while the adapter learns (QLoRA)."""
    lora_r: int = 16
    """Rank: how much the adapter can learn, and how large it is."""
    lora_alpha: float | None = None
    """How strongly it counts: its terms are scaled by alpha / rank. By default twice the rank."""
    lora_dropout: float = 0.0
    """The part of its inputs that is left out while it learns."""
    lora_targets: tuple[str, ...] = ()
    """Names of the modules that get it, as q_proj, or expressions. By default every matrix but the head."""
    lora_rslora: bool = False
    """Scale by alpha / sqrt(rank), so that high ranks count (rsLoRA)."""
    lora_dora: bool = False
    """Learn directions and magnitudes apart (DoRA); slower."""
    optimizer: LoraOptimizer = field(default_factory=LoraOptimizer)
    """AdamW."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above(0, self, "lora_r", "lora_alpha")
        below(1, self, "lora_dropout")

    def settings(self) -> terms.Lora:
        """The adapter that these options describe."""
        from lathe.transforms import terms

        return terms.Lora(
            rank=self.lora_r,
            alpha=2 * self.lora_r if self.lora_alpha is None else self.lora_alpha,
            targets=rf"(.*\.)?({'|'.join(self.lora_targets)})" if self.lora_targets else "all-linear",
            stabilised=self.lora_rslora,
            dora=self.lora_dora,
            dropout=self.lora_dropout,
        )


@dataclass(frozen=True)
class Full(Finetune):
    _: KW_ONLY
    method: Method = "full"
    optimizer: FullOptimizer = field(default_factory=FullOptimizer)
    """AdamW."""


@dataclass(frozen=True)
class Adapter(Finetune):
    _: KW_ONLY
    method: Method = "adapter"
    quantize: str | None = None
    """Keep the model's matrices in 4 bits (nf4, nf4-dq) or 8 (int8) while the adapter learns."""
    adapter_length: int = 10
    """Learned tokens in each layer."""
    adapter_start: int = 2
    """The first layer that has them, from 0."""
    optimizer: AdapterOptimizer = field(default_factory=AdapterOptimizer)
    """AdamW."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above(0, self, "adapter_length")
        at_least(0, self, "adapter_start")

    def settings(self) -> terms.Prefix | terms.Scale:
        """The adapter that these options describe."""
        from lathe.transforms import terms

        return terms.Prefix(self.adapter_length, self.adapter_start)


@dataclass(frozen=True)
class AdapterV2(Adapter):
    _: KW_ONLY
    method: Method = "adapter_v2"

    def settings(self) -> terms.Scale:
        from lathe.transforms import terms

        return terms.Scale(terms.Prefix(self.adapter_length, self.adapter_start))


METHODS: dict[str, type[Finetune]] = {"lora": Lora, "full": Full, "adapter": Adapter, "adapter_v2": AdapterV2}
