"""What a model is asked when it is examined, and what it answers: tokens in, a likelihood or a text out.

Knows no model, no task and no file.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple, Protocol, TypeAlias


@dataclass(frozen=True)
class Likelihood:
    """How probable is `continuation` after `context`? Token ids; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """32 hex digits that are others for another ask."""
        return _key(f"likelihood {len(self.context)}", (*self.context, *self.continuation))


@dataclass(frozen=True)
class Generation:
    """How does the text go on after `prompt`? The answer ends before one of `stops`, or with `most` tokens.

    temperature: 0 takes the likeliest token each time. seed: for what is drawn.
    """

    prompt: tuple[int, ...]
    stops: tuple[str, ...] = ()
    most: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    @cached_property
    def key(self) -> str:
        told = (self.stops, self.most, self.temperature, self.top_p, self.top_k, self.seed)
        return _key(f"generation {told!r}", self.prompt)


class Likely(NamedTuple):
    """logprob: the natural logarithm of the continuation's probability. greedy: each of its tokens is the likeliest."""

    logprob: float
    greedy: bool


Ask: TypeAlias = Likelihood | Generation
Answer: TypeAlias = Likely | str


class Words(Protocol):
    """Text -> ids."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, each with what texts begin with and without what they end with."""

    @property
    def begin(self) -> tuple[int, ...]:
        """The ids that a text begins with."""

    @property
    def prefix(self) -> int:
        """The id that what has nothing before it is asked after. Raises TokenizerError where there is none."""

    def render(self, messages: Sequence[dict[str, str]], open_ended: bool) -> str:
        """Messages as the text that the model was trained on, by its chat template. open_ended: the last message goes
        on, else the model's turn begins. Raises TokenizerError where there is no template."""


class Subject(Protocol):
    """Who is examined. name: for people. identity: another text wherever answers may be others. longest: tokens of a
    text and its continuation together but for the last."""

    name: str
    identity: str
    longest: int

    @property
    def words(self) -> Words: ...

    def answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        """Each ask's number and its answer, as they come."""


class Known(Protocol):
    """Answers of an earlier time."""

    def get(self, ask: Ask) -> Answer | None: ...
    def keep(self, ask: Ask, answer: Answer) -> None: ...


def ask_all(
    subject: Subject, asks: Sequence[Ask], known: Known, tick: Callable[[int], None] = lambda count: None
) -> list[Answer]:
    """The answers, those that are known from there, each other one known as soon as it is there.

    The same ask is asked once. tick: is told how many more have their answer.
    """
    answers = {ask.key: answer for ask in asks if (answer := known.get(ask)) is not None}
    tick(sum(ask.key in answers for ask in asks))
    left: dict[str, Ask] = {ask.key: ask for ask in asks if ask.key not in answers}
    alike: dict[str, int] = {}
    for ask in asks:
        alike[ask.key] = alike.get(ask.key, 0) + 1
    keys = list(left)
    for number, answer in subject.answers(list(left.values())):
        key = keys[number]
        known.keep(left[key], answer)
        answers[key] = answer
        tick(alike[key])
    return [answers[ask.key] for ask in asks]


def _key(what: str, tokens: Sequence[int]) -> str:
    return blake2b(what.encode("utf-8", "surrogatepass") + array("q", tokens).tobytes(), digest_size=16).hexdigest()
