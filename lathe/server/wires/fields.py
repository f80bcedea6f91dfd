"""The fields of a body that OpenAI's clients send, checked, become the wishes of an Ask; none is dropped in silence.

A field that changes the answer is declared and honoured, or is in `REFUSED` and refused by name. One that changes
nothing is in `COSMETIC`. Any other is reported in the answer's header, or refused where the server is strict.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from fastapi import Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from lathe.errors import did_you_mean
from lathe.server.ask import Form
from lathe.server.refusals import Misused, Unsupported
from lathe.server.wires.forms import StructuredOutputs, choice, grammar_of, structured

MOST_ANSWERS = 16  # n
MOST_STOPS = 16
MOST_BIASES = 1024
MOST_TOP = 20

# Who asks, where the answer is kept or billed, which of a peer's slots or caches it should take.
COSMETIC = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention"
    " id_slot n_keep request_id kv_transfer_params mm_processor_kwargs".split()
)

# What Lathe has no such thing for, with the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "length_penalty": (1,),
    "lora": ([],),
    "mirostat": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "n_indent": (0,),
    "post_sampling_probs": (False,),
    "prediction": (),
    "prompt_logprobs": (),
    "samplers": (),
    "suffix": ("",),
    "t_max_predict_ms": (0, -1),
    "top_n_sigma": (-1,),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbose": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
    "xtc_probability": (0,),
}


class StreamOptions(BaseModel):
    """include_usage: a last chunk with the usage. continuous_usage_stats: the usage so far in every chunk."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = (
        None  # of the lengths of frames; there is nothing to hide behind on one's own machine
    )


def _json_only(request: Request) -> None:
    """Also keeps pages of other sites out: a browser asks before it sends JSON for them, and is refused."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise HTTPException(415, "The body must be JSON, and the header Content-Type say so: application/json.")


JSON = Depends(_json_only)

Finite = Annotated[float, Field(allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
Text = str | Ids


def several(texts: Text | list[Text]) -> list[Text]:
    """One or several texts or lists of ids as a list of them."""
    if isinstance(texts, list) and not isinstance(texts[0], int):
        return texts
    return [texts]


class Body(BaseModel):
    """What every body has in common: a model's name, and fields that nobody knows."""

    model_config = ConfigDict(extra="allow", strict=True)
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = REFUSED
    cosmetic: ClassVar[frozenset[str]] = COSMETIC
    instead: ClassVar[Mapping[str, str]] = {}  # what to do without a field that is refused

    model: str | None = Field(None, max_length=1024)

    def unknown(self, strict: bool) -> list[str]:
        """The names of fields that nobody knows. Raises Misused for one that cannot be done, or, if strict, any."""
        extra = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        for name, value in extra.items():
            if name in self.refused and value not in self.refused[name]:
                raise Unsupported(name, f"{name} is not supported.", fix=self.instead.get(name, "Leave it out."))
        unknown = [name for name in extra if name not in self.refused and name not in self.cosmetic]
        if unknown and strict:
            near = did_you_mean(unknown[0], type(self).model_fields)
            found = f'"{unknown[0]}" is not a field of this request.'
            raise Misused(unknown[0], found, fix=near or "Leave it out.")
        return unknown


class Wished(Body):
    """What chat completions and completions have in common.

    Beside OpenAI's names stand vLLM's for what OpenAI does not have, and llama.cpp's for what it calls otherwise.
    """

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    max_tokens: int | None = Field(None, ge=-1, lt=2**31)
    n_predict: int | None = Field(None, ge=-1, lt=2**31)
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    temperature: Finite | None = Field(None, ge=0)
    top_p: Finite | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: Finite | None = Field(None, ge=0, le=1)
    repetition_penalty: Finite | None = Field(None, gt=0)
    repeat_penalty: Finite | None = Field(None, gt=0)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Bias] | None = Field(None, max_length=MOST_BIASES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MOST_BIASES)
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    cache_salt: str | None = Field(None, max_length=1024)
    cache_prompt: bool | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, min_length=1)
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None

    def wishes(self) -> dict[str, Any]:
        """Fields of `engine.Sampling`, those that are named. Raises Misused."""
        if self.stream_options is not None and not self.stream:
            raise Misused("stream_options", "stream_options is given, and stream is not true.", fix="Set stream.")
        same = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "min_tokens", "seed")
        wishes = {name: getattr(self, name) for name in same}
        wishes["top_k"] = 0 if self.top_k == -1 else self.top_k
        wishes["repetition_penalty"] = self.one_of("repetition_penalty", "repeat_penalty")
        wishes["logit_bias"] = self._biases()
        return {name: wish for name, wish in wishes.items() if wish is not None}

    def longest(self, *names: str, least: int = 1) -> int | None:
        """The most tokens of an answer: the field that is there; -1 for as many as there is room for, None unsaid."""
        most = self.one_of(*names)
        if most == 0 < least:
            raise Misused(self._told(names)[0], "An answer of 0 tokens is asked for.", "It must be 1 or more.")
        return most

    def one_of(self, *names: str) -> Any:
        """The value of one field that has several names. Raises Misused for two that contradict each other."""
        told = self._told(names)
        if len({getattr(self, name) for name in told}) > 1:
            raise Misused(told[1], f"{told[0]} and {told[1]} say different things.", fix="Say it once.")
        return getattr(self, told[0]) if told else None

    def _told(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    def _biases(self) -> list[tuple[int, float]] | None:
        biases: list[tuple[int, float]] = []
        for token, bias in (self.logit_bias or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise Misused("logit_bias", "A key of logit_bias is no token id.", "Ids are whole numbers.")
            biases.append((int(token), bias))
        return biases or None

    def stops(self) -> tuple[str, ...]:
        told = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if any(not text or len(text) > 1024 for text in told):
            raise Misused("stop", "A stop string is empty or longer than 1,024 characters.")
        return tuple(told)

    def form(self, response: Form | None = None) -> Form | None:
        """What the text must be, by response_format or the fields of vLLM and llama.cpp. Raises Misused for two."""
        forms = {
            "response_format": response,
            "structured_outputs": self.structured_outputs and structured(self.structured_outputs),
            "guided_json": None if self.guided_json is None else Form("schema", self.guided_json),
            "guided_regex": self.guided_regex and Form("regex", self.guided_regex),
            "guided_choice": self.guided_choice and choice(self.guided_choice),
            "guided_grammar": self.guided_grammar and grammar_of("guided_grammar", self.guided_grammar),
            "json_schema": None if self.json_schema is None else Form("schema", self.json_schema),
            "grammar": self.grammar and grammar_of("grammar", self.grammar),
        }
        told = {name: form for name, form in forms.items() if isinstance(form, Form)}
        if len(told) > 1:
            raise Misused(
                list(told)[1], f"{' and '.join(told)} both say what the text must be.", fix="Use one of them."
            )
        return next(iter(told.values()), None)

    def others(self) -> dict[str, Any]:
        """The fields of an Ask that need no thought. Raises Misused."""
        salt = secrets.token_hex(8) if self.cache_prompt is False else self.cache_salt or ""
        return {
            "model": self.model,
            "stop": self.stops(),
            "stop_tokens": tuple(self.stop_token_ids or ()),
            "ignore_eos": bool(self.ignore_eos),
            "keep_stop": bool(self.include_stop_str_in_output),
            "keep_special": self.skip_special_tokens is False,
            "n": self.n or 1,
            "salt": salt,
            "priority": self.priority or 0,
        }
