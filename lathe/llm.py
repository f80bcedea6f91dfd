"""A model's name becomes an object that answers: text or messages in, text out; knows no command line and no wire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, overload

import torch
from torch import Tensor

from lathe import checkpoint, engine, hub
from lathe.errors import PromptError, UsageError
from lathe.model.decoder import Decoder
from lathe.module import Module, messages
from lathe.source import Place, Source, number_format, places, same_vocabulary
from lathe.tokenizer import StopStrings, TextStream, Tokenizer, forms
from lathe.transforms import pack
from lathe.transforms.shard import Group, echo

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lathe.evaluation.results import Result

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]

MAX_NEW_TOKENS = 256  # where neither the caller nor the checkpoint says how long an answer may be


class Wishes(TypedDict, total=False):
    """How to answer. What is left out or None is as the checkpoint's generation_config.json says, see `defaults`.

    stop: strings that end the answer and are not part of it. raw: take a string as it is, not as a user's message.
    schema, regex, grammar: what the answer must be, one of them: JSON by a JSON schema (as text or a mapping); text
        that a regular expression matches; or what a grammar in Lark's notation says.
    All others are fields of `engine.Sampling`.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    logprobs: int | None
    min_tokens: int | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    schema: str | Mapping[str, Any] | None
    regex: str | None
    grammar: str | None
    raw: bool


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Completion:
    """One answer.

    text: without the token or string that ended it.
    tokens: all that were generated, an end token included. logprobs: the model's natural log-probability of each.
    top: in the place of each, the likeliest tokens with theirs, as many as the wish `logprobs` says; else none.
    usage: tokens of the prompt, and of the answer.
    finish_reason: "stop" (an end token or stop string), "length" (max_new_tokens, or the context is full),
        "cancelled", or None while it is not finished.
    prefill_seconds: from the request to the first token. decode_seconds: from there to the last.
    proposed, accepted: tokens that a draft guessed ahead, and those of them that stood.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    top: list[tuple[tuple[int, float], ...]]
    finish_reason: Literal["stop", "length", "cancelled"] | None
    usage: Usage
    prefill_seconds: float
    decode_seconds: float
    proposed: int = 0
    accepted: int = 0


class Reply(Iterator[str]):
    """One answer as it comes: pieces of text, each of whole characters. Other replies of the LLM go on meanwhile.

    `LLM.stream` makes it.
    """

    def __init__(self, running: engine.Engine, sequence: engine.Sequence, text: TextStream, stops: StopStrings) -> None:
        self._engine, self._sequence, self._text, self._stops = running, sequence, text, stops
        self._coming = running.stream(sequence)
        self._shown: list[str] = []
        self._tokens: list[engine.Token] = []
        self._ended = False

    def __next__(self) -> str:
        while not self._ended:
            if token := next(self._coming, None):
                piece = self._read(token)
            elif self._sequence.error:
                raise self._sequence.error
            else:
                piece, self._ended = self._stops.push(self._text.flush()) + self._stops.flush(), True
            if piece:
                self._shown.append(piece)
                return piece
        raise StopIteration

    def _read(self, token: engine.Token) -> str:
        self._tokens.append(token)
        if token.id in self._sequence.stops:
            return ""
        piece = self._stops.push(self._text.push(token.id))
        if self._stops.stopped:
            self.close()
        return piece

    @property
    def completion(self) -> Completion:
        """The answer so far; all of it when the iteration has ended."""
        sequence, n = self._sequence, len(self._tokens)
        first, ended = sequence.first or sequence.started, sequence.ended or sequence.started
        return Completion(
            text="".join(self._shown),
            tokens=[token.id for token in self._tokens],
            logprobs=[token.logprob for token in self._tokens if token.logprob is not None],
            top=[token.top for token in self._tokens],
            finish_reason="stop" if self._stops.stopped else self._reason,
            usage=Usage(sequence.prompt, n),
            prefill_seconds=first - sequence.started,
            decode_seconds=ended - first,
            proposed=sequence.proposed,
            accepted=sequence.accepted,
        )

    @property
    def _reason(self) -> Literal["stop", "length", "cancelled"] | None:
        reason = self._sequence.finish
        return None if not self._ended or reason == "failed" else reason

    def close(self) -> None:
        """End the answer here."""
        self._ended = True
        self._engine.cancel(self._sequence)

    def __del__(self) -> None:
        self._engine.cancel(self._sequence)  # a reply that nobody reads must not go on


class LLM(Module):
    """A language model with its tokenizer. One thread at a time may use it.

    Args:
        decoder: the model; None while it is not loaded.
        config, generation: the checkpoint's config.json and generation_config.json, for `save`; the latter also says
            how answers are sampled and which tokens end them.
        drafter: guesses tokens ahead, for speed alone.
        source: what `distribute` and `trainer_setup` load the model from, anew.

    `prompt` is a string (a user's message where the model has a chat template, unless `raw`; else the beginning of a
    text), a list of messages {"role": ..., "content": ...}, or a list of token ids, taken as they are.

    It is a torch module as well, whose parameters are the model's: called with tokens, it gives scores and a loss
    (`forward`), so that it can be trained by a loop or a Trainer of yours.
    """

    def __init__(
        self,
        decoder: Decoder | None,
        tokenizer: Tokenizer,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None = None,
        drafter: engine.Drafter | None = None,
        source: Source | None = None,
    ) -> None:
        super().__init__(decoder, drafter, source)
        self.tokenizer = tokenizer
        self.config, self.generation = config, generation or {}
        self.defaults = defaults(self.generation)
        self.stops = ends(tokenizer, self.generation)

    @staticmethod
    def load(
        model: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        kv: Literal["auto", "int8"] = "auto",
        adapter: checkpoint.Named | None = None,
        draft: str | Path | None = None,
        draft_tokens: int | None = None,
        prompt_style: str = "auto",
        devices: int | Literal["auto"] = 1,
        strategy: Literal["tensor", "layers"] = "layers",
        native: bool = True,
        checkpoints: str | Path = "checkpoints",
        init: Literal["pretrained", "random"] = "pretrained",
        tokenizer_dir: str | Path | None = None,
        access_token: str | None = None,
        distribute: Literal["auto"] | None = "auto",
    ) -> LLM:
        """The model in a folder or file, or with a repo id: found below `checkpoints` or in the cache, or downloaded.

        device: "auto" takes a GPU where there is one. dtype: "auto" keeps that of the files; "bf16", "fp16", "fp32".
        quantize: keep the matrices of layers in 4 bits ("int4", "nf4", "nf4-dq") or 8 ("int8"), to make room: they are
            unpacked whenever they are multiplied, but on some CPUs (see docs/quantize.md). LitGPT's "bnb.nf4" is the
            same.
        kv: "int8" keeps keys and values in 8 bits, which is half the room of bf16 (docs/engine.md); "auto" in the
            number format of the weights.
        devices: with strategy "layers", over how many GPUs the layers are spread ("auto": all), one after the other.
            With "tensor" every layer is divided among as many processes, each of which calls this with its own device
            (`lathe generate --devices` starts them; or torchrun and `torch.distributed.init_process_group`).
        adapter: a folder or repo with an adapter for the model, or several, whose results add up, by names: a mapping,
            or as in "NAME=PATH". `transforms.adapt` switches them, on `LLM.decoder`. An adapter can be named as the
            model, too.
        draft: a smaller model with the same vocabulary, which guesses `draft_tokens` tokens ahead (4 unless told): the
            answers have the same distribution, and are the same where they are greedy, but come sooner. Or "ngram",
            which takes no model: what followed the last tokens before is guessed, and the answers are the same.

        native: on a CPU, compute by kernels that are compiled for this processor when they are first used.
        prompt_style: "auto" writes conversations by the style that LitGPT left beside the weights, else by the chat
            template; the name of a style takes the place of both, and "none" is plain text.
        init: "random" takes only the shape from the model (a name like "pythia-160m" does, too), and draws float32
            weights by torch's dice, so that `torch.manual_seed` repeats them.
        tokenizer_dir: a folder or repo whose tokenizer takes the place of the model's.
        access_token: for the Hub, where a repo is gated or private; $HF_TOKEN is looked at, too.
        distribute: None reads no weight yet; `distribute` or `trainer_setup` will.

        Raises:
            MissingError: there is no such model.
            CheckpointError, ConfigError, TokenizerError: its files are damaged or not understood.
            UsageError: a device or dtype that is not there; a draft with another vocabulary; adapters that do not go
                together; no such way to quantize, or to keep keys and values; a tokenizer with more
                tokens than the model has.
        """
        below = Path(checkpoints)
        if init == "random":
            if adapter is not None or draft is not None:
                raise UsageError("Random weights have no adapter and no draft.", fix='Leave init="random" out.')
            source = Source.random(str(model), prompt_style, tokenizer_dir, below, access_token)
        elif init == "pretrained":
            source = Source.files(str(model), adapter, prompt_style, tokenizer_dir, below, access_token)
        else:
            raise UsageError(f'init is "{init}".', 'It must be "pretrained" or "random".')
        place = Place(device, dtype, quantize, devices, strategy, native, kv)
        drafter = None if draft is None else _drafter(draft, draft_tokens, source, place, below)
        llm = LLM(None, source.tokenizer, source.config, source.generation, drafter, source)
        if distribute is not None:
            llm._put(source.decoder(place), place)
        return llm

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
        """The text of the answer. What else it can be is there for LitGPT's users; see also `stream` and `complete`.

        sys_prompt: a system message before the prompt.
        stream: an iterator over its pieces, as they come.
        return_as_token_ids: its tokens, int64 on the model's device, the one that ended it included; with `stream`,
            one after the other.

        Raises as `stream`.
        """
        if stream:
            reply = self._asked(prompt, sys_prompt, **wishes)
            return _numbers(reply, self.engine.device) if return_as_token_ids else reply
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
        if wishes.get("raw") or not (isinstance(prompt, str) or _is_chat(prompt)):
            raise UsageError("There is a system message, and the prompt is taken as it is.", fix="Leave one out.")
        return self.stream(messages(cast("str", prompt), sys_prompt), **wishes)

    def stream(self, prompt: Prompt, **wishes: Unpack[Wishes]) -> Reply:
        """The text of the answer in pieces, as it comes.

        Raises:
            PromptError: the prompt is empty or too long for the context.
            TokenizerError: the chat template refuses the messages.
            UsageError: a wish is out of range; a schema, regular expression or grammar that is not understood.
        """
        raw, stop = wishes.pop("raw", False), wishes.pop("stop", None) or ()
        grammar = _grammar(wishes.pop("schema", None), wishes.pop("regex", None), wishes.pop("grammar", None))
        sampling = engine.Sampling(**self.defaults | {name: wish for name, wish in wishes.items() if wish is not None})
        if self._dice and sampling.seed is None:
            sampling = replace(sampling, seed=self._dice.getrandbits(32))
        tokens, continued = self._read(prompt, raw)
        turns = () if continued else self.tokenizer.stops
        stops = StopStrings([*([stop] if isinstance(stop, str) else stop), *turns])
        sequence = self.engine.submit(
            tokens, sampling, self.stops, constraint=self.grammars.constraint(grammar) if grammar else None
        )
        return Reply(self.engine, sequence, self.tokenizer.stream(after=tokens if continued else ()), stops)

    def complete(self, prompt: Prompt, **wishes: Unpack[Wishes]) -> Completion:
        """The answer, with its tokens, their log-probabilities, and why it ended."""
        return self.batch([prompt], **wishes)[0]

    def batch(self, prompts: Iterable[Prompt], **wishes: Unpack[Wishes]) -> list[Completion]:
        """The answers to several prompts, made side by side: each is what it would be alone."""
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

    def evaluate(
        self,
        tasks: str | Sequence[str],
        *,
        data: str | Sequence[str] = (),
        num_fewshot: int | None = None,
        fewshot_data: str | None = None,
        limit: float | None = None,
        apply_chat_template: bool = False,
        batch_tokens: int | None = None,
        out_dir: str | Path | None = None,
    ) -> dict[str, Result]:
        """What the model is worth on tasks, by their names.

        tasks: files of rows, "perplexity" of the texts in `data`, and tasks of lm-evaluation-harness; docs/evaluate.md
        has what each gives. The other options are those of `lathe evaluate`; without `out_dir` nothing is written.

        Raises UsageError, MissingError, DataError.
        """
        from lathe.evaluation import results
        from lathe.evaluation.examination import Examination
        from lathe.evaluation.local import Local
        from lathe.evaluation.tasks import Settings

        settings = Settings(num_fewshot, fewshot_data, limit, chat=apply_chat_template)
        names, texts = ([word] if isinstance(word, str) else word for word in (tasks, data))
        subject = Local(self.decoder, self.tokenizer, self.stops, batch_tokens=batch_tokens)
        made = Examination.of(names, settings, data=texts).run(subject)
        if out_dir is not None:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            results.save(Path(out_dir), made, {"model": None, "identity": None})
        return {result.task: result for result in made}

    def save(self, path: str | Path, format: str = "hf") -> None:
        """Write the model for transformers ("hf", a folder), for LitGPT ("litgpt", a folder) or as a "gguf" file.

        Raises:
            UsageError: something is at `path` already, or there is no such format.
            ConfigError: the format has no words for this model.
        """
        checkpoint.save(
            path, self.decoder, self.config, form=format, generation=self.generation, tokenizer=self.tokenizer
        )

    def _read(self, prompt: Prompt, raw: bool) -> tuple[list[int], bool]:
        """A prompt's tokens, and whether the answer continues its text rather than being one of its own."""
        if isinstance(prompt, str):
            if not prompt:
                raise PromptError("The prompt is empty.", "It must hold at least one character.")
            if raw or not self.tokenizer.has_template:
                return self.tokenizer.encode(prompt), True
            prompt = [{"role": "user", "content": prompt}]
        if _is_chat(prompt):
            # The template writes all special tokens itself: a second BOS in front would be one too many.
            text = self.tokenizer.render(cast("Sequence[Mapping[str, Any]]", prompt))
            return self.tokenizer.encode(text, special=False), False
        return list(cast("Sequence[int]", prompt)), True


def defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling as generation_config.json asks for it.

    `do_sample: false` is greedy. A file that says nothing about sampling gives temperature 0.8 among the 50 best
    tokens; in one that does, what it leaves out is neutral.
    """
    names = ("temperature", "top_k", "top_p", "min_p")
    told = {name: generation[name] for name in names if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        told = {"temperature": 0.0}
    elif not told and not generation.get("do_sample"):
        told = {"temperature": 0.8, "top_k": 50}
    for name, default in (("repetition_penalty", 1.0), ("max_new_tokens", MAX_NEW_TOKENS)):
        told[name] = generation.get(name) or default
    return {**told, "logprobs": 0}


def _is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and any(isinstance(item, Mapping) for item in prompt)


def _numbers(reply: Reply, device: torch.device) -> Iterator[Tensor]:
    """The tokens of an answer as they come, each of shape (1,)."""
    given = 0
    for _ in reply:
        made = reply.completion.tokens[given:]
        given += len(made)
        yield from torch.tensor(made, device=device).split(1)
    yield from torch.tensor(reply.completion.tokens[given:], device=device, dtype=torch.int64).split(1)


def _drafter(draft: str | Path, count: int | None, source: Source, place: Place, checkpoints: Path) -> engine.Drafter:
    """Who guesses ahead: a model, or nobody but the text itself. Raises LatheError as `LLM.load`."""
    if draft == "ngram":
        return engine.Lookup(8 if count is None else count)
    group, small = Group.joined(), checkpoint.open(hub.find(str(draft), checkpoints))
    assert source.opened is not None  # random weights have no draft
    same_vocabulary(small, source.tokenizer, source.opened.path)
    divided = place.strategy == "tensor" and group.count > 1
    device = places(place.device, 1 if place.strategy == "tensor" else place.devices)[0]
    guesser = small.load(device, number_format(place.dtype))
    if place.native and device.type == "cpu":
        pack.pack(guesser)
    return engine.DraftModel(echo(guesser, group) if divided else guesser, 4 if count is None else count)


def _grammar(schema: str | Mapping[str, Any] | None, regex: str | None, grammar: str | None) -> str | None:
    told = [name for name, value in (("schema", schema), ("regex", regex), ("grammar", grammar)) if value is not None]
    if len(told) > 1:
        raise UsageError(f"An answer is to follow a {told[0]} and a {told[1]}.", fix="Leave one out.")
    if schema is not None:
        return forms.of_schema(schema)
    return grammar if regex is None else forms.of_regex(regex)


def ends(tokenizer: Tokenizer, generation: Mapping[str, Any]) -> frozenset[int]:
    """The tokens that end an answer."""
    return frozenset((*tokenizer.eos_ids, *_ids(generation.get("eos_token_id"))))


def _ids(told: int | Sequence[int] | None) -> Sequence[int]:
    return () if told is None else [told] if isinstance(told, int) else told
