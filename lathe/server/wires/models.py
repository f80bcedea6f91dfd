"""The list of models: what is served, and the adapters on it, each with the model that it stands on.

OpenAI's fields and Anthropic's have names of their own, so that one answer has both, and either client finds its own.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter

from lathe.server.desk import Desk, Named


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["OpenAI", "Anthropic"])
    created = int(time.time())

    @routes.get("/v1/models")
    @routes.get("/models", include_in_schema=False)  # as llama.cpp has it, too
    async def models() -> dict[str, Any]:
        """All models and adapters that a request can name, on one page."""
        data = [_model(desk.named(name), created) for name in desk.names]
        page = {"has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return {"object": "list", "data": data, **page}

    @routes.get("/v1/models/{name:path}")
    @routes.get("/models/{name:path}", include_in_schema=False)
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _model(desk.named(name), created)

    return routes


def _model(named: Named, created: int) -> dict[str, Any]:
    served, since = named.served, datetime.fromtimestamp(created, timezone.utc).isoformat()
    told = {"id": named.name, "object": "model", "created": created, "owned_by": "lathe"}
    told |= {"type": "model", "display_name": named.name, "created_at": since, "lifecycle": "active"}
    about = {"root": served.name, "parent": served.name if named.adapter else None, "max_model_len": served.context}
    about["max_input_tokens"] = served.context
    return {**told, **about, "has_chat_template": served.tokenizer.has_template}
