"""The tokens of one answer become its events, as they come; knows no line and no wire."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from lathe.server.ask import Ask, Ended, Event, Reason, Said, Word
from lathe.tokenizer import StopStrings, Tokenizer


class Telling:
    """One of an Ask's answers.

    Args:
        after: the prompt's ids, where the answer continues its text. ends: texts that end a turn, and are no tokens.
        stops: ids that end the answer and are not shown.
    """

    def __init__(
        self,
        ask: Ask,
        index: int,
        tokenizer: Tokenizer,
        after: Sequence[int] = (),
        ends: Sequence[str] = (),
        stops: frozenset[int] = frozenset(),
    ) -> None:
        self.ask, self.index, self.tokenizer, self.hidden = ask, index, tokenizer, stops
        self.text = tokenizer.stream(after, skip_special=not ask.keep_special)
        self.stops = StopStrings([*ask.stop, *ends])
        self.ended = False
        self.tokens = 0
        self._words: deque[tuple[int, Word]] = deque()  # not yet told, and where in the text each begins
        self._made = self._shown = 0  # characters
        self._begun = time.perf_counter()
        self._first: float | None = None

    def push(self, token: int, logprob: float | None, top: Sequence[Sequence[Any]]) -> Iterator[Event]:
        """One more token. Ends the answer where it completes a stop string."""
        self._first = self._first or time.perf_counter()
        self.tokens += 1
        if token in self.hidden:
            return
        text = self.text.push(token)
        spelt = self.tokenizer.spelling
        likely = tuple((id, spelt(id), value) for id, value in top)
        self._words.append((self._made, Word(token, spelt(token), logprob, likely)))
        self._made += len(text)
        shown = self.stops.push(text)
        if self.stops.found is not None and self.ask.keep_stop and self.stops.found in self.ask.stop:
            shown += self.stops.found
        yield from self._said(shown)
        if self.stops.found is not None:
            yield self._end("stop", self.stops.found if self.stops.found in self.ask.stop else None)

    def finish(self, reason: Reason, last: int | None) -> Iterator[Event]:
        """The engine's end of the answer. last: the last token."""
        shown = self.stops.push(self.text.flush()) + self.stops.flush()
        yield from self._said(shown)
        yield self._end(reason, last if reason == "stop" and last in self.ask.stop_tokens else None)

    def _said(self, text: str) -> Iterator[Said]:
        if text:
            self._shown += len(text)
            words = []
            while self._words and self._words[0][0] < self._shown:
                words.append(self._words.popleft()[1])
            yield Said(self.index, text, words=tuple(words))

    def _end(self, reason: Reason, stop: str | int | None) -> Ended:
        self.ended = True
        now = time.perf_counter()
        first = self._first or now
        return Ended(self.index, reason, self.tokens, stop, seconds=(first - self._begun, now - first))
