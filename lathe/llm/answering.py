"""A decoder, its tokenizer and an engine answer prompts: one or many, whole or as they come, and judge texts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from torch import Tensor

from lathe import engine
from lathe.errors import UsageError
from lathe.llm.reply import Completion, Reply, numbers
from lathe.llm.wishes import Prompt, Wishes, defaults, ends, grammar, is_chat, read
from lathe.model.decoder import Decoder
from lathe.module import Module, messages
from lathe.source import Source
from lathe.tokenizer import StopStrings, Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Answering(Module):
    """What `lathe.LLM` does with prompts.

    generation: generation_config.json, which says how answers are sampled and which tokens end them. All else as in
    `LLM`.

    Attributes:
        defaults: the wishes that hold where none is made.
        stops: ids that end an answer.
    """

    def __init__(
        self,
        decoder: Decoder | None,
        tokenizer: Tokenizer,
        generation: Mapping[str, Any],
        drafter: engine.Drafter | None,
        source: Source | None,
    ) -> None:
        super().__init__(decoder, tokenizer, drafter, source)
        self.generation = generation
        self.defaults = defaults(generation)
        self.stops = ends(tokenizer, generation)

    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        sys_prompt: str | None = ...,
        stream: Literal[False] = ...,
        return_as_token_ids: Literal[False] = ...,
        **wishes: Unpack[Wishes],
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: Prompt,
        *,
        sys_prompt: str | None = ...,
        stream: bool = ...,
        return_as_token_ids: bool = ...,
        **wishes: Unpack[Wishes],
    ) -> str | Tensor | Iterator[str] | Iterator[Tensor]: ...
    def generate(
        self,
        prompt: Prompt,
        *,
        sys_prompt: str | None = None,
        stream: bool = False,
        return_as_token_ids: bool = False,
        **wishes: Unpack[Wishes],
    ) -> str | Tensor | Iterator[str] | Iterator[Tensor]:
        """The text of the answer. The other forms are LitGPT's; `stream` and `complete` tell more.

        sys_prompt: a system message before the prompt.
        stream: return an iterator over the pieces of the text, as they come.
        return_as_token_ids: return the tokens, int64 on the model's device, the one that ended the answer included;
            with `stream`, one at a time.

        Raises as `stream`.
        """
        if stream:
            reply = self._asked(prompt, sys_prompt, **wishes)
            return numbers(reply, self.engine.device) if return_as_token_ids else reply
        answer = self._answered(prompt, sys_prompt, **wishes)
        return torch.tensor(answer.tokens, device=self.engine.device) if return_as_token_ids else answer.text

    def _answered(self, prompt: Prompt, sys_prompt: str | None = None, **wishes: Unpack[Wishes]) -> Completion:
        reply = self._asked(prompt, sys_prompt, **wishes)
        for _ in reply:
            pass
        return reply.completion

    def _asked(self, prompt: Prompt, sys_prompt: str | None, **wishes: Unpack[Wishes]) -> Reply:
        if sys_prompt is None:
            return self.stream(prompt, **wishes)
        if wishes.get("raw") or not (isinstance(prompt, str) or is_chat(prompt)):
            raise UsageError("There is a system message, and the prompt is taken as it is.", fix="Leave one out.")
        return self.stream(messages(cast("str", prompt), sys_prompt), **wishes)

    def stream(self, prompt: Prompt, **wishes: Unpack[Wishes]) -> Reply:
        """The text of the answer in pieces, as it comes.

        Raises:
            PromptError: the prompt is empty or too long for the context.
            TokenizerError: the chat template refuses the messages.
            UsageError: a wish is out of range; a schema, regular expression or grammar is not understood.
        """
        raw, stop = wishes.pop("raw", False), wishes.pop("stop", None) or ()
        form = grammar(wishes.pop("schema", None), wishes.pop("regex", None), wishes.pop("grammar", None))
        sampling = engine.Sampling(**self.defaults | {name: wish for name, wish in wishes.items() if wish is not None})
        if self._dice and sampling.seed is None:
            sampling = replace(sampling, seed=self._dice.getrandbits(32))
        tokens, continued = read(prompt, self.tokenizer, raw)
        turns = () if continued else self.tokenizer.stops
        stops = StopStrings([*([stop] if isinstance(stop, str) else stop), *turns])
        constraint = None if form is None else self.grammars.constraint(form)
        sequence = self.engine.submit(tokens, sampling, self.stops, constraint=constraint)
        return Reply(self.engine, sequence, self.tokenizer.stream(after=tokens if continued else ()), stops)

    def complete(self, prompt: Prompt, **wishes: Unpack[Wishes]) -> Completion:
        """The answer, with its tokens, their log-probabilities, and why it ended. Raises as `stream`."""
        return self.batch([prompt], **wishes)[0]

    def batch(self, prompts: Iterable[Prompt], **wishes: Unpack[Wishes]) -> list[Completion]:
        """The answers to several prompts, made side by side: each is what it would be alone. Raises as `stream`."""
        replies = [self.stream(prompt, **wishes) for prompt in prompts]
        going = replies
        while going:  # in turn, so that each sees its stop strings in time
            going = [reply for reply in going if next(reply, None) is not None]
        return [reply.completion for reply in replies]

    @cached_property
    def grammars(self) -> engine.Grammars:
        """Makes constraints for the model's vocabulary."""
        words = self.tokenizer
        return engine.Grammars(words.spellings, words.special_ids, self.stops, self.decoder.spec.vocab)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Scores of every next token, without a cache. Returns T V, float32."""
        return self.engine.logits(tokens)

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Natural log-probability of each token after the first, given those before it."""
        return self.engine.score(tokens)

    def benchmark(self, num_iterations: int = 1, **asked: Any) -> tuple[str, dict[str, list[float]]]:
        """Answer a prompt several times, and time it.

        num_iterations: how many times. asked: what `generate` takes.

        Returns the last answer's text and, by name, a figure of each time: seconds until the first token and until the
        last, tokens, tokens per second over all of it, and on a GPU the most memory held, in GB. Raises as `generate`.
        """
        if num_iterations < 1:
            raise UsageError(f"num_iterations is {num_iterations}.", "It must be at least 1.")
        found: dict[str, list[float]] = {}
        for told in ("stream", "return_as_token_ids"):
            asked.pop(told, None)  # the work is the same
        for _ in range(num_iterations):
            begun = time.perf_counter()
            answer = self._answered(**asked)
            seconds, count = time.perf_counter() - begun, answer.usage.completion_tokens
            found.setdefault("Seconds total", []).append(seconds)
            found.setdefault("Seconds to first token", []).append(answer.prefill_seconds)
            found.setdefault("Tokens generated", []).append(count)
            found.setdefault("Inference speed in tokens/sec", []).append(count / seconds)
            if self.engine.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated() / 1e9
                found.setdefault("Total GPU memory allocated in GB", []).append(peak)
        return answer.text, found
