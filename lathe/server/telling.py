"""The tokens of answers become their events, as they come; knows no wire."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from lathe.server.ask import Ask, Begun, Called, Ended, Event, Reading, Reason, Said, Word
from lathe.server.grammar import blamed
from lathe.server.line import heard
from lathe.server.prompts import Prompt
from lathe.server.served import Inbox, Served
from lathe.tokenizer import StopStrings, Tokenizer
from lathe.tokenizer.turns import Turns
from lathe.tokenizer.turns_parsing import Call, Delta, Parser, Text


class Telling:
    """One of an Ask's answers.

    Args:
        turns: how the model writes turns; they are looked for in answers to conversations.
        stops: ids that end the answer and are not shown.

    Attributes:
        ended: its end has been told. last: the token that came last.
    """

    def __init__(
        self, ask: Ask, index: int, prompt: Prompt, tokenizer: Tokenizer, turns: Turns, stops: frozenset[int]
    ) -> None:
        self.ask, self.index, self.prompt = ask, index, prompt
        self._tokenizer, self._hidden = tokenizer, stops
        self._parser = _parser(ask, prompt, turns)
        marks = {mark: id for mark in tokenizer.marks if (id := tokenizer.id(mark)) is not None}
        kept = {marks[mark] for mark in turns.kept(marks, tools=bool(ask.tools))} if self._parser else set()
        after, ends = (prompt.tokens, ()) if prompt.text is None else ((), tokenizer.stops)
        self._text = tokenizer.stream(after, skip_special=not ask.keep_special, shown=kept)
        self._stops = StopStrings([*ask.stop, *ends])
        self.ended, self.last = False, -1
        self._words = _Words()
        self._tokens = self._reasoning = self._shown = 0
        self._begun = time.perf_counter()
        self._first: float | None = None

    def push(self, token: int, logprob: float | None, top: Sequence[Sequence[Any]]) -> Iterator[Event]:
        """One more token. Ends the answer where it completes a stop string."""
        self._first = self._first or time.perf_counter()
        self._tokens, self.last = self._tokens + 1, token
        if token in self._hidden:
            return
        text = self._text.push(token)
        spelt = self._tokenizer.spelling
        self._words.add(Word(token, spelt(token), logprob, tuple((id, spelt(id), value) for id, value in top)), text)
        shown = self._stops.push(text)
        found = self._stops.found
        if found is not None and self.ask.keep_stop and found in self.ask.stop:
            shown += found
        yield from self._said(shown)
        if self._parser and self._parser.thinking:
            self._reasoning += 1
        if found is not None:
            yield from self._end("stop", found if found in self.ask.stop else None)

    def finish(self, reason: Reason) -> Iterator[Event]:
        """The engine's end of the answer."""
        yield from self._said(self._stops.push(self._text.flush()) + self._stops.flush())
        yield from self._end(reason, self.last if reason == "stop" and self.last in self.ask.stop_tokens else None)

    def _said(self, text: str) -> Iterator[Event]:
        if not text:
            return
        if self._parser is None:
            yield Said(self.index, text, words=self._words.within(self._shown, len(text)))
            self._shown += len(text)
        else:
            yield from map(self._event, self._parser.push(text))

    def _event(self, delta: Delta) -> Event:
        match delta:
            case Text(kind, text, start):
                return Said(self.index, text, kind, self._words.within(start, len(text)))
            case Call(call, id, name, arguments):
                return Called(self.index, call, arguments, id, name)

    def _end(self, reason: Reason, stop: str | int | None) -> Iterator[Event]:
        self.ended = True
        if self._parser:
            yield from map(self._event, self._parser.flush())
            if reason == "stop" and self._parser.calls:
                reason = "tool_calls"
        now = time.perf_counter()
        first = self._first or now
        seconds = first - self._begun, now - first
        yield Ended(self.index, reason, self._tokens, stop, self._reasoning, seconds)


async def events(
    served: Served, inbox: Inbox, tellings: Mapping[int, Telling], grammar: str | None
) -> AsyncIterator[Event]:
    """What an inbox's messages say, until all is told. An answer that a stop string ended is cancelled at once.

    tellings: by the ids of the answers. grammar: what they are held to, which may be what is refused.
    """
    begun = False
    while not all(telling.ended for telling in tellings.values()):
        id, kind, *rest = await inbox.get()
        if kind == "refused":
            error = heard(rest[0])
            raise blamed(grammar, error) if grammar else error
        for event in _told(kind, rest, tellings[id]):
            if isinstance(event, Begun):
                if begun:
                    continue
                begun = True
                served.metrics.prompt += event.prompt
                served.metrics.reused += event.cached
            elif isinstance(event, Ended):
                served.metrics.end(event.reason, event.tokens, event.seconds)
                served.forget(id, cancel=kind != "ended")
            if not (begun and isinstance(event, Reading)):
                yield event


def _told(kind: str, rest: Sequence[Any], telling: Telling) -> Iterator[Event]:
    """The events of one message."""
    match kind, rest:
        case "begun", [prompt, cached]:
            yield Begun(prompt, cached, telling.prompt.tokens)
        case "read", [done, total]:
            yield Reading(done, total)
        case "tokens", [tokens]:
            for token, logprob, top in tokens:
                if not telling.ended:
                    yield from telling.push(token, logprob, top)
        case "ended", [reason] if not telling.ended:
            yield from telling.finish(reason)


def _parser(ask: Ask, prompt: Prompt, turns: Turns) -> Parser | None:
    """None where there is nothing to be parsed: all is content."""
    tools = {} if ask.choice.mode == "none" else {tool.name: tool.parameters for tool in ask.tools}
    harmony = turns.calls is not None and turns.calls.form == "harmony"
    if prompt.text is None or not (turns.reasoning or tools or harmony):
        return None
    opened = turns.opened(prompt.text)
    if turns.history.ids == "short":
        return Parser(turns, tools, opened=opened, ids=lambda: secrets.token_hex(5)[:9])
    return Parser(turns, tools, opened=opened)


class _Words:
    """Tokens that are not yet told with the text that they came of."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Word]] = deque()  # with where in the text each begins
        self._made = 0  # characters

    def add(self, word: Word, text: str) -> None:
        self._waiting.append((self._made, word))
        self._made += len(text)

    def within(self, start: int, size: int) -> tuple[Word, ...]:
        """Those that wrote some of this text; what came before it and is not told yet wrote marks, and is not told."""
        words = []
        while self._waiting and self._waiting[0][0] < start + size:
            at, word = self._waiting.popleft()
            end = self._waiting[0][0] if self._waiting else self._made
            if at >= start or end > start:
                words.append(word)
        return tuple(words)
