"""What a request wishes of its tokens becomes a list of rules that its scores go through.

A further wish is a field of `Sampling`, a small class in `engine.rules`, and a line in `Sampling.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

from lathe.engine.rules import Bias, MinP, Repeats, Repetition, Rule, Temperature, TopK, TopP
from lathe.errors import UsageError

GREEDY_BELOW = 1e-5  # a temperature that float32 could not tell from 0
HUGE = 1e30  # beyond it float32 would soon make infinite scores, of which nothing can be drawn


class Token(NamedTuple):
    """One generated token. `logprob`: the model's own, before any rule. `top`: the likeliest tokens with theirs."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How one request wants its tokens chosen. As it stands: from the model's own distribution.

    temperature: divides the scores; 0 takes the best token, the one with the lowest id among equals.
    top_k: only the k best tokens; 0 for all.
    top_p: only the best tokens that together have at least this probability. arXiv:1904.09751
    min_p: only tokens at least this fraction as probable as the best. arXiv:2407.01082
    repetition_penalty: scores of tokens that the prompt or the answer holds are divided by it, negative ones
        multiplied. arXiv:1909.05858
    logit_bias: added to the scores of tokens, by id; -100 rules a token out, 100 all that have less.
    presence_penalty, frequency_penalty: taken off the scores of tokens that the answer holds, once, and once for each
        time (as in OpenAI's API).
    seed: the same seed, prompt and wishes give the same tokens; None for another answer each time.
    max_new_tokens: the longest answer; None for as long as the context allows.
    min_tokens: the tokens that end the answer are ruled out until it has so many.
    logprobs: report each token's log-probability, and those of so many of the likeliest; None for neither.

    Raises UsageError for a number out of range. Rules apply in this order: what a grammar allows, min_tokens,
    logit_bias, penalties, top_k, temperature, top_p, min_p. A token is ruled out only where another is left.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_new_tokens: int | None = None
    min_tokens: int = 0
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _require(self, "temperature", self.temperature >= 0, "0 (always the best token) or more")
        _require(self, "top_k", self.top_k >= 0, "0 (all tokens) or more")
        _require(self, "top_p", 0 <= self.top_p <= 1, "from 0 to 1")
        _require(self, "min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        _require(self, "repetition_penalty", self.repetition_penalty > 0, "more than 0")
        _require(self, "presence_penalty", True, "a number")
        _require(self, "frequency_penalty", True, "a number")
        _require(self, "max_new_tokens", self.max_new_tokens is None or self.max_new_tokens > 0, "1 or more")
        _require(self, "min_tokens", self.min_tokens >= 0, "0 or more")
        _require(self, "logprobs", self.logprobs is None or self.logprobs >= 0, "0 or more")
        object.__setattr__(self, "logit_bias", tuple(sorted(dict(self.logit_bias).items())))  # so that it has a hash
        for id, by in self.bias:
            if math.isnan(by):
                raise UsageError(f"logit_bias of token {id} is {by}.", "It must be a number.")

    @property
    def bias(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs, in the order of the ids."""
        return cast("tuple[tuple[int, float], ...]", self.logit_bias)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """What was asked for, in order, and nothing else."""
        rules: list[Rule] = []
        if self.bias:
            rules.append(Bias(self.bias))
        if self.repetition_penalty != 1.0:
            rules.append(Repetition(_finite(self.repetition_penalty, 1 / HUGE)))
        if self.presence_penalty or self.frequency_penalty:
            rules.append(Repeats(_finite(self.presence_penalty), _finite(self.frequency_penalty)))
        if self.greedy:
            return tuple(rules)  # the others never change which token is the best
        if self.top_k:
            rules.append(TopK(self.top_k))
        if self.temperature != 1.0:
            rules.append(Temperature(_finite(self.temperature)))
        if self.top_p < 1.0:
            rules.append(TopP(self.top_p))
        if self.min_p:
            rules.append(MinP(self.min_p))
        return tuple(rules)


def _finite(wish: float, least: float = -HUGE) -> float:
    """A wish that leaves scores finite."""
    return min(max(wish, least), HUGE)


def _require(sampling: Sampling, name: str, holds: bool, what: str) -> None:
    value = getattr(sampling, name)
    if not holds or (value is not None and not math.isfinite(value)):
        raise UsageError(f"{name} is {value}.", f"It must be {what}.")
