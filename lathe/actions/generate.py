"""Turns a prompt and a model into text on standard output, or one JSON object; knows no tensor."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lathe import hub
from lathe.actions import ranks
from lathe.actions.bounds import at_least
from lathe.actions.lines import decoded
from lathe.actions.loading import Adapters, Speaking
from lathe.actions.place import weights_at
from lathe.actions.terminal import harmless, note
from lathe.actions.wishes import Settings
from lathe.errors import MissingError, PromptError, UsageError

if TYPE_CHECKING:
    import torch

    from lathe.llm import Completion, Reply
    from lathe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Options(Speaking, Adapters, Settings):
    model: str
    """Folder, file or repo id."""
    _: KW_ONLY
    prompt: str | None = None
    """What to answer or continue; "-", or nothing where standard input is a pipe or file, reads it from there."""
    prompt_file: Path | None = None
    """Read the prompt from this file."""
    raw: bool = False
    """Continue the prompt as it is, also where the model has a chat template."""
    system: str | None = None
    """A system message before the prompt, for a model with a chat template."""
    num_samples: int = 1
    """How many answers to make, side by side; with a seed, further ones take the numbers that follow it."""
    json: bool = False
    """Print one JSON object with texts, tokens and timings when all is done, instead of text as it comes."""
    logprobs: int | None = None
    """With --json, tell how likely so many of the likeliest tokens were in each place."""
    draft_tokens: int | None = None
    """How many tokens it guesses at once. By default 4, and up to 8 with ngram."""
    devices: int | Literal["auto"] = 1
    """How many devices the model is divided among; auto takes all GPUs."""
    strategy: Literal["tensor", "layers"] = "tensor"
    """How it is divided. tensor: a part of every layer on each, in as many processes, which is faster. layers: some of
    the layers on each, one after the other, which only makes room."""

    def __post_init__(self) -> None:
        at_least(1, self, "num_samples", "draft_tokens")
        if self.devices != "auto" and self.devices < 1:
            raise UsageError(f"--devices is {self.devices}.", "It must be at least 1, or auto.")
        if self.logprobs is not None and not self.json:
            raise UsageError("--logprobs is given, and only JSON has room for them.", fix="Add --json.")
        if self.system is not None and self.raw:
            raise UsageError("There is a --system message, and --raw takes the prompt as it is.", fix="Leave one out.")
        if self.prompt is not None and self.prompt_file is not None:
            raise UsageError("There are two prompts, --prompt and --prompt-file.", fix="Leave one of them out.")


def run(options: Options) -> None:
    """Print the text that follows a prompt.

    A model with a chat template answers the prompt as a user's message; one without continues it as a text. The text
    goes to standard output as it comes, and how long it took to standard error.
    """
    prompt = read(options.prompt, options.prompt_file)
    path = weights_at(options.model, options.checkpoints)
    if options.devices == "auto" and options.strategy == "tensor":
        from lathe.source import places

        options = replace(options, devices=len(places(options.device, "auto")))
    if options.devices == 1 or options.strategy == "layers":
        return answer(options.device, options, path, prompt)
    if options.draft not in (None, "ngram"):
        hub.find(options.draft, options.checkpoints)  # downloaded once, not by every process
    from lathe import checkpoint
    from lathe.source import places
    from lathe.transforms.group import Group
    from lathe.transforms.shard import Share

    devices = places(options.device, options.devices)
    Share(
        checkpoint.open(path, options.checkpoints).spec, Group(0, len(devices))
    )  # what cannot be divided is refused before anything starts
    if options.seed is None:  # all must throw the same dice
        options = replace(options, seed=random.getrandbits(32))
    options = replace(options, devices=len(devices))
    return ranks.run(answer, len(devices), devices[0].type, options, path, prompt)


def answer(device: str | torch.device, options: Options, path: Path, prompt: str) -> None:
    """Load the model and print what it says; of several processes, the first prints and all compute."""
    from lathe.module import messages
    from lathe.transforms.group import Group

    speaks = Group.joined().rank == 0
    begun = time.perf_counter()
    llm = options.load(
        path,
        device,
        devices=options.devices,
        strategy=options.strategy,
        adapter=options.adapter or None,
        draft_tokens=options.draft_tokens,
    )
    load_seconds = time.perf_counter() - begun
    wishes = options.wishes() | {"logprobs": options.logprobs}
    seeds = [None if options.seed is None else options.seed + number for number in range(options.num_samples)]
    asked = prompt if options.system is None else messages(prompt, options.system)
    replies = [llm.stream(asked, raw=options.raw, **wishes | {"seed": seed}) for seed in seeds]
    for number, reply in enumerate(replies, 1):
        if len(replies) > 1 and speaks and not options.json:
            note(f"Sample {number} of {len(replies)}:")
        show(reply, silent=options.json or not speaks)
    answers = [reply.completion for reply in replies]
    if not speaks:
        return
    timings = timed(load_seconds, answers)
    guesses = guessed(options.draft, answers) if options.draft else {}
    if options.json:
        samples = [sample(answer, llm.tokenizer if options.logprobs else None) for answer in answers]
        page = {"model": options.model, "prompt": prompt, "samples": samples, "timings": timings}
        print(json.dumps(page | guesses, ensure_ascii=False, indent=2))
    else:
        note(told(timings, **guesses))


def read(prompt: str | None, file: Path | None = None) -> str:
    """The prompt, from a file or standard input where it is to come from there.

    Raises PromptError, UsageError, MissingError.
    """
    if prompt is None and file is None and sys.stdin.isatty():
        raise PromptError("There is no prompt.", fix='Give --prompt "...", or pipe a text in.')
    if prompt is None or prompt == "-":
        data, place = (content(file), str(file)) if file else (sys.stdin.buffer.read(), "Standard input")
        # The line's end that echo and editors add is not meant: a model would take it for the end of a paragraph.
        prompt = decoded(data, place).removesuffix("\n").removesuffix("\r")
    if not prompt:
        raise PromptError("The prompt is empty.", "It must hold at least one character.")
    return prompt


def content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise MissingError(f"--prompt-file {file} cannot be read: {error.strerror}.") from None


def show(reply: Reply, silent: bool) -> None:
    """Take a reply to its end, and print it as it comes unless `silent`."""
    fit = harmless if sys.stdout.isatty() else str
    for piece in reply:
        if not silent:
            print(fit(piece), end="", flush=True)
    if not silent:
        print(flush=True)


def timed(load_seconds: float, answers: Sequence[Completion]) -> dict[str, float]:
    """How long all the answers took together, and tokens per second of reading and of writing."""
    prefill = max(answer.prefill_seconds for answer in answers)
    decode = max(answer.prefill_seconds + answer.decode_seconds for answer in answers) - prefill
    read = sum(answer.usage.prompt_tokens for answer in answers)
    written = sum(answer.usage.completion_tokens for answer in answers)
    return {
        "load_seconds": load_seconds,
        "prefill_tokens": read,
        "prefill_seconds": prefill,
        "prefill_tokens_per_second": read / prefill,
        "decode_tokens": written,
        "decode_seconds": decode,
        # The first token of each answer comes out of the prefill.
        "decode_tokens_per_second": (written - len(answers)) / decode if decode else 0.0,
    }


def guessed(draft: str, answers: Sequence[Completion]) -> dict[str, Any]:
    """How good a draft's guesses were; the rate is None where it made none."""
    proposed, accepted = (sum(getattr(answer, n) for answer in answers) for n in ("proposed", "accepted"))
    rate = accepted / proposed if proposed else None
    return {"draft": {"model": draft, "proposed": proposed, "accepted": accepted, "acceptance_rate": rate}}


def told(timings: dict[str, float], draft: dict[str, Any] | None = None) -> str:
    t = timings
    reading = f"Read {t['prefill_tokens']} tokens at {t['prefill_tokens_per_second']:.1f} tokens/s"
    writing = f"wrote {t['decode_tokens']} at {t['decode_tokens_per_second']:.1f} tokens/s"
    guesses = f" {draft['accepted']} of {draft['proposed']} guesses of the draft stood." if draft else ""
    return f"Loaded in {t['load_seconds']:.2f} s. {reading}, {writing}.{guesses}"


def sample(answer: Completion, words: Tokenizer | None) -> dict[str, Any]:
    """One answer for JSON, with the likeliest tokens in each place where a tokenizer says what they are."""
    found: dict[str, Any] = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "tokens": answer.tokens,
        "logprobs": answer.logprobs,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
    }
    if words is not None:
        tops = [[{"id": id, "token": words.get(id), "logprob": n} for id, n in top] for top in answer.top]
        found["top_logprobs"] = tops
    return found
