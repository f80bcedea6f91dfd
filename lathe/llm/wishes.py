"""A prompt and what is wished of its answer become ids, settings and a grammar, as an engine takes them.

What a wish leaves open is as the checkpoint's generation_config.json says. Knows no model and no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from lathe.errors import PromptError, UsageError
from lathe.tokenizer import Tokenizer, forms

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]

MAX_NEW_TOKENS = 256  # where neither the caller nor the checkpoint says how long an answer may be


class Wishes(TypedDict, total=False):
    """How to answer. What is left out, or None, is as the checkpoint's generation_config.json says.

    stop: strings that end the answer and are not part of it. raw: take a string as it is, not as a user's message.
    schema, regex, grammar: the form of the answer, one of them: JSON that fits a JSON schema (as text or a mapping),
        text that a regular expression matches, or text that a grammar in Lark's notation allows.
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


def read(prompt: Prompt, tokenizer: Tokenizer, raw: bool = False) -> tuple[list[int], bool]:
    """A prompt's ids, and whether the answer continues its text rather than being a text of its own.

    Raises PromptError for an empty string, TokenizerError where the chat template refuses the messages.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise PromptError("The prompt is empty.", "It must hold at least one character.")
        if raw or not tokenizer.has_template:
            return tokenizer.encode(prompt), True
        prompt = [{"role": "user", "content": prompt}]
    if is_chat(prompt):
        # The template writes all special tokens itself: a second BOS in front would be one too many.
        text = tokenizer.render(cast("Sequence[Mapping[str, Any]]", prompt))
        return tokenizer.encode(text, special=False), False
    return list(cast("Sequence[int]", prompt)), True


def is_chat(prompt: Prompt) -> bool:
    """Whether a prompt is messages, not a text or ids."""
    return not isinstance(prompt, str) and any(isinstance(item, Mapping) for item in prompt)


def grammar(schema: str | Mapping[str, Any] | None, regex: str | None, lark: str | None) -> str | None:
    """The form of an answer as a grammar in Lark's notation; None where it is free.

    Raises UsageError where two forms are asked for, or one is not understood.
    """
    told = [name for name, form in (("schema", schema), ("regex", regex), ("grammar", lark)) if form is not None]
    if len(told) > 1:
        raise UsageError(f"An answer is to follow a {told[0]} and a {told[1]}.", fix="Leave one out.")
    if schema is not None:
        return forms.of_schema(schema)
    return lark if regex is None else forms.of_regex(regex)


def defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling as generation_config.json asks for it.

    `do_sample: false` is greedy. A file that says nothing about sampling gives temperature 0.8 among the 50 likeliest
    tokens; in one that says something, what it leaves out is neutral.
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


def ends(tokenizer: Tokenizer, generation: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end an answer: the tokenizer's, and those that generation_config.json names."""
    told = generation.get("eos_token_id")
    named = () if told is None else (told,) if isinstance(told, int) else told
    return frozenset((*tokenizer.eos_ids, *named))
