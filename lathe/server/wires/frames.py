"""Events become server-sent frames, or are gathered for one body; a client that goes away ends its request either way.

Knows no client's words: a wire says what each event is written as.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lathe.errors import LatheError
from lathe.server.ask import Event
from lathe.server.refusals import Gone, Refusal

T = TypeVar("T")

PING = 15.0  # seconds without a word after which a client is told that it has not been forgotten
AHEAD = 64  # events that wait for a slow client before its request does
DONE = "data: [DONE]\n\n"
EVENTS, LINES = "text/event-stream", "application/x-ndjson"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Writer(Protocol):
    """Writes the answers of several requests as one stream, or whole."""

    def frames(self, which: int, event: Event) -> Iterable[str]:
        """What to send for an event of the request of that number."""

    def last(self) -> Iterable[str]:
        """What to send when all is said."""

    def failed(self, refusal: Refusal) -> Iterable[str]:
        """What to send when it went wrong in the midst."""

    def whole(self, events: Iterable[tuple[int, Event]]) -> Mapping[str, Any]:
        """What to send at once, of all events with the number of the request of each."""


def frame(body: Mapping[str, Any]) -> str:
    """One frame of JSON, as OpenAI's clients read it."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Together(Generic[T]):
    """The events of several requests, in the order in which they come. `close` it: that ends what still goes on."""

    def __init__(self, answers: Sequence[AsyncIterator[T]]) -> None:
        self._coming: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(AHEAD)
        self._tasks = [asyncio.create_task(self._read(which, answer)) for which, answer in enumerate(answers)]
        self._going = len(self._tasks)

    async def _read(self, which: int, answer: AsyncIterator[T]) -> None:
        try:
            async for event in answer:
                await self._coming.put((which, event))
            await self._coming.put(None)
        except Exception as error:
            await self._coming.put(error)

    def watch(self, request: Request) -> None:
        """Raise Gone from `next` when the client is."""
        self._tasks.append(asyncio.create_task(self._watch(request)))

    async def _watch(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        await self._coming.put(Gone("The client has gone."))

    async def next(self, seconds: float | None = None) -> tuple[int, T] | None:
        """The next event and the number of its request; None if none came in `seconds`.

        Raises what a request raises, and StopAsyncIteration when all have ended.
        """
        while self._going:
            if self._coming.empty() and seconds is not None:
                try:
                    news = await asyncio.wait_for(self._coming.get(), seconds)
                except asyncio.TimeoutError:
                    return None
            else:
                news = await self._coming.get()
            if isinstance(news, Exception):
                raise news
            if news is not None:
                return news
            self._going -= 1
        raise StopAsyncIteration

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def gathered(request: Request, answers: Sequence[AsyncIterator[T]]) -> list[tuple[int, T]]:
    """All events of several requests. Raises what is wrong with one of them, and Gone where the client is."""
    coming, events = Together(answers), list[tuple[int, T]]()
    coming.watch(request)
    try:
        while True:
            if news := await coming.next():
                events.append(news)
    except StopAsyncIteration:
        return events
    finally:
        await coming.close()


class Stream(StreamingResponse):
    """The events of several requests as frames. Make one by `begin`."""

    def __init__(
        self,
        coming: Together[Event],
        first: tuple[int, Event] | None,
        writer: Writer,
        headers: Mapping[str, str],
        ping: float,
        media: str = EVENTS,
    ) -> None:
        self._coming = coming
        alive = ": ping\n\n" if media == EVENTS else "\n"
        written = _written(coming, first, writer, ping, alive)
        super().__init__(written, media_type=media, headers={**HEADERS, **headers})

    @classmethod
    async def begin(
        cls,
        answers: Sequence[AsyncIterator[Event]],
        writer: Writer,
        headers: Mapping[str, str] = MappingProxyType({}),
        ping: float = PING,
        media: str = EVENTS,
    ) -> Stream:
        """A stream whose first event has come, so that what is wrong with a request is raised and has its own status.

        If none comes in `ping` seconds, the stream begins all the same, and what is wrong goes into a frame.
        """
        coming = Together(answers)
        try:
            return cls(coming, await coming.next(ping), writer, headers, ping, media)
        except BaseException:
            await coming.close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # here, for frames that were never begun have no end of their own
            await self._coming.close()


async def _written(
    coming: Together[Event], news: tuple[int, Event] | None, writer: Writer, ping: float, alive: str
) -> AsyncIterator[str]:
    try:
        while True:
            for text in [alive] if news is None else writer.frames(*news):
                yield text
            try:
                news = await coming.next(ping)
            except StopAsyncIteration:
                break
        for text in writer.last():
            yield text
    except LatheError as error:
        for text in writer.failed(Refusal.of(error)):
            yield text


async def replied(
    request: Request,
    answers: Sequence[AsyncIterator[Event]],
    writer: Writer,
    headers: Mapping[str, str],
    stream: bool | None,
    media: str = EVENTS,
) -> Response:
    """The answers of several requests, as a stream, or whole. Raises what is wrong with one of them."""
    if stream:
        return await Stream.begin(answers, writer, headers, media=media)
    return JSONResponse(writer.whole(await gathered(request, answers)), headers=dict(headers))
