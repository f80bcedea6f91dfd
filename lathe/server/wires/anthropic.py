"""Anthropic's messages: a body becomes an Ask, and its events one message, or the events that its clients expect.

Blocks follow one another: a thought, a text, a call; each begins, grows and stops before the next.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from lathe.server.ask import Ask, Begun, Called, Ended, Event, Reason, Said
from lathe.server.desk import Desk
from lathe.server.refusals import Refusal
from lathe.server.wires.anthropic_bodies import CountBody, MessagesBody
from lathe.server.wires.frames import replied
from lathe.server.wires.head import idle, warning

PATH = "/v1/messages"
REASONS: dict[Reason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "cancelled": "end_turn",
}


def event(body: dict[str, Any]) -> str:
    return f"event: {body['type']}\ndata: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


class Answer:
    """Writes one message, whole or as events.

    model: its name, as the client has it. hides: thoughts are not told, only that there were some.
    """

    def __init__(self, model: str, hides: bool) -> None:
        self.message: dict[str, Any] = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 0,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        }
        self.hides = hides
        self._call: int | None = None  # whose block is open

    def frames(self, which: int, event_: Event) -> Iterator[str]:
        yield from map(event, self._told(event_))

    def last(self) -> Iterator[str]:
        yield event({"type": "message_stop"})

    def failed(self, refusal: Refusal) -> Iterator[str]:
        yield event(refusal.body(PATH))

    def whole(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        for _, each in events:
            for _ in self._told(each):
                pass
        for block in self._blocks:
            if block["type"] == "tool_use":
                block["input"] = _object(block["input"])
        return self.message

    @property
    def _blocks(self) -> list[dict[str, Any]]:
        return self.message["content"]

    # ------------------------------------------------------------ what is told of an event

    def _told(self, told: Event) -> Iterator[dict[str, Any]]:
        match told:
            case Begun():
                usage = self.message["usage"]
                usage |= {"input_tokens": told.prompt - told.cached, "cache_read_input_tokens": told.cached}
                yield {"type": "message_start", "message": json.loads(json.dumps(self.message))}
            case Said(kind="content"):
                yield from self._open({"type": "text", "text": ""})
                yield self._more("text", {"type": "text_delta", "text": told.text})
            case Said():
                yield from self._open({"type": "thinking", "thinking": "", "signature": ""})
                if not self.hides:
                    yield self._more("thinking", {"type": "thinking_delta", "thinking": told.text})
            case Called():
                if told.call != self._call:
                    yield from self._open(
                        {"type": "tool_use", "id": _id(told.id), "name": told.name, "input": ""}, told.call
                    )
                if told.arguments:
                    delta = {"type": "input_json_delta", "partial_json": told.arguments}
                    yield self._more("input", delta, "partial_json")
            case Ended():
                if not self._blocks:
                    yield from self._open({"type": "text", "text": ""})
                yield from self._close()
                yield self._end(told)

    def _open(self, block: dict[str, Any], call: int | None = None) -> Iterator[dict[str, Any]]:
        if self._blocks and self._blocks[-1]["type"] == block["type"] and call is None:
            return
        yield from self._close()
        self._call = call
        self._blocks.append(block)
        shown = {**block, "input": {}} if "input" in block else dict(block)
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": shown}

    def _more(self, key: str, delta: dict[str, Any], name: str | None = None) -> dict[str, Any]:
        self._blocks[-1][key] += delta[name or key]
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._blocks:
            at = len(self._blocks) - 1
            if self._blocks[at]["type"] == "thinking":  # clients give it back with the thought
                signed = {"type": "signature_delta", "signature": ""}
                yield {"type": "content_block_delta", "index": at, "delta": signed}
            yield {"type": "content_block_stop", "index": at}

    def _end(self, told: Ended) -> dict[str, Any]:
        sequence = told.stop if isinstance(told.stop, str) else None
        reason = REASONS[told.reason] if sequence is None else "stop_sequence"
        self.message |= {"stop_reason": reason, "stop_sequence": sequence}
        self.message["usage"]["output_tokens"] = told.tokens
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return {"type": "message_delta", "delta": delta, "usage": dict(self.message["usage"])}


def _id(id: str | None) -> str:
    """A call's id by Anthropic's name for it; one that a template asks to be as it is stays so."""
    return f"toolu_{id[5:]}" if id and id.startswith("call_") else str(id)


def _object(text: str) -> dict[str, Any]:
    """The arguments of a call; of one that was cut off, as far as nobody can tell, none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["Anthropic"])

    @routes.post(PATH)
    async def messages(request: Request, body: MessagesBody) -> Response:
        """The next message of a conversation, whole or as a stream of events."""
        ask, served = body.ask(), desk.find(body.model)
        field = "thinking" if body.thinking else "output_config.effort"
        headers = warning(body.unknown(desk.strict) + idle(field, ask, served, desk.strict))
        hides = body.thinking is not None and body.thinking.display == "omitted"
        answer = Answer(body.model or served.name, hides)
        return await replied(request, [desk.answer(ask)], answer, headers, body.stream)

    @routes.post(f"{PATH}/count_tokens")
    def count_tokens(body: CountBody) -> JSONResponse:
        """How many tokens a conversation has, as the model would read it."""
        headers, served = warning(body.unknown(desk.strict)), desk.find(body.model)
        text = desk.render(served, Ask(**body.conversation()))
        count = len(served.tokenizer.encode(text, special=False))
        return JSONResponse({"input_tokens": count}, headers=headers)

    return routes
