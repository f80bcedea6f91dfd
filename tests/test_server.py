"""The server's core: what an Ask gets is what the engine says alone; the process begins, drains and ends as told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

from fastapi import APIRouter
from serving import in_process, serving

from lathe.llm import LLM
from lathe.server.ask import Ask, Begun, Ended, Said
from lathe.server.desk import Desk

HELLO = [{"role": "user", "content": "Hello there"}]
GREEDY = {"temperature": 0.0, "max_new_tokens": 24}


def asking(*asks: Ask):
    """A wire whose one route answers `asks` all at once, with the events as text."""

    def router(desk: Desk) -> APIRouter:
        routes = APIRouter()

        @routes.get("/ask")
        async def ask() -> list[list[str]]:
            async def events(ask: Ask) -> list[str]:
                return [repr(event) async for event in desk.answer(ask)]

            return await asyncio.gather(*map(events, asks))

        return routes

    return router


def answers(model: Path, *asks: Ask):
    with in_process(model, asking(*asks)) as client:
        response = client.get("/ask")
        assert response.status_code == 200, response.text
        names = {"Begun": Begun, "Said": Said, "Ended": Ended}
        from lathe.server import ask as known

        return [[eval(event, {**vars(known), **names}) for event in events] for events in response.json()]


def text(events) -> str:
    return "".join(event.text for event in events if isinstance(event, Said))


def test_an_answer_is_what_the_model_says_alone(tiny_model: Path) -> None:
    llm = LLM.load(tiny_model, device="cpu")
    asks = [Ask(HELLO, wishes=GREEDY), Ask("Once upon", wishes=GREEDY), Ask([5, 6, 7], wishes=GREEDY, n=2)]
    for ask, events in zip(asks, answers(tiny_model, *asks), strict=True):
        raw = isinstance(ask.prompt, str)
        alone = llm.complete(ask.prompt, raw=raw, **GREEDY)
        for index in range(ask.n):
            assert "".join(e.text for e in events if isinstance(e, Said) and e.index == index) == alone.text
        [ended, *_] = [event for event in events if isinstance(event, Ended)]
        assert (ended.reason, ended.tokens) == (alone.finish_reason, alone.usage.completion_tokens)
        assert events[0] == Begun(alone.usage.prompt_tokens)


def test_a_running_server_begins_and_drains(tiny_model: Path) -> None:
    with serving(tiny_model) as server:
        assert server.client.get("/health").json() == {"status": "ok"}
        assert server.client.get("/nothing").json()["error"]["type"] == "not_found_error"
        server.process.send_signal(signal.SIGTERM)
        assert server.ended() == 0, server.said


def test_an_engine_that_dies_takes_the_server_with_it(tiny_model: Path) -> None:
    with serving(tiny_model) as server:
        [engine] = subprocess.run(
            ["pgrep", "-P", str(server.process.pid), "-f", "spawn_main"], capture_output=True, text=True
        ).stdout.split()
        os.kill(int(engine), signal.SIGKILL)
        assert server.ended() == 1
        assert "Error: The engine process has ended by itself, with status -9." in server.said
