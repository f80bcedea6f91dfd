"""A model and examples of what it shall answer become an adapter for it, or the model changed whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe import compat
from lathe.actions import course, launch
from lathe.actions.place import weights_at
from lathe.actions.training import Eval, Optimizer, Preference, Train
from lathe.errors import DataError, UsageError
from lathe.options import fields, read_recipe

if TYPE_CHECKING:
    import torch

    from lathe.checkpoint import Checkpoint
    from lathe.data.examples import Examples
    from lathe.data.render import Group, Renderer
    from lathe.model.decoder import Decoder
    from lathe.training import saves
    from lathe.training.loop import Objective
    from lathe.training.precision import Precision
    from lathe.training.spread import Spread
    from lathe.transforms import terms

NAME = "default"  # of the adapter that learns, as PEFT calls one alone
EPOCHS = 3  # where no limit is given
ROW = 2048  # tokens of an example, by default, where the model has as many positions


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
        mean = examples.tokens / len(examples)  # tokens of an example
        wanted = (self.max_tokens and self.max_tokens / mean, self.epochs and self.epochs * len(examples))
        limits = [self.max_steps, *(limit and math.ceil(limit / self.global_batch_size) for limit in wanted)]
        return min(
            (limit for limit in limits if limit), default=math.ceil(EPOCHS * len(examples) / self.global_batch_size)
        )


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
class Finetune(course.Options):
    model: str
    """Folder, file or repo id of the model to begin with."""
    _: KW_ONLY
    data: tuple[str, ...]
    """A file or folder of examples: Alpaca's, ShareGPT's or OpenAI's messages, prompts and completions, texts. May be
    given several times, with weights: a.json:0.7 and b.jsonl:0.3. lathe data shows what is learned from it."""
    method: Literal["lora", "full", "adapter", "adapter_v2"] = "lora"
    """What learns. --help with --method shows what each takes."""
    objective: Literal["next-token", "dpo", "ipo", "hinge", "simpo", "orpo"] = "next-token"
    """What is learned: to write the answers, or to prefer those that are chosen to those that are rejected."""
    preference: Preference = field(default_factory=Preference)
    """What counts for a preference."""
    out_dir: Path = Path("out/finetune")
    """Where the run writes; its model is OUT_DIR/final."""
    prompt_style: str | None = None
    """Write conversations in LitGPT's prompt style of this name instead of the model's chat template. By default
    alpaca for a model that has no template."""
    loss_on: Literal["assistant", "last", "all"] = "assistant"
    """What is learned: every answer of a conversation, only the last one, or all of the text."""
    columns: tuple[str, ...] = ()
    """What columns are called here and in the data: prompt=question,completion=answer."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be learned from, instead of ending with their list. lathe data shows them."""
    max_repeats: float = 0.3
    """The part of the rows that may say what an earlier one says."""
    train: FinetuneTrain = field(default_factory=FinetuneTrain)
    """How long and how much."""
    eval: FinetuneEval = field(default_factory=FinetuneEval)
    """Validation."""

    @classmethod
    def understood(cls, words: Sequence[str]) -> tuple[type[course.Options], list[str]]:
        """The options of the method that the words, or the recipe that they name, ask for."""
        recipe = compat.value(words, "config")
        told = compat.value(words, "method") or (read_recipe(recipe).get("method") if recipe else None)
        return METHODS.get(str(told), cls), list(words)

    def bound(self) -> list[str]:
        own = [option.key for option in fields(type(self)) if option.key.startswith(("lora_", "adapter_", "quantize"))]
        return [*super().bound(), "method", "objective", "prompt_style", "loss_on", *own]

    def __post_init__(self) -> None:
        super().__post_init__()
        course.check(self, "preference.beta", above=True)
        if not 0 <= self.preference.label_smoothing < 0.5:
            found = f"--preference.label-smoothing is {self.preference.label_smoothing}."
            raise UsageError(found, "It must be from 0 to below 0.5.")
        if not isinstance(self, METHODS[self.method]):
            raise UsageError(f"The options are those of another method than {self.method}.", "", "Type lathe finetune.")


@dataclass(frozen=True)
class Lora(Finetune):
    _: KW_ONLY
    method: Literal["lora", "full", "adapter", "adapter_v2"] = "lora"
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
        course.check(self, "lora_r", above=True)
        course.check(self, "lora_alpha", above=True)
        if not 0 <= self.lora_dropout < 1:
            raise UsageError(f"--lora-dropout is {self.lora_dropout}.", "It must be from 0 to below 1.")

    def settings(self) -> terms.Lora:
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
    method: Literal["lora", "full", "adapter", "adapter_v2"] = "full"
    optimizer: FullOptimizer = field(default_factory=FullOptimizer)
    """AdamW."""


@dataclass(frozen=True)
class Adapter(Finetune):
    _: KW_ONLY
    method: Literal["lora", "full", "adapter", "adapter_v2"] = "adapter"
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
        course.check(self, "adapter_length", above=True)
        course.check(self, "adapter_start", above=False)


@dataclass(frozen=True)
class AdapterV2(Adapter):
    _: KW_ONLY
    method: Literal["lora", "full", "adapter", "adapter_v2"] = "adapter_v2"


METHODS: dict[str, type[Finetune]] = {"lora": Lora, "full": Full, "adapter": Adapter, "adapter_v2": AdapterV2}
Options = Lora


def run(options: Finetune) -> int | None:
    """Teach a model by examples.

    LoRA learns a small adapter beside the model, --method full changes the model itself. OUT_DIR/final is a model's
    folder or an adapter's, which opens like a model; OUT_DIR/metrics.jsonl gets a line for every step. Ctrl-C ends the
    run after the step at hand and saves what there is.
    """
    return launch.together(work, options)


def work(options: Finetune, device: torch.device) -> int | None:
    """One process of it."""
    import torch

    from lathe import checkpoint
    from lathe.training import precision, preference

    out, train = course.console(), options.train
    step = course.begun(options)
    base = opened(options)
    chosen = replace(precision.choose(device.type, options.precision or stored(options, base)), device=device)
    spread = course.spread(options, device, base.spec, chosen.weights.itemsize, isinstance(options, Full))
    renderer, examples, held = lessons(options, base)
    torch.manual_seed(options.seed)
    begin = checkpoint.open(step) if step and isinstance(options, Full) else base
    given = course.loaded(spread, begin, chosen, packed(options), dense=isinstance(options, Full))
    decoder = adapted(options, spread, given, base, renderer.ends)
    steps = train.steps_of(examples)
    generation = {**base.generation, "eos_token_id": list(renderer.ends)}
    torch.manual_seed(options.seed + spread.rank)  # each process leaves out what it learns without
    where: dict[str, Any] = {"rows": train.micro_batch_size, "device": device}
    where |= {"rank": spread.rank, "ranks": spread.count}
    if options.objective != "next-token":
        where["weigh"] = preference.pairs

    def model() -> saves.Model:
        if isinstance(options, Full):
            return spread.share(decoder)
        whole = spread.whole(decoder, [n for n, p in decoder.named_parameters() if p.requires_grad])
        if whole is None:
            return ()
        named = str(base.path.resolve()) if Path(options.model).exists() else options.model
        if isinstance(options, Adapter):
            return checkpoint.llama_adapter_files(whole, NAME, named)
        return checkpoint.adapter_files(whole, NAME, base.config, named)

    made = course.Course(
        title=f"{options.model} on {' '.join(options.data)}",
        plan=plan(options, renderer, examples, held, decoder, steps),
        decoder=decoder,
        spread=spread,
        precision=chosen,
        objective=objective(options, decoder, base, chosen, spread),
        perplexity=options.objective == "next-token",
        data=examples.training(train.global_batch_size, seed=options.seed, **where),
        held=partial(held.validation, train.global_batch_size, **where) if len(held) else None,
        steps=steps,
        model=model,
        config=base.config,
        generation=generation,
        tokenizer=renderer.tokenizer,
        # What shards hold is brought together for learning only: its engine would be too slow.
        say=partial(answers, options, decoder, renderer, held, generation)
        if options.eval.max_new_tokens and spread.grid.shards == 1
        else None,
    )
    return course.follow(made, options, step, out)


def objective(options: Finetune, decoder: Decoder, base: Checkpoint, chosen: Precision, spread: Spread) -> Objective:
    """What the decoder learns. The reference of a preference is the model without the adapter, or a second one, which
    lies on the processes as the first does."""
    from lathe.training import loss, preference

    if options.objective == "next-token":
        return loss.next_token(decoder, chosen.autocast, options.train.z_loss, options.train.balance_loss)
    wanted = options.preference
    settings = preference.Settings(options.objective, wanted.beta, wanted.label_smoothing, wanted.margin)
    if isinstance(options, Full) and options.objective not in preference.ALONE:
        other = course.loaded(type(spread)(spread.device, spread.grid), base, chosen)
        # A copy, because weights that are loaded twice from one file may lie in the same memory.
        reference = preference.fixed(copy.deepcopy(other) if spread.grid.shards == spread.grid.slices == 1 else other)
    else:
        reference = preference.without_adapters(decoder)
    return preference.objective(decoder, settings, reference, chosen.autocast)


def opened(options: Finetune) -> Checkpoint:
    """The model to begin with. Raises UsageError for an adapter."""
    from lathe import checkpoint

    base = checkpoint.open(weights_at(options.model, options.checkpoints), options.checkpoints)
    if isinstance(base, checkpoint.Adapted):
        fix = f"Merge it first: lathe merge {options.model} MERGED. Then finetune MERGED."
        raise UsageError(f"{options.model} is an adapter.", "What is finetuned is a model.", fix)
    return base


def packed(options: Finetune) -> str | None:
    """How the model is kept beside what learns."""
    return options.quantize if isinstance(options, Lora | Adapter) else None


def stored(options: Finetune, base: Checkpoint) -> Literal["32-true", "bf16-true"] | None:
    """The precision that a model beside an adapter is kept in: that of its files. None where all of it learns."""
    if isinstance(options, Full):
        return None
    return "bf16-true" if base.dtype.itemsize == 2 else "32-true"


def lessons(options: Finetune, base: Checkpoint) -> tuple[Renderer, Examples, Examples]:
    """What writes examples for the model, those to train on, and those held out.

    Raises:
        UsageError: the model has fewer positions than are asked for.
        CheckpointError: it has no row for a token of the tokenizer beside it.
        DataError, TokenizerError: there is nothing to learn, or a row is broken.
    """
    from lathe.data import check, sources
    from lathe.data.examples import Examples
    from lathe.data.formats import Samples, parse_columns
    from lathe.data.presets import sides
    from lathe.data.render import Renderer

    length = course.row(options, base.spec.context, min(base.spec.context, ROW))
    renderer = Renderer(base.tokenizer(), options.loss_on, options.prompt_style)
    course.fits(renderer.tokenizer, base.spec, "The tokenizer's files in the model's folder should be its own.")

    def examined(data: Sequence[str]) -> Examples:
        samples = Samples(sources.rows(data), parse_columns(options.columns))
        report = check.examine(samples, renderer, length)
        check.refuse(report, options.skip_bad_rows, options.max_repeats)
        agree(options, report.groups)
        return Examples(report.groups, length, report.cut, len(report.faults) + report.unwanted)

    data, held = sides(options.data, options.val_split_fraction, options.val_data)
    if isinstance(held, float):
        return renderer, *examined(data).split(held, options.seed)
    return renderer, examined(data), examined(held)


def agree(options: Finetune, groups: Sequence[Group]) -> None:
    """Raise DataError where the data are not what the objective learns from."""
    name, paired = " ".join(options.data), options.objective != "next-token"
    if paired and any(len(group) == 1 for group in groups):
        expected = "Each row must have two answers, chosen and rejected."
        raise DataError(f"{name} holds answers without another to compare them with.", expected)
    if not paired and any(len(group) > 1 for group in groups):
        found = f"{name} holds pairs of answers, chosen and rejected, to learn a preference from."
        raise DataError(found, "", "Add --objective dpo.")


def adapted(options: Finetune, spread: Spread, decoder: Decoder, base: Checkpoint, ends: Sequence[int]) -> Decoder:
    """The decoder with what the method learns, and nothing else, asking for gradients.

    ends: ids that end an answer. A LoRA is on every matrix but the head, and on the head where that has never learned
    to tell one of them from other tokens: no hidden state could make it the likeliest.
    """
    from lathe.transforms import adapt
    from lathe.transforms.terms import Prefix, Scale

    if isinstance(options, Full):
        return decoder.requires_grad_()
    if isinstance(options, Lora):
        parts = spread.adapter(decoder, options.settings())
        if not options.lora_targets and untaught(base, ends):
            parts |= spread.adapter(decoder, replace(options.settings(), targets=("lm_head",)))
    else:
        assert isinstance(options, Adapter)
        prefix = Prefix(options.adapter_length, options.adapter_start)
        v2 = isinstance(options, AdapterV2)
        parts = spread.adapter(decoder, Scale(prefix) if v2 else prefix)
    adapt.put(decoder, NAME, parts)
    adapt.trainable(decoder, [NAME])
    return decoder


def untaught(base: Checkpoint, ids: Sequence[int]) -> bool:
    """Whether the head's row of one of these tokens points where that of another token does, as those of all tokens do
    that a model never saw."""
    rows = base.tensors["model.embed_tokens.weight" if base.spec.tied else "lm_head.weight"].read()
    lengths = rows.norm(dim=1)
    alike = [(rows @ rows[id] > 0.999 * lengths * lengths[id]).sum().item() for id in ids]
    return any(count != 1 for count in alike)


def answers(
    options: Finetune, decoder: Decoder, renderer: Renderer, held: Examples, generation: Mapping[str, Any]
) -> str:
    """What the model answers at the moment, to the questions of --eval.prompt or to the first that is held out."""
    from lathe.llm import LLM

    llm = LLM(decoder, renderer.tokenizer, {}, generation)
    room = decoder.spec.context - options.eval.max_new_tokens
    questions = [question for question in held.questions() if len(question) < room][:1]
    asked: list[str] = [*options.eval.prompt] or [renderer.tokenizer.decode(question) for question in questions]
    made = llm.batch(options.eval.prompt or questions, max_new_tokens=options.eval.max_new_tokens, temperature=0.0)
    shown = []
    for question, said in zip(asked, made, strict=True):
        shown += [f"  > {' '.join(question.split())[-100:]}", f"    {' '.join(said.text.split())}"]
    return "\n".join(shown)


def plan(
    options: Finetune,
    renderer: Renderer,
    examples: Examples,
    held: Examples,
    decoder: Decoder,
    steps: int,
) -> str:
    """What is about to happen, in three lines."""
    learned = sum(p.numel() for p in decoder.parameters() if p.requires_grad)
    size = sum(p.numel() for p in decoder.parameters())
    written = "by the model's chat template" if renderer.own else f"in the prompt style {renderer.tokenizer.style}"
    told = f"{examples.tokens:,} tokens, {examples.supervised:,} of them learned, {written}"
    less = f"; {examples.cut:,} cut to {examples.length} tokens" if examples.cut else ""
    less += f"; {examples.left_out:,} rows left out" if examples.left_out else ""
    epochs = steps * options.train.global_batch_size / len(examples)
    named = " ".join(options.data)
    return (
        f"Data   {named}: {len(examples):,} examples, {told}; {len(held):,} more to validate on{less}\n"
        f"Model  {options.model}: {size:,} parameters, of which {learned:,} learn ({options.method})\n"
        f"Plan   {steps:,} steps of {options.train.global_batch_size} examples, {epochs:.1f} times through the data"
    )
