"""An adapter and the model it was made for become one model's folder, which answers the same; knows no tensor."""

from __future__ import annotations

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lathe import hub
from lathe.actions import convert
from lathe.actions.place import Places
from lathe.errors import UsageError

if TYPE_CHECKING:
    from lathe.checkpoint import Adapted, Checkpoint

QUESTIONS = ("Who are you?", "What is the capital of France?", "Write a sentence about the sea.", "Thanks!")
WRITTEN = 64  # tokens of an answer that are compared


@dataclass(frozen=True)
class Options(Places):
    adapter: str
    """Folder, file or repo id of the adapter, as OUT_DIR/final of a finetuning."""
    out: Path
    """A folder for the merged model."""
    _: KW_ONLY
    base: str | None = None
    """The model to merge it into. By default the one that the adapter names."""
    dtype: str = "auto"
    """What weights become: bf16, fp16, fp32; auto keeps every tensor as it is in the base."""
    verify: bool = False
    """Ask the adapter on its base and the merged model the same, and compare their answers token by token."""
    force: bool = False
    """Replace what is at OUT, once the new one is whole."""


def run(options: Options) -> int:
    """Put an adapter into its base: a model that needs neither.

    Every matrix is computed in float32 and rounded once, a piece at a time. With --verify the exit status is 1 when the
    merged model answers otherwise.
    """
    dtype = convert.known(options.dtype, "hf")
    source = opened(options)
    if options.out.exists() and not options.force and (options.out.is_file() or any(options.out.iterdir())):
        raise UsageError(f"{options.out} exists already.", "", "Choose another place, or add --force to replace it.")
    note(source)
    convert.write(source, options.out, "hf", dtype, options.force)
    print(f"Wrote {options.out}", file=sys.stderr)
    return verify(source, options.out) if options.verify else 0


def opened(options: Options) -> Adapted:
    """The adapter on its base. Raises UsageError for what is no adapter."""
    from lathe import checkpoint

    place = hub.find(options.adapter, options.checkpoints)
    if options.base is None:
        source = checkpoint.open(place, options.checkpoints)
    else:
        model = checkpoint.open(hub.find(options.base, options.checkpoints), options.checkpoints)
        source = checkpoint.put_on(model, {"default": place}, place)
    if not isinstance(source, checkpoint.Adapted):
        raise UsageError(f"{options.adapter} is a model, and no adapter.", "There is nothing to merge.")
    return source


def note(source: Checkpoint) -> None:
    """Say what will be different where the adapter learned on a quantized base."""
    from lathe import checkpoint

    file = source.folder / "recipe.yaml"
    kept = checkpoint.read_yaml(file).get("quantize") if file.is_file() else None
    if kept:
        told = f"The adapter learned beside weights in {kept}, and is merged into those that they were made from."
        print(f"{told} These are more exact: answers may differ a little from those in training.", file=sys.stderr)


def verify(source: Adapted, out: Path) -> int:
    """Say whether both give the same greedy tokens and stop at the same place; 1 if not."""
    from lathe import checkpoint

    before, after = (answers(found) for found in (source, checkpoint.open(out)))
    same = sum(a == b for a, b in zip(before, after, strict=True))
    ended = sum(reason == "stop" for _, reason in after)
    print(f"answers  {same} of {len(QUESTIONS)} are the same, token by token; {ended} of them end by themselves")
    for question, (said, why), (now, how) in zip(QUESTIONS, before, after, strict=True):
        if (said, why) != (now, how):
            at = next((n for n, (a, b) in enumerate(zip(said, now, strict=False)) if a != b), min(len(said), len(now)))
            print(f"         {question!r}: another token after {at}, and it ends by {how} where it was {why}")
    if same < len(QUESTIONS):
        print("         the weights were rounded once more: --dtype fp32 keeps what merging adds")
    return 0 if same == len(QUESTIONS) else 1


def answers(found: Checkpoint) -> list[tuple[list[int], str | None]]:
    """The greedy answers, and what ended each."""
    from lathe.llm import LLM

    llm = LLM(found.load(), found.tokenizer(), found.config, found.generation)
    made = llm.batch(QUESTIONS, temperature=0.0, max_new_tokens=WRITTEN)
    return [(answer.tokens, answer.finish_reason) for answer in made]
