"""Turns a model's checkpoint into one in fewer bits, and says what that costs; knows no code and no format."""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lathe.actions import convert, quality
from lathe.actions.bounds import at_least
from lathe.actions.place import Places, weights_at
from lathe.errors import UsageError

if TYPE_CHECKING:
    from lathe.checkpoint import Checkpoint
    from lathe.weights.tensors import Ref

TEXT = 1 << 14  # tokens
GUIDED = ("gptq", "awq")  # methods that go by a text


@dataclass(frozen=True)
class Options(Places):
    source: str
    """Folder, file or repo id of the model; of an adapter, which is merged into its base on the way."""
    target: Path
    """Where it is written: a folder, or for Q8_0, Q4_0 and Q4_K_M a .gguf file."""
    _: KW_ONLY
    to: Literal["int8", "int4", "nf4", "fp8", "Q8_0", "Q4_0", "Q4_K_M"]
    """int8, int4, nf4 or fp8, for Lathe, transformers and vLLM; Q8_0, Q4_0 or Q4_K_M, for llama.cpp too."""
    method: Literal["nearest", "hqq", "gptq", "awq"] | None = None
    """How int4's numbers are chosen: each the nearest; with zero points beside scales (hqq); or by a text (gptq, which
    --calibrate alone means; or awq, with zero points)."""
    calibrate: Path | None = None
    """A text to choose int4's numbers by (gptq, awq), so that what the model makes of such text changes least."""
    calibrate_tokens: int = 1 << 15
    """How many tokens of it, from its beginning."""
    check: Path | None = None
    """A text to compare both models on: perplexity, and how often both would write the same token."""
    check_tokens: int = TEXT
    """How many tokens of it, up to its end."""
    force: bool = False
    """Replace what is at the target, once the new one is whole."""

    def __post_init__(self) -> None:
        if self.calibrate is not None and self.to != "int4":
            found = f"--calibrate is given, and --to is {self.to}."
            raise UsageError(found, "Only int4 is calibrated.", "Take --to int4, or leave --calibrate out.")
        if self.method is not None and self.to != "int4":
            found = f"--method is given, and --to is {self.to}."
            raise UsageError(found, "Only int4 is made in several ways.", "Take --to int4, or leave --method out.")
        guided = self.method in GUIDED
        if self.method is not None and guided != (self.calibrate is not None):
            fix = "Name one with --calibrate." if guided else "Leave --calibrate or --method out."
            wish = "is" if guided else "is not"
            raise UsageError(f"--method is {self.method}, which {wish} guided by a text.", fix=fix)
        at_least(2, self, "calibrate_tokens", "check_tokens")
        if self.to not in convert.MIXES and self.target.suffix == ".gguf":
            fix = f"Choose {', '.join(convert.MIXES)}, or a folder."
            raise UsageError(f"{self.target} is to be a GGUF file, which has no {self.to}.", fix=fix)

    @property
    def kind(self) -> str:
        """What transforms.quantize calls these codes."""
        return "int4-zp" if self.method in ("hqq", "awq") else self.to


def run(options: Options) -> None:
    """Write a model in fewer bits, which every action takes as it is.

    The matrices of layers are rounded, a layer at a time, so that memory for the quantized model and a layer is enough.
    Embedding, head, norms and routers stay as they are; GGUF's types have bits for some of these, too.

    With --check, both models are measured on a text. The target appears under its name when it is whole.
    """
    from lathe import checkpoint

    source = checkpoint.open(weights_at(options.source, options.checkpoints), options.checkpoints)
    place = options.target
    if options.to in convert.MIXES and place.suffix != ".gguf":
        place = place / f"{place.name}-{options.to}.gguf"
    if not options.force:
        checkpoint.refuse(place)
    tokenizer = source.tokenizer() if options.check or options.calibrate else None
    context = source.spec.context
    texts = (
        tokenizer and options.check and quality.rows(options.check, tokenizer, context, options.check_tokens, end=True)
    )
    learned = (
        tokenizer
        and options.calibrate
        and quality.rows(options.calibrate, tokenizer, context, options.calibrate_tokens)
    )
    if source.quantized:
        print(f"{source.path} is quantized already ({source.quantized}): what that lost stays lost.", file=sys.stderr)
    if options.to in convert.MIXES:
        convert.write(source, place, "gguf", options.to, options.force)
    else:
        write(source, place, codes(source, options.kind, learned or None), options.force)
    made, before, after = checkpoint.open(place), size(source), weights(place)
    print(f"Wrote {place}: {after / 1e6:,.1f} MB, {after / before:.0%} of what it was", file=sys.stderr)
    if options.to not in convert.MIXES and (left := whole(made)):
        some = f"{left[0]} is one" if len(left) > 1 else left[0]
        print(f"{len(left)} matrices of layers stay as they were: {some}.", file=sys.stderr)
    if texts:
        compare(source, made, options.to, texts)


def codes(source: Checkpoint, how: str, rows: list[list[int]] | None) -> dict[str, Ref]:
    """The codes of matrices by names, calibrated on rows of tokens where there are any, and what goes with them."""
    from lathe.checkpoint import coding

    total = sum(ref.nbytes for name, ref in source.tensors.items() if name.startswith("model.layers."))
    found: dict[str, Ref] = {}
    with convert.counting(f"Rounding to {how}", total) as read:
        made = coding.nearest(source, how) if rows is None else coding.calibrated(source, rows, how)
        for name, ref in made:
            found[name] = ref
            read(ref.nbytes)
    return found


def write(source: Checkpoint, place: Path, coded: dict[str, Ref], force: bool) -> None:
    from lathe import checkpoint
    from lathe.weights.coded import Coded

    checkpoint.save(
        place,
        {**source.tensors, **{name: ref for name, ref in coded.items() if not isinstance(ref, Coded)}},
        source.config,
        generation=source.generation,
        tokenizer=convert.tokenizer(source),
        coded=coded,
        replace=force,
    )


def compare(source: Checkpoint, made: Checkpoint, how: str, texts: list[list[int]]) -> None:
    """Print what both make of a text."""
    before = quality.measure(source, texts, source.dtype)
    after = quality.measure(made, texts, source.dtype, how if how == "fp8" else None)  # whose codes are else unpacked
    count = len(after.likeliest)
    print(f"{'':8}{'perplexity':>12}{'the same token':>18}      of {count:,}")
    print(f"{'before':8}{before.perplexity:12.3f}")
    change = after.perplexity / before.perplexity - 1
    print(f"{how:8}{after.perplexity:12.3f}{after.agrees(before):18.1%}      {change:+.2%} perplexity")


def whole(found: Checkpoint) -> list[str]:
    """The matrices of layers that are in no codes: in the files they are parts of stacks, or too narrow."""
    from lathe import checkpoint
    from lathe.transforms import quantize
    from lathe.weights.coded import Coded

    names = [f"{module}.weight" for module, _ in quantize.matrices(checkpoint.blank(found.spec))]
    return [name for name in names if not isinstance(found.tensors[name], Coded)]


def size(found: Checkpoint) -> int:
    """Bytes of a model's numbers, in the types that they are read in."""
    return sum(ref.nbytes for ref in found.tensors.values())


def weights(place: Path) -> int:
    """Bytes of the files that hold a model's weights."""
    files = [place] if place.is_file() else place.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
