"""Turns text and the shape of a model into a trained model's folder; knows no tensor and no step."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe import hub
from lathe.actions import course, launch, outset, training
from lathe.actions.bounds import at_least
from lathe.actions.place import weights_at
from lathe.actions.shape import Shape, adopted, configuration, open_tokenizer
from lathe.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from lathe.data.corpus import Corpus
    from lathe.model.decoder import Decoder
    from lathe.tokenizer import Tokenizer
    from lathe.training.precision import Precision
    from lathe.training.spread import Spread


@dataclass(frozen=True)
class Options(training.Options):
    model: str
    """What gives the shape: a model's folder, a config.json or its text, a repo id, or a family (llama) with
    --shape."""
    _: KW_ONLY
    data: tuple[str, ...]
    """Files or folders of texts or code, .jsonl, .csv, .parquet, compressed or not; the id of a data set at the Hub; or
    a name, as TinyStories or python-manual. May be given several times, with weights: a.jsonl:0.7. docs/sources.md has
    the whole of it."""
    text_column: str | None = None
    """The field that holds the text in rows. By default text or content."""
    out_dir: Path = Path("out/pretrain")
    """Where the run writes; its model is OUT_DIR/final."""
    initial_checkpoint: str | None = None
    """Continue from the weights of this model instead of random ones."""
    tokenizer: str | None = None
    """Folder or repo id of the tokenizer. By default MODEL's own."""
    train_tokenizer: int | Literal["char"] | None = None
    """Train a byte-level BPE of this many tokens on the data; char: a token for each of its characters."""
    num_workers: int | None = None
    """Processes that turn the data into tokens while training has begun; 0: none, it is done in between. By default as
    many as there are processors but one, at most 8, and none for little data."""
    shape: Shape = field(default_factory=Shape)
    """Sizes, by their names in config.json; they win over MODEL's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_tokenizer and self.tokenizer:
            raise UsageError("--train-tokenizer and --tokenizer are both given.", "Keep one of them.")
        at_least(0, self, "num_workers")


def run(options: Options) -> int | None:
    """Train a model on text, from random weights or from given ones.

    OUT_DIR/final becomes a model's folder like any other, and OUT_DIR/metrics.jsonl gets a line for every step. Ctrl-C
    ends the run after the step at hand and saves what there is.
    """
    return launch.together(work, options)


def work(options: Options, device: torch.device) -> int | None:
    """One process of it."""
    from lathe import families
    from lathe.data import sources
    from lathe.training import loss, precision

    out, train = course.console(), options.train
    chosen = replace(precision.choose(device.type, options.precision), device=device)
    step = outset.begun(options)
    sources.read(options.data)  # what is not there is said before anything is made of it
    config, tokenizer = model(options)
    corpus = tokens(options, config, tokenizer, out)
    spread = outset.spread(options, device, families.read(config), chosen.weights.itemsize, all_learn=True)
    decoder = weights(options, config, tokenizer, chosen, step, spread)
    where: dict[str, Any] = {"device": device, "rank": spread.rank, "ranks": spread.count}
    steps = train.steps(corpus.length, lambda: corpus.targets)

    made = course.Course(
        title=f"{options.model} on {' '.join(options.data)}",
        plan=plan(options, corpus, decoder, steps),
        decoder=decoder,
        spread=spread,
        precision=chosen,
        objective=loss.next_token(decoder, chosen.autocast, options.train.z_loss, options.train.balance_loss),
        data=corpus.training(train.global_batch_size, train.micro_batch_size, options.seed, **where),
        held=partial(corpus.validation, train.micro_batch_size, **where) if corpus.held else None,
        steps=steps,
        model=lambda: spread.share(decoder),
        config=config,
        generation={} if tokenizer.eos_id is None else {"eos_token_id": tokenizer.eos_id},
        tokenizer=tokenizer,
    )
    try:
        return course.follow(made, options, step, out)
    finally:
        corpus.close()


def model(options: Options) -> tuple[dict[str, Any], Tokenizer]:
    """The configuration of the model to be, and its tokenizer: MODEL's own, another one, or a new one."""
    from lathe.data import sources
    from lathe.data.presets import sides
    from lathe.tokenizer import train_bpe, train_characters

    config, place = configuration(options.model, options.shape, options.train.max_seq_length, options.checkpoints)
    texts = sources.stream(sides(options.data, options.val_split_fraction, options.val_data)[0], options.text_column)
    if options.train_tokenizer == "char":
        tokenizer = train_characters(texts)
    elif options.train_tokenizer:
        tokenizer = train_bpe(texts, options.train_tokenizer)
    elif options.tokenizer:
        own = hub.find(options.tokenizer, options.checkpoints, weights=False)
        tokenizer = open_tokenizer(own)
        if place and own.resolve() == place.resolve():  # there may be more rows than tokens, which then stay
            return config, tokenizer
    elif place:
        return config, open_tokenizer(place)
    else:
        fix = "Give --tokenizer FOLDER, or --train-tokenizer 8192 to train one on the data."
        raise UsageError(f"{options.model} comes without a tokenizer.", fix=fix)
    return adopted(config, tokenizer), tokenizer


def tokens(options: Options, config: dict[str, Any], tokenizer: Tokenizer, console: Console) -> Corpus:
    """The texts as ids, in rows as long as asked for. Raises UsageError where the model has fewer positions."""
    from lathe import families
    from lathe.data.corpus import Corpus
    from lathe.data.presets import sides

    context = families.read(config).context
    length = outset.row(options, context, context)

    def waiting(chunks: int) -> None:
        if console.is_terminal:
            console.print(f"Encoding: waiting for part {chunks + 1}, of about 4 MB of text each", end="\r")

    data, held = sides(options.data, options.val_split_fraction, options.val_data)
    return Corpus.of(
        data,
        tokenizer,
        length,
        held=held,
        seed=options.seed,
        column=options.text_column,
        workers=options.num_workers,
        waiting=waiting,
    )


def weights(
    options: Options,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    chosen: Precision,
    step: Path | None,
    spread: Spread,
) -> Decoder:
    """The decoder that training begins with, or goes on with from a step. Raises CheckpointError where weights or
    tokenizer do not fit the model."""
    from lathe import checkpoint, families
    from lathe.model import initial
    from lathe.weights.tensors import Ref

    spec = families.read(config)
    outset.fits(tokenizer, spec, "Take the model's own tokenizer, or name it with --tokenizer.")
    if options.initial_checkpoint is None and step is None:
        drawn = ((name, Ref.of(values)) for name, values in initial.drawn(spec, options.seed))
        return spread.load(spec, drawn, chosen.weights, chosen.autocast)
    place = step or weights_at(str(options.initial_checkpoint), options.checkpoints)
    given = checkpoint.open(place, options.checkpoints)
    if given.spec != spec:
        found = f"{given.path} is another model than {options.model}, or of another size."
        raise CheckpointError(found, "Weights can only be continued in their own shape.")
    return outset.loaded(spread, given, chosen, dense=True).requires_grad_()


def plan(options: Options, corpus: Corpus, decoder: Decoder, steps: int) -> str:
    """What is about to happen, in three lines."""
    size = sum(parameter.numel() for parameter in decoder.parameters())
    origin = f"the weights of {options.initial_checkpoint}" if options.initial_checkpoint else "random weights"
    each = options.train.global_batch_size * corpus.length
    known = [files.totals if files.count else files.whole for files in corpus.files]  # little is encoded at once
    totals = [some for some in known if some]
    if len(totals) == len(known):
        documents, tokens = sum(some.documents for some in totals), sum(some.tokens for some in totals)
        held = sum(some.held_documents for some in totals), sum(some.held_tokens for some in totals)
        there = f"{documents:,} documents, {tokens:,} tokens; {held[0]:,} more, {held[1]:,} tokens, to validate on"
        epochs = f", {steps * each / corpus.targets:.1f} times through the data"
    else:
        there, epochs = "being encoded while training has begun", ""
    return (
        f"Data   {' '.join(options.data)}: {there}\n"
        f"Model  {options.model}: {size:,} parameters in {len(decoder.spec.layers)} layers, starting from {origin}\n"
        f"Plan   {steps:,} steps of {each:,} tokens{epochs}"
    )
