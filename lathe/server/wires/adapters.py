"""vLLM's way to put adapters on a model that is served, and to take them off: for the admin, from one folder."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from lathe.server.desk import Desk

NAME = r"^[\w.-]{1,200}$"


class LoadBody(BaseModel):
    """lora_path: a folder, from the one that the server was given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: str = Field(pattern=NAME)
    lora_path: str = Field(min_length=1, max_length=1000)


class UnloadBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: str = Field(pattern=NAME)


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["Adapters"])

    @routes.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    async def load(body: LoadBody) -> PlainTextResponse:
        """Put an adapter on the model; requests name it as their model."""
        await desk.put(body.lora_name, body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @routes.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload(body: UnloadBody) -> PlainTextResponse:
        """Take an adapter off that nobody uses just now."""
        await desk.take_off(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return routes
