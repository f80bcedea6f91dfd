"""A sequence that an engine is writing becomes pieces of text as they come, and in the end an answer with figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lathe import engine
from lathe.tokenizer import StopStrings, TextStream


@dataclass(frozen=True)
class Usage:
    """How many tokens were read and written."""

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
    top: for each, the likeliest tokens in its place and their log-probabilities, as many as the wish `logprobs` says.
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


def numbers(reply: Reply, device: torch.device) -> Iterator[Tensor]:
    """The tokens of an answer as they come, each int64 of shape (1,)."""
    given = 0
    for _ in reply:
        made = reply.completion.tokens[given:]
        given += len(made)
        yield from torch.tensor(made, device=device).split(1)
    yield from torch.tensor(reply.completion.tokens[given:], device=device, dtype=torch.int64).split(1)
