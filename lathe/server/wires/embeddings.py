"""OpenAI's embeddings: each text becomes the mean of the model's last hidden states, scaled to length 1."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from lathe.server.desk import Desk
from lathe.server.refusals import Misused, Unsupported
from lathe.server.wires.fields import JSON, Body
from lathe.server.wires.frames import gathered
from lathe.server.wires.head import warning
from lathe.server.wires.mixed import Piece, Pieces, ids_of, separate

PATH = "/v1/embeddings"
MOST_TEXTS = 2048
AT_ONCE = 32  # texts of one request that the engine has at a time, where it has so many seats


class EmbeddingBody(Body):
    """The body of an embedding. input: a text, token ids, or both in turn; or several of these."""

    input: str | Annotated[list[Piece | Pieces], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["OpenAI"], dependencies=[JSON])

    @routes.post(PATH)
    @routes.post(PATH.removeprefix("/v1"), include_in_schema=False)
    async def embeddings(request: Request, body: EmbeddingBody) -> Response:
        """An embedding for each text."""
        headers, served = warning(body.unknown(desk.strict)), desk.find(body.model)

        if body.dimensions not in (None, served.width):
            found = f"The model's embeddings have {served.width} dimensions, and no fewer are made."
            raise Unsupported("dimensions", found, fix="Leave it out.")
        prompts, turns = separate(body.input), asyncio.Semaphore(min(AT_ONCE, served.seats))
        if len(prompts) > MOST_TEXTS:
            raise Misused("input", f"{len(prompts)} texts are given.", f"At most {MOST_TEXTS} are taken.")

        async def one(prompt: Any) -> AsyncIterator[tuple[int, list[float]]]:
            async with turns:
                if not isinstance(prompt, str) or not prompt:  # an empty text may have a token that begins it
                    prompt = await run_in_threadpool(ids_of, prompt, served.tokenizer)
                yield await desk.embed(prompt, body.model)

        embedded = sorted(await gathered(request, [one(prompt) for prompt in prompts]))
        written = _base64 if body.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": at, "embedding": written(numbers)} for at, (_, numbers) in embedded]
        tokens = sum(count for _, (count, _) in embedded)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        model = body.model or served.name
        return JSONResponse({"object": "list", "data": data, "model": model, "usage": usage}, headers=headers)

    return routes


def _base64(numbers: list[float]) -> str:
    """The numbers as little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
