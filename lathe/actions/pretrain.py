"""Turns text and the shape of a model into a trained model's folder; knows no tensor and no step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe import hub
from lathe.actions.shape import Shape, adopted, configuration, open_tokenizer
from lathe.actions.training import Eval, Optimizer, Train
from lathe.errors import CheckpointError, DataError, UsageError
from lathe.options import to_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from lathe.data.corpus import Corpus
    from lathe.model.decoder import Decoder
    from lathe.tokenizer import Tokenizer
    from lathe.training.precision import Precision


@dataclass(frozen=True)
class Options:
    model: str
    """What gives the shape: a model's folder, a config.json, a repo id, or a family (llama) with --shape."""
    _: KW_ONLY
    data: str
    """A .txt or .jsonl file, a folder of them, or python-manual (the one in this Python)."""
    out_dir: Path = Path("out/pretrain")
    """Where the run writes; its model is OUT_DIR/final."""
    overwrite: bool = False
    """Replace the model of an earlier run in OUT_DIR, once the new one is finished."""
    initial_checkpoint: str | None = None
    """Continue from the weights of this model instead of random ones."""
    tokenizer: str | None = None
    """Folder or repo id of the tokenizer. By default MODEL's own."""
    train_tokenizer: int | None = None
    """Train a byte-level BPE of this many tokens on the data."""
    val_split_fraction: float = 0.05
    """The part of the documents that is held out for validation."""
    precision: Literal["32-true", "bf16-true", "bf16-mixed"] | None = None
    """Number format. By default bf16-mixed on a GPU, 32-true on a CPU."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute. By default on a CUDA GPU if there is one."""
    seed: int = 42
    """For the weights, the order of the data and what is held out."""
    checkpoints: Path = Path("checkpoints")
    """Where models named by their repo id are looked for and downloaded to."""
    shape: Shape = field(default_factory=Shape)
    """Sizes, by their names in config.json; they win over MODEL's."""
    train: Train = field(default_factory=Train)
    """How long and how much."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """AdamW."""
    eval: Eval = field(default_factory=Eval)
    """Validation."""

    def __post_init__(self) -> None:
        above = [f"train.{name}" for name in ("max_steps", "max_tokens", "epochs", "max_seq_length", "max_norm")]
        above += [
            "train.global_batch_size",
            "train.micro_batch_size",
            "eval.interval",
            "eval.max_iters",
            "optimizer.lr",
        ]
        least = [
            *dict.fromkeys(above, True).items(),
            ("train.lr_warmup_steps", False),
            ("optimizer.weight_decay", False),
        ]
        for name, positive in least:
            value = attrgetter(name)(self)
            if value is not None and (value < 0 or (positive and value == 0)):
                spelt = f"--{name.replace('_', '-')}"
                raise UsageError(f"{spelt} is {value}.", f"It must be {'above' if positive else 'at least'} 0.")
        if self.train_tokenizer and self.tokenizer:
            raise UsageError("--train-tokenizer and --tokenizer are both given.", "Keep one of them.")
        if not 0 <= self.val_split_fraction < 1:
            raise UsageError(f"--val-split-fraction is {self.val_split_fraction}.", "It must be from 0 to below 1.")
        if not 0 <= self.train.min_lr <= self.optimizer.lr:
            found = f"--train.min-lr is {self.train.min_lr} and --optimizer.lr is {self.optimizer.lr}."
            raise UsageError(found, "The learning rate falls to min-lr, so it cannot be higher.")


def run(options: Options) -> int | None:
    """Train a model on text, from random weights or from given ones.

    OUT_DIR/final becomes a model's folder like any other, and OUT_DIR/metrics.jsonl gets a line for every step. Ctrl-C
    ends the run after the step at hand and saves what there is.
    """
    from rich.console import Console

    from lathe.training import loop, loss, optim, precision
    from lathe.training.limits import Limits
    from lathe.training.progress import Display
    from lathe.training.run import Run, interruptible, refuse
    from lathe.training.schedule import Schedule

    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    train, adamw = options.train, options.optimizer
    refuse(options.out_dir, options.overwrite)
    chosen = precision.choose(options.device, options.precision)
    texts, held = documents(options)
    config, tokenizer = model(options, texts)
    corpus = tokens(options, config, tokenizer, texts, held, console)
    decoder = weights(options, config, tokenizer, chosen)
    steps = train.steps(corpus.length, corpus.documents.targets)
    console.print(plan(options, corpus, decoder, steps))

    optimizer = optim.adamw(decoder.parameters(), adamw.lr, adamw.weight_decay, (adamw.beta1, adamw.beta2))
    schedule = Schedule("cosine", train.warmup(steps), train.min_lr / adamw.lr)
    objective = loss.next_token(decoder, chosen.autocast)
    data = corpus.training(train.global_batch_size, train.micro_batch_size, options.seed, chosen.device)
    with Run(options.out_dir, options.overwrite) as record, interruptible() as stopped:
        with Display(console, steps) as display:

            def after(step: loop.Step) -> bool:
                record.step(step)
                display.step(step)
                if corpus.held.targets and (step.number == steps or step.number % options.eval.interval == 0):
                    batches = corpus.validation(train.micro_batch_size, chosen.device)
                    mean = loop.mean(objective, islice(batches, options.eval.max_iters))
                    loop.check(mean, step.number)
                    record.validated(step.number, mean)
                    display.say(f"step {step.number}  validation loss {mean:.3f}  perplexity {math.exp(mean):.1f}")
                return not stopped()

            loop.train(objective, [optimizer], data, schedule, Limits(steps), train.max_norm, after)
        done = len(record.training)
        generation = {} if tokenizer.eos_id is None else {"eos_token_id": tokenizer.eos_id}
        name = "final" if done == steps else f"step-{done:06}"
        recipe = to_yaml(options)
        place = record.save(name, decoder, config, generation=generation, tokenizer=tokenizer, recipe=recipe)
    console.print(record.draw(f"{options.model} on {options.data}"))
    speed, time = record.tokens / record.seconds, timedelta(seconds=round(record.seconds))
    console.print(f"Saved {place} after {done:,} steps in {time}, {speed:,.0f} tokens/s")
    return None if done == steps else 130


def documents(options: Options) -> tuple[Sequence[str], Sequence[str]]:
    """The texts to train and to validate on."""
    from lathe.data import sources

    return sources.split(sources.find(options.data), options.val_split_fraction, options.seed)


def model(options: Options, texts: Sequence[str]) -> tuple[dict[str, Any], Tokenizer]:
    """The configuration of the model to be, and its tokenizer: MODEL's own, another one, or a new one."""
    from lathe.tokenizer import train_bpe

    config, place = configuration(options.model, options.shape, options.train.max_seq_length, options.checkpoints)
    if options.train_tokenizer:
        tokenizer = train_bpe(texts, options.train_tokenizer)
    elif options.tokenizer:
        tokenizer = open_tokenizer(hub.find(options.tokenizer, options.checkpoints, weights=False))
    elif place:
        return config, open_tokenizer(place)
    else:
        fix = "Give --tokenizer FOLDER, or --train-tokenizer 8192 to train one on the data."
        raise UsageError(f"{options.model} comes without a tokenizer.", fix=fix)
    return adopted(config, tokenizer), tokenizer


def tokens(
    options: Options,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    held: Sequence[str],
    console: Console,
) -> Corpus:
    """The texts as ids, in rows as long as asked for. Raises UsageError where the model has fewer positions."""
    from rich.progress import track

    from lathe import families
    from lathe.data.corpus import Corpus
    from lathe.data.tokens import Tokens

    context = families.read(config).context
    length = options.train.max_seq_length or context
    if length > context:
        found = f"--train.max-seq-length is {length}, and the model has {context} positions."
        raise UsageError(found, fix=f"Take at most {context}.")
    hidden = not console.is_terminal
    shown, ids = track(texts, "encoding", console=console, transient=True, disable=hidden), Tokens.encode
    corpus = Corpus(ids(shown, tokenizer), ids(held, tokenizer), length)
    if not corpus.documents.targets:
        raise DataError(f"{options.data} has nothing to predict.", "It needs a document of at least two tokens.")
    return corpus


def weights(options: Options, config: dict[str, Any], tokenizer: Tokenizer, chosen: Precision) -> Decoder:
    """The decoder that training begins with. Raises CheckpointError where weights or tokenizer do not fit the model."""
    from lathe import checkpoint, families
    from lathe.training import initial

    spec = families.read(config)
    if tokenizer.vocab_size > spec.vocab:
        found = f"The tokenizer has {tokenizer.vocab_size:,} tokens, and the model rows for {spec.vocab:,}."
        raise CheckpointError(found, fix="Take the model's own tokenizer, or name it with --tokenizer.")
    if options.initial_checkpoint is None:
        return initial.decoder(spec, options.seed, chosen.device).to(chosen.weights)
    given = checkpoint.open(hub.find(options.initial_checkpoint, options.checkpoints), options.checkpoints)
    if given.spec != spec:
        found = f"{given.path} is another model than {options.model}, or of another size."
        raise CheckpointError(found, "Weights can only be continued in their own shape.")
    return given.load(chosen.device, chosen.weights).requires_grad_()


def plan(options: Options, corpus: Corpus, decoder: Decoder, steps: int) -> str:
    """What is about to happen, in three lines."""
    size = sum(parameter.numel() for parameter in decoder.parameters())
    origin = f"the weights of {options.initial_checkpoint}" if options.initial_checkpoint else "random weights"
    each = options.train.global_batch_size * corpus.length
    epochs = steps * each / corpus.documents.targets
    held = f"{len(corpus.held):,} more, {len(corpus.held.ids):,} tokens, to validate on"
    return (
        f"Data   {options.data}: {len(corpus.documents):,} documents, {len(corpus.documents.ids):,} tokens; {held}\n"
        f"Model  {options.model}: {size:,} parameters in {len(decoder.spec.layers)} layers, starting from {origin}\n"
        f"Plan   {steps:,} steps of {each:,} tokens, {epochs:.1f} times through the data"
    )
