"""Asks become answers: admits them, writes their prompts in tokens, hands them to an engine and tells what comes of it.

Knows no wire and no tensor. Rendering and tokenizing happen in threads, never in the event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from lathe.server import prompts
from lathe.server.ask import Ask, Event, Word
from lathe.server.line import Line, key
from lathe.server.prompts import Prompt
from lathe.server.refusals import Broken, Full, Misused, Overflow, Unknown, Unready
from lathe.server.served import Inbox, Served
from lathe.server.telling import Telling, events

T = TypeVar("T")
READERS = 4  # prompts that are rendered and tokenized at once
LONGEST_WAIT = 60  # seconds that a client is asked to stay away at most


@dataclass(frozen=True)
class Named:
    """What a request can name as its model: one, or an adapter on it."""

    name: str
    served: Served
    adapter: str | None = None


class Desk:
    """Takes Asks for the models of a server; made and used in one event loop.

    Args:
        lines: the models' lines, by name; the first is asked where an Ask names none.
        queue: how many answers may wait for a seat in an engine; None for any number.
        strict: wires refuse fields that they do not know, where they otherwise only say so.
        any_name: a model that is not there stands for the first.
        folder: where adapters lie that may be put on; None: none may.

    Attributes:
        draining: no more is taken.
    """

    def __init__(
        self,
        lines: Mapping[str, Line],
        queue: int | None = 256,
        strict: bool = False,
        any_name: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.served = {name: Served(name, line) for name, line in lines.items()}
        self.folder = folder
        self.queue, self.strict, self.any_name, self.draining = queue, strict, any_name, False
        self._readers = ThreadPoolExecutor(READERS)

    # ------------------------------------------------------------ from beginning to end

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
        gone = [asyncio.ensure_future(served.gone.wait()) for served in self.served.values()]
        await asyncio.wait(gone, return_when=asyncio.FIRST_COMPLETED)
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

    # ------------------------------------------------------------ who is asked

    @property
    def names(self) -> dict[str, Named]:
        """All that a request can name; models go before adapters."""
        put_on = {name: Named(name, served, key(name)) for served in self.served.values() for name in served.adapters}
        return {name: Named(name, served) for name, served in self.served.items()} | {
            name: named for name, named in put_on.items() if name not in self.served
        }

    def named(self, name: str | None = None) -> Named:
        """A model, or an adapter on one, that is ready. Raises Unknown, Unready, Broken."""
        names = self.names
        if name is not None and name not in names:
            if self.any_name:
                return self.named()
            raise Unknown(f"There is no model {name!r:.200} here.", "", "GET /v1/models lists those that there are.")
        found = names[name or next(iter(names))]
        if self.draining:
            raise Unready("The server is ending and takes no more requests.")
        if found.served.wrong:
            raise Broken("The engine has ended.")
        if not found.served.ready.is_set():
            raise Unready("The model is still being loaded.", "", "Try again in a moment; GET /health tells.")
        return found

    def find(self, name: str | None = None) -> Served:
        """The model that is asked by this name. Raises as `named`."""
        return self.named(name).served

    async def put(self, name: str, path: str) -> None:
        """Put an adapter on the first model. path: within `folder`. Raises Misused, Unknown, what is wrong with it."""
        served = self.find()
        if name in self.names:
            raise Misused("lora_name", f"There is a model or adapter {name!r} already.")
        if self.folder is None:
            raise Misused("lora_path", "The server was started without --adapter-dir.")
        folder = self.folder.resolve()
        place = (folder / path).resolve()
        if not place.is_relative_to(folder) or not place.is_dir():
            raise Unknown(f"There is no folder {path!r} among the adapters.")
        await served.told("adapt", key(name), str(place))
        served.adapters.append(name)

    async def take_off(self, name: str) -> None:
        """Take an adapter off. Raises Unknown, and UsageError while somebody uses it."""
        named = self.names.get(name)
        if named is None or named.adapter is None:
            raise Unknown(f"There is no adapter {name!r}.")
        await named.served.told("take off", named.adapter)
        named.served.adapters.remove(name)

    def fits(self, served: Served, count: int) -> None:
        """Raises Misused for more answers to one request than are ever made and waited for at once."""
        if self.queue is not None and count > served.seats + self.queue:
            most = f"At most {served.seats + self.queue} are made and waited for at once."
            raise Misused("n", f"{count} answers are asked for.", most, "Ask for fewer in one request.")

    @contextmanager
    def _admitted(self, served: Served, count: int) -> Iterator[None]:
        """Room for so many answers. Raises Full where there is none; comes before any work for them."""
        self.fits(served, count)
        if self.queue is not None and served.held + count > served.seats + self.queue:
            served.metrics.refused += 1
            full = Full(f"{served.held} answers are being made or waited for, and no more are taken.", "", "Try again.")
            seconds = served.metrics.whole.mean * max(served.held - served.seats, 1) / served.seats
            full.after = min(max(round(seconds), 1), LONGEST_WAIT)
            raise full
        served.held += count
        try:
            yield
        finally:
            served.held -= count

    # ------------------------------------------------------------ what is asked

    async def answer(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """The events of all of an Ask's answers. Closing the iterator cancels what is not finished.

        Raises a LatheError before the first event for whatever is wrong; Broken at any time.
        """
        named = self.named(ask.model)
        served = named.served
        with self._admitted(served, ask.n):
            prompt = await self._in_thread(self.read, served, ask)
            context = min(served.context, ask.room or served.context)
            if len(prompt.tokens) >= context:
                raise Overflow(len(prompt.tokens), context)
            grammar = await self._in_thread(prompts.grammar, served.tokenizer, served.turns, ask, prompt)
            inbox: Inbox = asyncio.Queue()
            longest = _most(ask, served, context - len(prompt.tokens))
            stops = [*([] if ask.ignore_eos else served.stops), *ask.stop_tokens]
            first, *others = ids = served.expect(inbox, ask.n)
            request = {
                "prompt": prompt.tokens,
                "wishes": {**served.wished(ask.wishes), "max_new_tokens": longest},
                "stops": stops,
                "adapter": named.adapter,
                "grammar": grammar,
                "bound": prompts.bound(served.tokenizer, served.turns, ask, prompt, longest),
                "salt": ask.salt,
                "priority": ask.priority,
                "more": [[id, _seeded(ask, served, index)] for index, id in enumerate(others, 1)],
            }
            hidden = frozenset(stops)
            tellings = {
                id: Telling(ask, index, prompt, served.tokenizer, served.turns, hidden) for index, id in enumerate(ids)
            }
            try:
                served.line.send("ask", first, request)
                async for event in events(served, inbox, tellings, grammar):
                    yield event
            finally:
                for id, telling in tellings.items():
                    served.metrics.cancelled += not telling.ended
                    served.forget(id, cancel=True)

    async def embed(self, prompt: str | Sequence[int], model: str | None = None) -> tuple[int, list[float]]:
        """How many tokens a text has, and its embedding. Raises what `answer` raises."""
        _, tokens, embedding = await self._reading("embed", prompt, model)
        _numbers(embedding)
        return len(tokens), embedding

    async def judge(
        self, prompt: str | Sequence[int], model: str | None = None, top: int = 0, salt: str = ""
    ) -> list[Word]:
        """The tokens of a text with their log-probabilities, the first one's excepted. Raises what `answer` raises."""
        served, tokens, judged = await self._reading("judge", prompt, model, top, salt)
        _numbers([logprob for _, logprob, _ in judged])
        spelt = served.tokenizer.spelling
        words = [Word(tokens[0], spelt(tokens[0]))]
        for token, logprob, likely in judged:
            words.append(Word(token, spelt(token), logprob, tuple((id, spelt(id), value) for id, value in likely)))
        return words

    async def _reading(
        self, word: Literal["embed", "judge"], prompt: str | Sequence[int], model: str | None, *more: int | str
    ) -> tuple[Served, list[int], Any]:
        named = self.named(model)
        served = named.served
        with self._admitted(served, 1):
            tokens = (await self._in_thread(self.read, served, Ask(prompt))).tokens
            if len(tokens) > served.context:
                raise Overflow(len(tokens), served.context)
            return served, tokens, await served.told(word, tokens, named.adapter, *more)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    def read(self, served: Served, ask: Ask) -> Prompt:
        """What a model reads for an Ask. Takes its time: call it in a thread. Raises PromptError, TokenizerError."""
        return prompts.read(served.tokenizer, served.turns, ask)

    def render(self, served: Served, ask: Ask) -> str:
        """As `read`, but no further than the text of a conversation."""
        return prompts.render(served.tokenizer, served.turns, ask)


def _numbers(told: Sequence[float]) -> None:
    """Raises Broken where a model told what is not a number."""
    if not all(map(math.isfinite, told)):
        raise Broken("The model's results are not numbers (NaN).", "", "Its weights are damaged.")


def _seeded(ask: Ask, served: Served, index: int) -> dict[str, Any]:
    """What differs in the wishes of a further answer."""
    seed = ask.wishes.get("seed", served.defaults.get("seed"))
    return {} if seed is None else {"seed": seed + index}


def _most(ask: Ask, served: Served, left: int) -> int:
    """The longest answer that was asked for and that there is room for."""
    told = ask.wishes.get("max_new_tokens", served.defaults.get("max_new_tokens"))
    return left if told is None else min(told, left)
