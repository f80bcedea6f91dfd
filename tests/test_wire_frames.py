"""Streams: kept alive while nothing comes, ended with their client, and honest about what goes wrong in the midst."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lathe.errors import PromptError
from lathe.server.ask import Begun, Ended, Event, Said
from lathe.server.refusals import Broken, Gone, Refusal
from lathe.server.wires.frames import Stream, gathered


class Plain:
    """Writes events as they are."""

    def frames(self, which: int, event: Event) -> Iterator[str]:
        yield f"{which} {type(event).__name__}\n"

    def last(self) -> Iterator[str]:
        yield "all\n"

    def failed(self, refusal: Refusal) -> Iterator[str]:
        yield f"{refusal.status}\n"


class Answer:
    """Events, with pauses and errors among them. closed: whether it was, or came to its end."""

    def __init__(self, *steps: Event | float | Exception) -> None:
        self.steps, self.closed = steps, False

    async def __call__(self) -> AsyncIterator[Event]:
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.closed = True


async def sent(stream: Stream, goes_after: int | None = None) -> str:
    """What a client gets that goes away after so many messages."""
    texts: list[bytes] = []
    gone = asyncio.Event()

    async def send(message: Any) -> None:
        texts.append(message.get("body", b""))
        if goes_after is not None and len(texts) > goes_after:
            gone.set()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    return b"".join(texts).decode()


BEGUN, SAID, ENDED = Begun(3), Said(0, "a"), Ended(0, "stop", 1)


def test_a_comment_comes_where_nothing_else_does() -> None:
    async def whole() -> str:
        return await sent(await Stream.begin([Answer(0.3, BEGUN, SAID, 0.3, ENDED)()], Plain(), ping=0.1))

    told = asyncio.run(whole())
    assert told.count(": ping\n\n") >= 3
    assert told.replace(": ping\n\n", "") == "0 Begun\n0 Said\n0 Ended\nall\n"


def test_several_answers_come_as_they_are_made() -> None:
    async def whole() -> str:
        answers = [Answer(BEGUN, 0.2, ENDED)(), Answer(0.05, BEGUN, ENDED)()]
        return await sent(await Stream.begin(answers, Plain()))

    assert asyncio.run(whole()) == "0 Begun\n1 Begun\n1 Ended\n0 Ended\nall\n"


def test_what_is_wrong_before_is_raised_and_later_told() -> None:
    async def early() -> None:
        await Stream.begin([Answer(0.05, PromptError("No."))()], Plain())

    with pytest.raises(PromptError):
        asyncio.run(early())

    async def late(*steps: Any) -> str:
        return await sent(await Stream.begin([Answer(*steps)()], Plain(), ping=0.1))

    assert asyncio.run(late(BEGUN, Broken("It broke."))) == "0 Begun\n500\n"
    assert asyncio.run(late(0.15, PromptError("No."))) == ": ping\n\n400\n"


@pytest.mark.parametrize("messages", [0, 2])
def test_a_client_that_goes_ends_the_answers(messages: int) -> None:
    answers = [Answer(BEGUN, SAID, 60.0, ENDED), Answer(60.0, BEGUN)]

    async def left() -> None:
        await sent(await Stream.begin([answer() for answer in answers], Plain()), goes_after=messages)

    asyncio.run(asyncio.wait_for(left(), 10))
    assert all(answer.closed for answer in answers)


def test_a_client_that_goes_ends_an_answer_that_is_gathered() -> None:
    answer = Answer(BEGUN, 60.0)

    class Request:
        async def receive(self) -> dict[str, str]:
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

    with pytest.raises(Gone):
        asyncio.run(asyncio.wait_for(gathered(Request(), [answer()]), 10))
    assert answer.closed
