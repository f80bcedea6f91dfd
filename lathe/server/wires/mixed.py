"""Prompts of texts and token ids in turn, as llama.cpp takes them, become ids."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lathe.server.wires.fields import TokenId
from lathe.tokenizer import Tokenizer


class Prompted(BaseModel):
    """A text that could have had images beside it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt_string: str


Piece = str | TokenId
Pieces = Annotated[list[Piece], Field(min_length=1)]
Prompt = str | Prompted | Pieces


def separate(told: Any) -> list[Prompt]:
    """The prompts of a field that may hold one, or several: ids beside texts are one, unless others are lists."""
    if not isinstance(told, list):
        return [told]
    if any(isinstance(item, (list, Prompted)) for item in told):
        return [[item] if isinstance(item, int) else item for item in told]
    return [told] if any(isinstance(item, int) for item in told) else told


def ids_of(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt; its first text begins as the tokenizer has texts begin."""
    pieces = [prompt.prompt_string] if isinstance(prompt, Prompted) else [prompt] if isinstance(prompt, str) else prompt
    ids: list[int] = []
    for at, piece in enumerate(pieces):
        ids += [piece] if isinstance(piece, int) else tokenizer.encode(piece, special=at == 0)
    return ids
