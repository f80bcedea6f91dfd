"""OpenAI's chat completions: a body becomes an Ask, and its events one completion or chunks of it.

What is on the wire beyond OpenAI's own: `reasoning` and `reasoning_content`, `stop_reason`, `token_ids` and
`prompt_token_ids` (vLLM's names); `timings`, `prompt_progress` and `__verbose` (llama.cpp's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from lathe.server.ask import Ask, Begun, Called, Ended, Event, Reading, Said, Word
from lathe.server.desk import Desk, Served
from lathe.server.refusals import Misused
from lathe.server.wires.chunks import Chunks
from lathe.server.wires.fields import JSON, MOST_TOP, Wished
from lathe.server.wires.frames import replied
from lathe.server.wires.head import head, idle, warning
from lathe.server.wires.messages import MOST_MESSAGES, Conversation, Format, Message, NamedTool, chosen, formed

PATH = "/v1/chat/completions"
LEAST = -9999.0  # what OpenAI writes for a token that cannot be


class ChatBody(Wished, Conversation):
    """The body of a chat completion."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=-1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    verbose: bool | None = None
    thinking_token_budget: int | None = Field(None, ge=-1, lt=2**31)
    reasoning_budget_tokens: int | None = Field(None, ge=-1, lt=2**31)
    thinking_budget_tokens: int | None = Field(None, ge=-1, lt=2**31)
    response_format: Format | None = None

    def ask(self) -> Ask:
        """Raises Misused, Unsupported."""
        if self.top_logprobs is not None and not self.logprobs:
            raise Misused("top_logprobs", "top_logprobs is given, and logprobs is not true.", fix="Set logprobs.")
        wishes = self.wishes()
        most = self.longest("max_completion_tokens", "max_tokens", "n_predict")
        wishes["max_new_tokens"] = None if most in (None, -1) else most
        if self.logprobs:
            wishes["logprobs"] = self.top_logprobs or 0
        thought = self.one_of("thinking_token_budget", "reasoning_budget_tokens", "thinking_budget_tokens")
        rendering = self.rendering(self.messages)
        return Ask(
            wishes=wishes,
            form=self.form(formed(self.response_format)),
            thought=None if thought == -1 else thought,
            choice=chosen(self.tool_choice, self.parallel_tool_calls, rendering["tools"]),
            **rendering,
            **self.others(),
        )


class Answer(Chunks):
    """Writes one chat completion, whole or in chunks."""

    def __init__(self, body: ChatBody, served: Served) -> None:
        super().__init__(body, PATH, {**head("chatcmpl", body.model, served), "object": "chat.completion.chunk"})
        self.body, self.served, self.begun = body, served, False
        self.prompt: dict[str, Any] = {}  # what is told of it

    # ------------------------------------------------------------ in chunks

    def frames(self, which: int, event: Event) -> Iterator[str]:
        self.tally.count(which, event)
        if not self.begun:
            self.begun = True
            for index in range(self.body.n or 1):
                yield self._chunk(index, {"role": "assistant", "content": None})
        if told := self._prompted(event):
            yield self.chunk([], **told)
        match event:
            case Reading() | Begun():
                yield from self.progress(event)
            case Said():
                yield self._chunk(event.index, _said(event), **self._told(event.words, event.kind))
            case Called():
                yield self._chunk(event.index, {"tool_calls": [_piece(event)]})
            case Ended():
                more = {"stop_reason": event.stop} if event.stop is not None else {}
                yield self._chunk(event.index, {}, event.reason, **more)

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        logprobs = more.pop("logprobs", None)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason, **more}
        return self.chunk([choice])

    def _prompted(self, event: Event) -> dict[str, Any]:
        """What is told of the prompt where a client wants it: its ids, and its text as llama.cpp calls it."""
        if not isinstance(event, Begun):
            return {}
        told: dict[str, Any] = {"prompt_token_ids": list(event.tokens)} if self.body.return_token_ids else {}
        if self.body.verbose:
            told["__verbose"] = {"prompt": self.served.tokenizer.decode(event.tokens, skip_special=False)}
        return told

    def _told(self, tokens: Iterable[Word], kind: str) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if self.body.logprobs:
            more["logprobs"] = {"content": [logprob(word) for word in tokens], "refusal": None}
        if self.body.return_token_ids:
            more["token_ids"] = [word.id for word in tokens]
        return more

    # ------------------------------------------------------------ whole

    def whole(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        choices = [Choice(index) for index in range(self.body.n or 1)]
        for which, event in events:
            self.tally.count(which, event)
            self.prompt |= self._prompted(event)
            if isinstance(event, (Said, Called, Ended)):
                choices[event.index].take(event)
        usage, timings = self.tally.usage(), self.tally.timings()
        told = [choice.told(self.body) for choice in choices]
        whole = {**self.head, "object": "chat.completion", "choices": told, "usage": usage, "timings": timings}
        return {**whole, **self.prompt}


class Choice:
    """One of the answers, as it comes together."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self.words: list[Word] = []  # of the content
        self.ids: list[int] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.ended: Ended | None = None

    def take(self, event: Said | Called | Ended) -> None:
        match event:
            case Said():
                self.texts[event.kind].append(event.text)
                self.words += event.words if event.kind == "content" else ()
                self.ids += [word.id for word in event.words]
            case Called():
                call = self.calls.setdefault(event.call, {"id": event.id, "type": "function", "function": {}})
                function = call["function"]
                function.setdefault("name", event.name)
                function["arguments"] = function.get("arguments", "") + event.arguments
            case Ended():
                self.ended = event

    def told(self, body: ChatBody) -> dict[str, Any]:
        assert self.ended is not None
        content, thought = ("".join(self.texts[kind]) for kind in ("content", "reasoning"))
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content or (None if self.calls else ""),
            "refusal": None,
        }
        if thought:
            message |= {"reasoning": thought, "reasoning_content": thought}
        if self.calls:
            message["tool_calls"] = [self.calls[at] for at in sorted(self.calls)]
        told: dict[str, Any] = {"index": self.index, "message": message, "logprobs": None}
        if body.logprobs:
            told["logprobs"] = {"content": [logprob(word) for word in self.words], "refusal": None}
        if body.return_token_ids:
            told["token_ids"] = self.ids
        if self.ended.stop is not None:
            told["stop_reason"] = self.ended.stop
        return {**told, "finish_reason": self.ended.reason}


def _said(event: Said) -> dict[str, str]:
    if event.kind == "content":
        return {"content": event.text}
    return {"reasoning": event.text, "reasoning_content": event.text}  # clients know it by either name


def _piece(event: Called) -> dict[str, Any]:
    piece: dict[str, Any] = {"index": event.call, "function": {"arguments": event.arguments}}
    if event.id is not None:
        piece |= {"id": event.id, "type": "function", "function": {"name": event.name, "arguments": event.arguments}}
    return piece


def logprob(word: Word) -> dict[str, Any]:
    """A token with its log-probability and the likeliest, as OpenAI writes them."""
    top = [_token(text, value) for _, text, value in word.top]
    return {**_token(word.text, word.logprob), "top_logprobs": top}


def _token(text: bytes, logprob: float | None) -> dict[str, Any]:
    value = LEAST if logprob is None else max(logprob, LEAST)
    return {"token": text.decode(errors="replace"), "bytes": list(text), "logprob": value}


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["OpenAI"], dependencies=[JSON])

    @routes.post(PATH)
    @routes.post(PATH.removeprefix("/v1"), include_in_schema=False)  # as llama.cpp has it, too
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """One or several answers to a conversation, whole or as a stream of chunks."""
        ask, served = body.ask(), desk.find(body.model)
        headers = warning(body.unknown(desk.strict) + idle("reasoning_effort", ask, served, desk.strict))
        answer = Answer(body, served)
        return await replied(request, [desk.answer(ask)], answer, headers, body.stream)

    return routes
