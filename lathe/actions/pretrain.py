"""Turns text and the shape of a model into a trained model's folder; knows no tensor and no step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe import hub
from lathe.actions import course
from lathe.actions.shape import Shape, adopted, configuration, open_tokenizer
from lathe.errors import CheckpointError, DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from lathe.data.corpus import Corpus
    from lathe.model.decoder import Decoder
    from lathe.tokenizer import Tokenizer
    from lathe.training.precision import Precision


@dataclass(frozen=True)
class Options(course.Options):
    model: str
    """What gives the shape: a model's folder, a config.json, a repo id, or a family (llama) with --shape."""
    _: KW_ONLY
    data: str
    """A .txt or .jsonl file, a folder of them, or python-manual (the one in this Python)."""
    out_dir: Path = Path("out/pretrain")
    """Where the run writes; its model is OUT_DIR/final."""
    initial_checkpoint: str | None = None
    """Continue from the weights of this model instead of random ones."""
    tokenizer: str | None = None
    """Folder or repo id of the tokenizer. By default MODEL's own."""
    train_tokenizer: int | None = None
    """Train a byte-level BPE of this many tokens on the data."""
    shape: Shape = field(default_factory=Shape)
    """Sizes, by their names in config.json; they win over MODEL's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_tokenizer and self.tokenizer:
            raise UsageError("--train-tokenizer and --tokenizer are both given.", "Keep one of them.")


def run(options: Options) -> int | None:
    """Train a model on text, from random weights or from given ones.

    OUT_DIR/final becomes a model's folder like any other, and OUT_DIR/metrics.jsonl gets a line for every step. Ctrl-C
    ends the run after the step at hand and saves what there is.
    """
    from lathe.training import loss, precision
    from lathe.training.run import refuse

    out, train = course.console(), options.train
    chosen = precision.choose(options.device, options.precision)
    refuse(options.out_dir, options.overwrite)
    texts, held = documents(options)
    config, tokenizer = model(options, texts)
    corpus = tokens(options, config, tokenizer, texts, held, out)
    decoder = weights(options, config, tokenizer, chosen)
    steps = train.steps(corpus.length, corpus.documents.targets)

    made = course.Course(
        title=f"{options.model} on {options.data}",
        plan=plan(options, corpus, decoder, steps),
        decoder=decoder,
        objective=loss.next_token(decoder, chosen.autocast),
        data=corpus.training(train.global_batch_size, train.micro_batch_size, options.seed, chosen.device),
        held=partial(corpus.validation, train.micro_batch_size, chosen.device) if corpus.held.targets else None,
        steps=steps,
        model=lambda: decoder,
        config=config,
        generation={} if tokenizer.eos_id is None else {"eos_token_id": tokenizer.eos_id},
        tokenizer=tokenizer,
    )
    return course.follow(made, options, out)


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
