"""OpenAI's responses: a body becomes an Ask, and its events one response, or the events that its clients expect.

Items follow one another: a thought, a message, calls; each is added, grows and is done before the next. A response is
kept for later requests, unless it says otherwise. Beyond OpenAI's own are `timings` and `prompt_progress`, llama.cpp's.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from lathe.server.ask import Ask, Begun, Called, Ended, Event, Reading, Said
from lathe.server.desk import Desk
from lathe.server.gate import key
from lathe.server.refusals import Refusal, Unsupported
from lathe.server.wires.chat import logprob
from lathe.server.wires.frames import replied
from lathe.server.wires.head import idle, warning
from lathe.server.wires.responses_bodies import ResponsesBody
from lathe.server.wires.responses_items import Item
from lathe.server.wires.responses_kept import Items, Shelf, page, with_ids
from lathe.server.wires.tally import Tally

PATH = "/v1/responses"
Told = tuple[str, dict[str, Any]]  # an event's type, and what else it holds


class Answer:
    """Writes one response, whole or as events.

    keep: is given it when it is whole; None: it is not to be kept.
    """

    def __init__(self, body: ResponsesBody, model: str, keep: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.body, self.keep, self.tally = body, keep, Tally()
        self.response = _response(body, model) | {"store": keep is not None}
        self.output: list[dict[str, Any]] = self.response["output"]
        self._kind, self._call = "", -1  # of the item that grows
        self._begun, self._number = False, -1

    def frames(self, which: int, event: Event) -> Iterator[str]:
        self.tally.count(which, event)
        if not self._begun:
            self._begun = True
            yield self._frame("response.created", {"response": self.response})
            yield self._frame("response.in_progress", {"response": self.response})
        if self.body.return_progress and isinstance(event, (Reading, Begun)):
            progress = self.tally.progress(event)
            yield self._frame("response.in_progress", {"response": self.response, "prompt_progress": progress})
        for kind, more in self._told(event):
            if self.body.timings_per_token and kind == "response.output_text.delta":
                more["timings"] = self.tally.timings()
            yield self._frame(kind, more)

    def last(self) -> Iterator[str]:
        kind = "response.completed" if self.response["status"] == "completed" else "response.incomplete"
        yield self._frame(kind, {"response": self.response, "timings": self.tally.timings()})

    def failed(self, refusal: Refusal) -> Iterator[str]:
        error = {"code": "server_error" if refusal.status >= 500 else "invalid_prompt", "message": refusal.message}
        self.response |= {"status": "failed", "error": error}
        yield self._frame("response.failed", {"response": self.response})

    def whole(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        for which, event in events:
            self.tally.count(which, event)
            for _ in self._told(event):
                pass
        return self.response

    def _frame(self, kind: str, more: dict[str, Any]) -> str:
        self._number += 1
        body = {"type": kind, "sequence_number": self._number, **more}
        return f"event: {kind}\ndata: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"

    # ------------------------------------------------------------ what is told of an event

    def _told(self, event: Event) -> Iterator[Told]:
        match event:
            case Said(kind="content"):
                yield from self._open("message")
                yield from self._say(event, "response.output_text.delta")
            case Said():
                yield from self._open("reasoning")
                yield from self._say(event, "response.reasoning_text.delta")
            case Called():
                if event.id is not None:
                    yield from self._open("function_call", event)
                if event.arguments:
                    self.output[-1]["arguments"] += event.arguments
                    yield "response.function_call_arguments.delta", {**self._place(), "delta": event.arguments}
            case Ended():
                if not self.output:
                    yield from self._open("message")
                short = event.reason == "length"
                yield from self._close("incomplete" if short else "completed")
                self.response |= {"status": "incomplete" if short else "completed", "usage": self._usage()}
                self.response["incomplete_details"] = {"reason": "max_output_tokens"} if short else None
                self.response["completed_at"] = None if short else time.time()
                if self.keep:
                    self.keep(self.response)

    def _open(self, kind: str, call: Called | None = None) -> Iterator[Told]:
        if self._kind == kind and call is None:
            return
        yield from self._close("completed")
        self._kind = kind
        match kind:
            case "message":
                item: dict[str, Any] = {"id": _id("msg"), "type": kind, "role": "assistant", "content": []}
            case "reasoning":
                item = {"id": _id("rs"), "type": kind, "summary": [], "content": []}
            case _:
                assert call is not None
                item = {"id": _id("fc"), "type": kind, "call_id": call.id, "name": call.name, "arguments": ""}
        self.output.append({**item, "status": "in_progress"})
        yield "response.output_item.added", {"output_index": len(self.output) - 1, "item": _copy(self.output[-1])}
        if call is None:
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            part = part if kind == "message" else {"type": "reasoning_text", "text": ""}
            self.output[-1]["content"].append(part)
            yield "response.content_part.added", {**self._place(), "content_index": 0, "part": _copy(part)}

    def _say(self, event: Said, kind: str) -> Iterator[Told]:
        part = self.output[-1]["content"][0]
        part["text"] += event.text
        more: dict[str, Any] = {}
        if event.kind == "content":
            more["logprobs"] = [logprob(word) for word in event.words] if self.body.logprobs else []
            part["logprobs"] += more["logprobs"]
        yield kind, {**self._place(), "content_index": 0, "delta": event.text, **more}

    def _close(self, status: str) -> Iterator[Told]:
        if not self._kind:
            return
        item, place = self.output[-1], self._place()
        match self._kind:
            case "function_call":
                yield "response.function_call_arguments.done", {**place, "arguments": item["arguments"]}
            case kind:
                part = item["content"][0]
                name = "output_text" if kind == "message" else "reasoning_text"
                more = {"logprobs": _copy(part["logprobs"])} if kind == "message" else {}
                yield f"response.{name}.done", {**place, "content_index": 0, "text": part["text"], **more}
                yield "response.content_part.done", {**place, "content_index": 0, "part": _copy(part)}
        item["status"] = status
        yield "response.output_item.done", {"output_index": len(self.output) - 1, "item": _copy(item)}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.output[-1]["id"], "output_index": len(self.output) - 1}

    def _usage(self) -> dict[str, Any]:
        tally = self.tally
        return {
            "input_tokens": tally.prompt,
            "input_tokens_details": {"cached_tokens": tally.cached, "cache_write_tokens": 0},
            "output_tokens": tally.made,
            "output_tokens_details": {"reasoning_tokens": tally.reasoned},
            "total_tokens": tally.prompt + tally.made,
        }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _response(body: ResponsesBody, model: str) -> dict[str, Any]:
    """A response that has just begun, with what its request says."""
    said = body.model_dump(by_alias=True, exclude_none=True)
    asked = said.get("reasoning", {})
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": said.get("prompt_cache_key"),
        "reasoning": {"effort": asked.get("effort"), "summary": None},
        "safety_identifier": said.get("safety_identifier"),
        "service_tier": "default",
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}, **said.get("text", {})},
        "tool_choice": said.get("tool_choice", "auto"),
        "tools": [{"strict": True, "description": None, "parameters": {}, **tool} for tool in said.get("tools", [])],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": said.get("user"),
    }


def router(desk: Desk, kept: int = 1000) -> APIRouter:
    """kept: how many responses are kept."""
    routes = APIRouter(tags=["OpenAI"])
    shelf = Shelf(kept)

    def read(request: Request, body: ResponsesBody) -> tuple[Ask, Items]:
        """What is asked, and all items that the model reads for it. Raises Misused, Unsupported."""
        owner = key(request.scope)
        earlier = shelf.before(owner, body.previous_response_id) if body.previous_response_id else ()
        items = body.items(partial(shelf.item, owner))
        ask = body.ask(items, [Item.model_validate(item) for item in earlier])
        return ask, (*earlier, *with_ids(item.model_dump(exclude_none=True) for item in items))

    @routes.post(PATH)
    @routes.post(PATH.removeprefix("/v1"), include_in_schema=False)  # as llama.cpp has it, too
    async def responses(request: Request, body: ResponsesBody) -> Response:
        """One answer to a conversation, whole or as a stream of events."""
        (ask, items), served = read(request, body), desk.find(body.model)
        headers = warning(body.unknown(desk.strict) + idle("reasoning.effort", ask, served, desk.strict))
        keeps = kept > 0 and body.store is not False
        keep = partial(shelf.keep, key(request.scope), read=items) if keeps else None
        answer = Answer(body, body.model or served.name, keep)
        return await replied(request, [desk.answer(ask)], answer, headers, body.stream)

    @routes.post(f"{PATH}/input_tokens")
    async def input_tokens(request: Request, body: ResponsesBody) -> dict[str, Any]:
        """How many tokens the model would read for a response to the same body."""
        ask, _ = read(request, body)
        prompt = await run_in_threadpool(desk.read, desk.find(body.model), ask)
        return {"object": "response.input_tokens", "input_tokens": len(prompt.tokens)}

    @routes.get(f"{PATH}/{{id}}")
    async def response(request: Request, id: str, stream: bool = False) -> dict[str, Any]:
        """A response that was kept, for a day after it was asked for last."""
        if stream:
            raise Unsupported("stream", "A response that is whole is not streamed again.", fix="Leave it out.")
        return shelf.find(key(request.scope), id).response

    @routes.delete(f"{PATH}/{{id}}")
    async def forgotten(request: Request, id: str) -> dict[str, Any]:
        """Keep a response no longer. Those that went on from it stay."""
        shelf.drop(key(request.scope), id)
        return {"id": id, "object": "response", "deleted": True}

    @routes.get(f"{PATH}/{{id}}/input_items")
    async def input_items(
        request: Request,
        id: str,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> dict[str, Any]:
        """What the model read for a response: the items of its request, and those of the responses before it."""
        return page(shelf.find(key(request.scope), id).read, order, after, limit)

    return routes
