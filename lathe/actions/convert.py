"""Turns a checkpoint in any form into one in another, tensor by tensor, and checks it if asked; knows no bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lathe import hub
from lathe.actions import modelfile
from lathe.actions.place import Places, weights_at
from lathe.errors import MissingError, UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from lathe.checkpoint import Checkpoint
    from lathe.tokenizer import Tokenizer
    from lathe.weights.tensors import Box, Ref

NAMES = {
    **dict.fromkeys(("bf16", "bfloat16"), "BF16"),
    **dict.fromkeys(("fp16", "f16", "float16"), "F16"),
    **dict.fromkeys(("fp32", "f32", "float32"), "F32"),
}
MIXES = ("Q8_0", "Q4_0", "Q4_K_M")  # GGUF only


@dataclass(frozen=True)
class Options(Places):
    source: str
    """Folder, file or repo id of the model."""
    target: Path
    """Where it is written: a folder, or for GGUF a file."""
    _: KW_ONLY
    to: Literal["hf", "litgpt", "gguf"] | None = None
    """hf, litgpt or gguf; left out, gguf for a target that ends in .gguf, else hf."""
    dtype: str = "auto"
    """bf16, fp16, fp32, in GGUF also Q8_0, Q4_0 and Q4_K_M; auto keeps every tensor as it is."""
    adapter: tuple[str, ...] = ()
    """A LoRA or another adapter to merge into the model on the way, a folder or repo id. May be given several times."""
    modelfile: bool = False
    """Write an Ollama Modelfile beside a GGUF file: its template, and every token that ends an answer."""
    verify: bool = False
    """Open what was written and compare tensors, scores and greedy tokens with the source."""
    force: bool = False
    """Replace what is at the target, once the new one is whole."""


def run(options: Options) -> int:
    """Write a model in another form.

    Any form that opens can be written as any other: a folder for transformers (hf), one for LitGPT, or a GGUF file for
    llama.cpp. Adapters are merged. Tensors pass through memory a piece at a time, so a model of any size needs little.
    The target appears under its name when it is whole. With --verify the exit status is 1 when it is not the same
    model.
    """
    form = options.to or ("gguf" if options.target.suffix == ".gguf" else "hf")
    dtype = known(options.dtype, form)
    from lathe import checkpoint
    from lathe.families import ggml

    source = checkpoint.open(weights_at(options.source, options.checkpoints), options.checkpoints)
    if options.adapter:
        named = checkpoint.by_name(options.adapter)
        source = checkpoint.put_on(source, {name: hub.find(str(at), options.checkpoints) for name, at in named.items()})
    place = options.target
    if form == "gguf" and place.suffix != ".gguf":
        place = place / f"{place.name}-{dtype or checkpoint.kept(source.dtype)}.gguf"
    if place.exists() and not options.force and (place.is_file() or any(place.iterdir())):
        raise UsageError(f"{place} exists already.", "", "Choose another place, or add --force to replace it.")
    if options.modelfile and form != "gguf":
        raise UsageError("--modelfile is for GGUF files.", fix="Add --to gguf.")
    beside = modelfile.text(place, source.tokenizer()) if options.modelfile else None
    write(source, place, form, dtype, options.force)
    print(f"Wrote {place}", file=sys.stderr)
    if beside is not None:
        (place.parent / "Modelfile").write_text(beside, encoding="utf-8")
        print(f"Wrote {place.parent / 'Modelfile'}: ollama create NAME -f it", file=sys.stderr)
    if form == "gguf" and (passed := ggml.unheeded(source.config, source.spec)):
        print(f"llama.cpp ignores some of it, and answers otherwise there: {', '.join(passed)}.", file=sys.stderr)
    return verify(source, place) if options.verify else 0


def known(dtype: str, form: str) -> str | None:
    """The one name of a dtype, None for auto. Raises UsageError for one that the form does not have."""
    here = NAMES | (dict.fromkeys(MIXES) if form == "gguf" else {})
    names = {name.lower(): name for name in here}
    if dtype == "auto":
        return None
    if dtype.lower() not in names:
        fix = did_you_mean(dtype, here)
        if dtype.upper() in MIXES:
            fix = "Only GGUF has it: add --to gguf."
        shown = ", ".join(("bf16", "fp16", "fp32", *(MIXES if form == "gguf" else ())))
        raise UsageError(f'"{dtype}" is no type that weights are written in.', f"Known are auto, {shown}.", fix)
    name = names[dtype.lower()]
    return NAMES.get(name, name)


def write(
    source: Checkpoint, place: Path, form: str, dtype: str | None, force: bool = False, settings: str | None = None
) -> None:
    """Write `source` at `place`, showing how far it is where somebody watches. The arguments are those of
    `checkpoint.save`."""
    from lathe import checkpoint

    total = sum(ref.nbytes for ref in source.tensors.values())
    with counting(f"Writing {place}", total) as read:
        checkpoint.save(
            place,
            {name: watched(ref, read) for name, ref in source.tensors.items()},
            source.config,
            form=form,
            dtype=dtype,
            generation=source.generation,
            tokenizer=tokenizer(source),
            settings=settings,
            replace=force,
        )


def tokenizer(source: Checkpoint) -> Tokenizer | None:
    """The source's, or None where it has none, which is said."""
    try:
        return source.tokenizer()
    except MissingError as error:
        print(f"Written without a tokenizer: {error.found}", file=sys.stderr)
        return None


@contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, gone when it is full, and what tells it of bytes; nothing where no terminal is."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def watched(ref: Ref, read: Callable[[int], None]) -> Ref:
    """A Ref that says how many bytes are read of it."""

    def fetch(box: Box) -> Tensor:
        tensor = ref.fetch(box)
        read(tensor.nbytes)
        return tensor

    return replace(ref, fetch=fetch)


def verify(source: Checkpoint, place: Path) -> int:
    """Say how the model at `place` differs from its source; 1 if it is another."""
    from lathe import checkpoint
    from lathe.actions.compare import compare

    found = compare(source, checkpoint.open(place))
    for line in found.told():
        print(line)
    return 0 if found.same else 1
