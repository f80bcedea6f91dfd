"""Asks become answers: admits them, writes their prompts in tokens, hands them to an engine and tells what comes of it.

Knows no wire and no tensor. Rendering and tokenizing happen in threads, never in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from lathe.errors import LatheError, PromptError
from lathe.server.ask import Ask, Begun, Event, Reading, Word
from lathe.server.line import Line, Message, heard, told
from lathe.server.refusals import Broken, Full, Overflow, Unknown, Unready
from lathe.server.telling import Telling
from lathe.tokenizer import Tokenizer

T = TypeVar("T")
Inbox = asyncio.Queue[tuple[Any, ...]]  # (id, "begun" | "read" | "tokens" | "ended" | "refused" | "done", what of it)
READERS = 4  # prompts that are rendered and tokenized at once


class Served:
    """One model behind its line.

    Attributes, once it is `ready`: tokenizer; context, in tokens; vocab, how many ids there are; defaults, fields of
    Sampling; stops, ids that end an answer; seats, how many answers are made at once; about, what else is told of it.
    held: answers that were admitted and are not finished.
    state: sequences that run and wait, pages held and all pages, after the last step.
    """

    def __init__(self, name: str, line: Line) -> None:
        self.name, self.line = name, line
        self.ready, self.gone = asyncio.Event(), asyncio.Event()
        self.wrong: LatheError | None = None
        self.inboxes: dict[int, Inbox] = {}
        self.held = 0
        self.state = [0, 0, 0, 0]
        self._ids = itertools.count()

    def open(self) -> None:
        """Listen, in the event loop that is running."""
        self.line.open(self._take)

    def _take(self, message: Message) -> None:
        match message:
            case ["made", made]:
                self.state = made["state"]
                for kind in ("read", "begun", "tokens", "ended"):
                    for id, *rest in made.get(kind, ()):
                        self._post(id, kind, *rest)
            case ["refused" | "done" as kind, id, value]:
                self._post(id, kind, value)
            case ["ready", facts]:
                self._introduction = asyncio.ensure_future(self._introduce(facts))
            case ["failed", error]:
                self._lost(heard(error))
            case ["gone", status]:
                self._lost(Broken(f"The engine process has ended by itself, with status {status}."))

    def _post(self, id: int, *message: Any) -> None:
        if id in self.inboxes:  # else it was cancelled meanwhile
            self.inboxes[id].put_nowait((id, *message))

    async def _introduce(self, facts: Mapping[str, Any]) -> None:
        place, style, ours = facts["words"]
        self.tokenizer = await asyncio.to_thread(_words, Path(place), style, ours)
        self.context, self.vocab, self.width = facts["context"], facts["vocab"], facts["width"]
        self.seats = facts["seats"]
        self.defaults, self.stops, self.about = facts["defaults"], facts["stops"], facts["about"]
        self.ready.set()

    def _lost(self, error: LatheError) -> None:
        self.wrong = self.wrong or error
        self.ready.set()
        self.gone.set()
        for id in self.inboxes:
            self._post(id, "refused", told(Broken("The engine has ended.")))

    def ask(self, inbox: Inbox, **request: Any) -> int:
        """Hand a request to the engine; what comes of it goes to `inbox`. Returns its id."""
        id = next(self._ids)
        self.inboxes[id] = inbox
        self.line.send("ask", id, request)
        return id

    async def reading(self, word: Literal["embed", "judge"], tokens: Sequence[int], *more: Any) -> Any:
        """What the engine's method of that name says of tokens. Raises what it raises."""
        id, told = next(self._ids), False
        inbox: Inbox = asyncio.Queue()
        self.inboxes[id] = inbox
        self.line.send(word, id, list(tokens), *more)
        try:
            _, kind, value = await inbox.get()
            told = True
        finally:
            self.drop(id, cancel=not told)
        if kind == "refused":
            raise heard(value)
        return value

    def drop(self, id: int, cancel: bool) -> None:
        del self.inboxes[id]
        if cancel:
            self.line.send("cancel", id)


def _words(place: Path, style: str | None, ours: bool) -> Tokenizer:
    tokenizer = Tokenizer.open(place)
    if ours:
        shutil.rmtree(place, ignore_errors=True)
    return tokenizer if style is None else tokenizer.styled(style)


class Desk:
    """Takes Asks for the models of a server; made and used in one event loop.

    Args:
        lines: the models' lines, by name; the first is asked where an Ask names none.
        queue: how many answers may wait for a seat in an engine; None for any number.
        strict: wires refuse fields that they do not know, where they otherwise only say so.
        any_name: a model that is not there stands for the first.

    Attributes:
        draining: it takes no more.
    """

    def __init__(
        self, lines: Mapping[str, Line], queue: int | None = 256, strict: bool = False, any_name: bool = False
    ) -> None:
        self.served = {name: Served(name, line) for name, line in lines.items()}
        self.queue, self.strict, self.any_name, self.draining = queue, strict, any_name, False
        self._readers = ThreadPoolExecutor(READERS)

    def open(self) -> None:
        """Listen to the lines, in the event loop that is running."""
        for served in self.served.values():
            served.open()

    async def loaded(self) -> None:
        """Until all models are loaded. Raises what one of them failed of."""
        for served in self.served.values():
            await served.ready.wait()
            if served.wrong:
                raise served.wrong

    async def lost(self) -> None:
        """Until an engine is gone, which raises Broken."""
        await asyncio.wait(
            [asyncio.ensure_future(served.gone.wait()) for served in self.served.values()],
            return_when=asyncio.FIRST_COMPLETED,
        )
        raise next(served.wrong for served in self.served.values() if served.wrong)

    async def idle(self) -> None:
        """Until no answer is being made."""
        while any(served.held for served in self.served.values()):
            await asyncio.sleep(0.02)

    async def close(self, patience: float = 5) -> None:
        """End the engine processes, by force where they have not ended so many seconds later."""
        self.draining = True
        lines = [served.line for served in self.served.values()]
        await asyncio.gather(*(asyncio.to_thread(line.close, patience) for line in lines))
        self._readers.shutdown(wait=False)

    def find(self, name: str | None = None) -> Served:
        """A model that is ready. Raises Unknown, Unready, Broken."""
        if name is not None and name not in self.served:
            if self.any_name:
                return self.find()
            raise Unknown(f"There is no model {name!r} here.", "", "GET /v1/models lists those that there are.")
        served = self.served[name or next(iter(self.served))]
        if self.draining:
            raise Unready("The server is ending and takes no more requests.")
        if served.wrong:
            raise Broken("The engine has ended.")
        if not served.ready.is_set():
            raise Unready("The model is still being loaded.", "", "Try again in a moment; GET /health tells.")
        return served

    async def answer(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """The events of all of an Ask's answers. Closing the iterator cancels what is not finished.

        Raises a LatheError before the first event for whatever is wrong; Broken at any time.
        """
        served = self.find(ask.model)
        self._admit(served, ask.n)
        served.held += ask.n
        inbox: Inbox = asyncio.Queue()
        tellings: dict[int, Telling] = {}
        try:
            prompt, continued = await self._in_thread(self.read, served, ask)
            context = min(served.context, ask.room or served.context)
            if len(prompt) >= context:
                raise Overflow(len(prompt), context)
            most = {} if ask.room is None else _most(ask, served, context - len(prompt))
            stops = [*([] if ask.ignore_eos else served.stops), *ask.stop_tokens]
            for index in range(ask.n):
                id = served.ask(inbox, prompt=prompt, wishes={**_wishes(ask, index), **most}, stops=stops)
                after, ends = (prompt, ()) if continued else ((), served.tokenizer.stops)
                tellings[id] = Telling(ask, index, served.tokenizer, after, ends, frozenset(stops))
            async for event in _events(inbox, tellings):
                yield event
        finally:
            served.held -= ask.n
            for id, telling in tellings.items():
                served.drop(id, cancel=not telling.ended)

    async def embed(self, prompt: str | Sequence[int], model: str | None = None) -> tuple[int, list[float]]:
        """How many tokens a text has, and its embedding. Raises what `answer` raises."""
        _, tokens, embedding = await self._reading("embed", prompt, model)
        return len(tokens), embedding

    async def judge(self, prompt: str | Sequence[int], model: str | None = None, top: int = 0) -> list[Word]:
        """The tokens of a text with their log-probabilities, the first one's excepted. Raises what `answer` raises."""
        served, tokens, judged = await self._reading("judge", prompt, model, top)
        spelt = served.tokenizer.spelling
        words = [Word(tokens[0], spelt(tokens[0]))]
        for token, logprob, likely in judged:
            words.append(Word(token, spelt(token), logprob, tuple((id, spelt(id), value) for id, value in likely)))
        return words

    async def _reading(
        self, word: Literal["embed", "judge"], prompt: str | Sequence[int], model: str | None, *more: int
    ) -> tuple[Served, list[int], Any]:
        served = self.find(model)
        self._admit(served, 1)
        served.held += 1
        try:
            tokens, _ = await self._in_thread(self.read, served, Ask(prompt))
            if len(tokens) > served.context:
                raise Overflow(len(tokens), served.context)
            return served, tokens, await served.reading(word, tokens, *more)
        finally:
            served.held -= 1

    def _admit(self, served: Served, count: int) -> None:
        """Raises Full where there is no room for so many answers more. Comes before any work for them."""
        if self.queue is not None and served.held + count > served.seats + self.queue:
            raise Full(f"{served.held} answers are being made or waited for, and no more are taken.", "", "Try again.")

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    def read(self, served: Served, ask: Ask) -> tuple[list[int], bool]:
        """A prompt's tokens, and whether the answer continues its text rather than being one of its own."""
        prompt, tokenizer = ask.prompt, served.tokenizer
        if isinstance(prompt, str):
            if not prompt:
                raise PromptError("The prompt is empty.", "It must hold at least one character.")
            return tokenizer.encode(prompt), True
        if all(isinstance(item, int) for item in prompt):
            return list(cast("Sequence[int]", prompt)), True
        return tokenizer.encode(self.render(served, ask), special=False), False

    def render(self, served: Served, ask: Ask) -> str:
        """The text of an Ask's messages, by the chat template. Raises TokenizerError where it refuses them."""
        messages = cast("Sequence[Mapping[str, Any]]", ask.prompt)
        words = {**ask.words, **({} if ask.think is None else {"enable_thinking": ask.think})}
        tools = [{"type": "function", "function": asdict(tool)} for tool in ask.tools] or None
        opens = ask.opens and not ask.continues
        text = served.tokenizer.render(messages, tools=tools, add_generation_prompt=opens, **words)
        if not ask.continues:
            return text
        last = str(messages[-1].get("content") or "").strip()
        return text[: text.rindex(last) + len(last)] if last in text else text


def _wishes(ask: Ask, index: int) -> dict[str, Any]:
    seed = ask.wishes.get("seed")
    return dict(ask.wishes) if seed is None else {**ask.wishes, "seed": seed + index}


def _most(ask: Ask, served: Served, left: int) -> dict[str, int]:
    """The longest answer that was asked for and that the Ask's own room allows."""
    told = ask.wishes.get("max_new_tokens", served.defaults.get("max_new_tokens"))
    return {"max_new_tokens": min(told or left, left)}


async def _events(inbox: Inbox, tellings: Mapping[int, Telling]) -> AsyncIterator[Event]:
    """What an inbox's messages say, until all is told."""
    last: dict[int, int] = {}
    begun = False
    while not all(telling.ended for telling in tellings.values()):
        id, kind, *rest = await inbox.get()
        telling = tellings[id]
        if kind == "refused":
            raise heard(rest[0])
        if kind == "begun" and not begun:
            begun = True
            yield Begun(*rest)
        elif kind == "read" and not begun:
            yield Reading(*rest)
        elif kind == "tokens" and not telling.ended:
            for token, logprob, top in rest[0]:
                last[id] = token
                for event in telling.push(token, logprob, top):
                    yield event
                if telling.ended:
                    break
        elif kind == "ended" and not telling.ended:
            for event in telling.finish(rest[0], last.get(id)):
                yield event


async def opened(events: AsyncGenerator[Event, None]) -> AsyncIterator[Event]:
    """The same events, when the first of them is there: what is wrong with an Ask is raised here, before any header."""
    first = await anext(events)

    async def all_of_them() -> AsyncIterator[Event]:
        async with contextlib.aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_of_them()
