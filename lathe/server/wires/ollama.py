"""Ollama's /api: its bodies become Asks, and events lines of JSON with times in nanoseconds; models are what is served.

Nothing is loaded, pulled or kept alive by a request: what clients say of that changes nothing here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lathe.server.ask import Begun, Called, Ended, Event, Said, Word
from lathe.server.desk import Desk
from lathe.server.refusals import Refusal
from lathe.server.wires.chat import logprob
from lathe.server.wires.frames import LINES, replied
from lathe.server.wires.head import idle, known, warning
from lathe.server.wires.ollama_bodies import ChatBody, GenerateBody, ShowBody
from lathe.server.wires.ollama_models import listed, now, resolved, running, shown

NOTHING: Mapping[str, str] = MappingProxyType({})
VERSION = "0.32.15"  # of Ollama: clients ask for it to know what the wire can do


class Answer:
    """Writes one answer, as lines or whole. chat: as a message, else as a response."""

    def __init__(self, model: str, chat: bool, logprobs: bool) -> None:
        self.model, self.chat, self.logprobs = model, chat, logprobs
        self.begun, self.prompt = time.perf_counter(), 0
        self.calls: dict[int, dict[str, Any]] = {}

    # ------------------------------------------------------------ as lines

    def frames(self, which: int, event: Event) -> Iterator[str]:
        match event:
            case Begun():
                self.prompt = event.prompt
            case Said():
                logprobs = {"logprobs": [logprob(word) for word in event.words]} if self._counted(event) else {}
                yield line({**self._told({event.kind: event.text}), "done": False, **logprobs})
            case Called():
                self._take(event)
            case Ended():
                if self.calls:
                    yield line({**self._told(calls=self._called()), "done": False})
                yield line({**self._told(), **self._end(event)})

    def last(self) -> Iterator[str]:
        return iter(())

    def failed(self, refusal: Refusal) -> Iterator[str]:
        yield line({"error": refusal.message})

    # ------------------------------------------------------------ whole

    def nothing(self, reason: str) -> dict[str, Any]:
        """The answer to a request that says nothing."""
        return {**self._told(), "done": True, "done_reason": reason}

    def whole(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        words: list[Word] = []
        ended: dict[str, Any] = {}
        for _, event in events:
            match event:
                case Begun():
                    self.prompt = event.prompt
                case Said():
                    texts[event.kind].append(event.text)
                    words += event.words if self._counted(event) else ()
                case Called():
                    self._take(event)
                case Ended():
                    ended = self._end(event)
        told = self._told({kind: "".join(parts) for kind, parts in texts.items()}, self._called())
        return {**told, **ended, **({"logprobs": [logprob(word) for word in words]} if self.logprobs else {})}

    def _counted(self, event: Said) -> bool:
        return self.logprobs and bool(event.words)

    def _take(self, event: Called) -> None:
        """A call is told when it is whole: its arguments are an object here, which cannot be given in pieces."""
        call = self.calls.setdefault(event.call, {"id": event.id, "name": event.name, "arguments": ""})
        call["arguments"] += event.arguments

    def _called(self) -> list[dict[str, Any]]:
        told = []
        for at, call in sorted(self.calls.items()):
            function = {"index": at, "name": call["name"], "arguments": _object(call["arguments"])}
            told.append({"id": call["id"], "function": function})
        return told

    def _told(self, texts: Mapping[str, str] = NOTHING, calls: Sequence[Any] = ()) -> dict[str, Any]:
        """texts: by the kinds of `Said`."""
        head = {"model": self.model, "created_at": now()}
        content, more = texts.get("content", ""), {"thinking": texts["reasoning"]} if texts.get("reasoning") else {}
        if not self.chat:
            return {**head, "response": content, **more}
        called = {"tool_calls": calls} if calls else {}
        return {**head, "message": {"role": "assistant", "content": content, **more, **called}}

    def _end(self, event: Ended) -> dict[str, Any]:
        reading, writing = event.seconds
        whole = time.perf_counter() - self.begun
        return {
            "done": True,
            "done_reason": "length" if event.reason == "length" else "stop",
            "total_duration": nanoseconds(whole),
            "load_duration": nanoseconds(max(0.0, whole - reading - writing)),  # what came before the engine had it
            "prompt_eval_count": self.prompt,
            "prompt_eval_duration": nanoseconds(reading),
            "eval_count": event.tokens,
            "eval_duration": nanoseconds(writing),
        }


def _object(text: str) -> Any:
    """A call's arguments. An answer that was cut off may have begun them only; they are told as they stand then."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {"": text}


def line(told: Mapping[str, Any]) -> str:
    return f"{json.dumps(told, ensure_ascii=False, separators=(',', ':'))}\n"


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["Ollama"], prefix="/api")
    since = now()

    async def answered(request: Request, body: ChatBody | GenerateBody) -> Response:
        unknown = known(body.unknown(), desk.strict)
        named = desk.named(resolved(desk, body.model))
        ask = body.ask(named)
        answer = Answer(body.model, isinstance(body, ChatBody), bool(body.logprobs or body.top_logprobs))
        if ask is None:
            return JSONResponse(answer.nothing("unload" if body.unloads() else "load"), headers=warning(unknown))
        headers = warning(unknown + idle("think", ask, named.served, desk.strict))
        return await replied(request, [desk.answer(ask)], answer, headers, body.stream is not False, LINES)

    @routes.post("/chat")
    async def chat(request: Request, body: ChatBody) -> Response:
        """An answer to a conversation, as lines of JSON unless stream is false."""
        return await answered(request, body)

    @routes.post("/generate")
    async def generate(request: Request, body: GenerateBody) -> Response:
        """An answer to one prompt, as lines of JSON unless stream is false."""
        return await answered(request, body)

    @routes.get("/tags")
    async def tags() -> dict[str, Any]:
        """All models and adapters that a request can name."""
        return {"models": [listed(desk.named(name), since) for name in desk.names]}

    @routes.get("/ps")
    async def ps() -> dict[str, Any]:
        """Those that are loaded, which are the same."""
        return {"models": [running(desk.named(name)) for name in desk.names]}

    @routes.post("/show")
    async def show(body: ShowBody) -> dict[str, Any]:
        """What a model is, and what it can do."""
        return shown(desk.named(resolved(desk, body.model or body.name or "")), since)

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """The version of Ollama whose wire this is."""
        return {"version": VERSION}

    return routes
