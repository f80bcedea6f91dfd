"""LitGPT's and LitServe's /predict: {"prompt"} becomes an Ask, and its text {"output"}, whole or a line for each piece.

What LitGPT's server got wrong is not repeated: its users' fields are honoured rather than ignored, a temperature of 0
is greedy, the template opens the assistant's turn, and an answer ends with the turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from lathe.server.ask import Ask, Event, Said
from lathe.server.desk import Desk, Served
from lathe.server.refusals import Refusal
from lathe.server.wires.fields import Finite
from lathe.server.wires.frames import LINES, replied
from lathe.server.wires.head import known, warning


class PredictBody(BaseModel):
    """prompt: what a user says, or, for a model without a chat template, a text to continue. The others are LLM's."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    sys_prompt: str | None = None
    model: str | None = Field(None, max_length=1024)
    max_new_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: Finite | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: Finite | None = Field(None, ge=0, le=1)
    min_p: Finite | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None

    def ask(self, served: Served) -> Ask:
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
        wishes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if not served.tokenizer.has_template:
            return Ask("\n\n".join(filter(None, (self.sys_prompt, self.prompt))), self.model, wishes)
        messages = [{"role": "system", "content": self.sys_prompt}] if self.sys_prompt else []
        return Ask([*messages, {"role": "user", "content": self.prompt}], self.model, wishes)


class Lines:
    """Writes an answer as lines of JSON, one for each piece of its text, or whole."""

    def frames(self, which: int, event: Event) -> Iterator[str]:
        if isinstance(event, Said):
            yield _line(output=event.text)

    def last(self) -> Iterator[str]:
        return iter(())

    def failed(self, refusal: Refusal) -> Iterator[str]:
        yield _line(error=refusal.message)

    def whole(self, events: Iterable[tuple[int, Event]]) -> dict[str, str]:
        return {"output": "".join(event.text for _, event in events if isinstance(event, Said))}


def _line(**told: Any) -> str:
    return f"{json.dumps(told, ensure_ascii=False)}\n"


def router(desk: Desk, path: str = "/predict", stream: bool = False) -> APIRouter:
    """path: LitGPT's --api_path. stream: its --stream, for requests that do not say."""
    routes = APIRouter(tags=["LitGPT"])

    @routes.post(path)
    async def predict(request: Request, body: PredictBody) -> Response:
        """The answer to one prompt: {"output": TEXT}; as a stream, such an object with each piece on a line."""
        headers = warning(known(list(body.model_extra or ()), desk.strict))
        answer = desk.answer(body.ask(desk.find(body.model)))
        streams = stream if body.stream is None else body.stream
        return await replied(request, [answer], Lines(), headers, streams, LINES)

    return routes
