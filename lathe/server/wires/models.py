"""OpenAI's list of models: what is served, and the adapters on it, each with the model that it stands on."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from lathe.server.desk import Desk, Named


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["OpenAI"])
    created = int(time.time())

    @routes.get("/v1/models")
    @routes.get("/models", include_in_schema=False)  # as llama.cpp has it, too
    async def models() -> dict[str, Any]:
        """All models and adapters that a request can name."""
        return {"object": "list", "data": [_model(desk.named(name), created) for name in desk.names]}

    @routes.get("/v1/models/{name:path}")
    @routes.get("/models/{name:path}", include_in_schema=False)
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(desk.named(name), created)

    return routes


def _model(named: Named, created: int) -> dict[str, Any]:
    served = named.served
    told = {"id": named.name, "object": "model", "created": created, "owned_by": "lathe"}
    about = {"root": served.name, "parent": served.name if named.adapter else None, "max_model_len": served.context}
    return {**told, **about, "has_chat_template": served.tokenizer.has_template}
