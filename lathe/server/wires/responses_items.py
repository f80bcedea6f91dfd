"""Items of input, as OpenAI's responses have them, become messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lathe.server.refusals import Misused, Unsupported
from lathe.server.wires.messages import Part


class Item(BaseModel):
    """An item of input, of whatever type."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: str | None = None
    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


def messages(items: Sequence[Item], before: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What items say, behind the messages before them. A thought belongs to what is said or called after it.

    Raises Misused, Unsupported.
    """
    told = list(before)
    thought = ""
    for at, item in enumerate(items):
        path = f"input.{at}"
        if item.type == "reasoning":
            thought = _text(item.content or item.summary or [], f"{path}.content")
            continue
        message = _message(item, path)
        if message["role"] == "assistant" and thought:
            message["reasoning_content"], thought = thought, ""
        _add(told, message)
    return told


def _add(told: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """One more message: calls belong to the message that they follow, and what leads a conversation is one message."""
    last = told[-1] if told else {}
    if message.get("tool_calls") and last.get("role") == "assistant" and "reasoning_content" not in message:
        last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
    elif message["role"] == "system" and len(told) == 1 and last["role"] == "system":
        last["content"] += f"\n\n{message['content']}"
    else:
        told.append(message)


def _message(item: Item, path: str) -> dict[str, Any]:
    match item.type:
        case None | "message":
            if item.role is None or item.content is None:
                missing = "role" if item.role is None else "content"
                raise Misused(f"{path}.{missing}", f"A message has no {missing}.")
            role = "system" if item.role == "developer" else item.role
            return {"role": role, "content": _text(item.content, f"{path}.content")}
        case "function_call":
            if item.call_id is None or item.name is None:
                raise Misused(f"{path}.call_id", "A function_call has no call_id or no name.")
            try:
                arguments = json.loads(item.arguments or "{}")
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                raise Misused(f"{path}.arguments", "The arguments of a call are not a JSON object.")
            function = {"name": item.name, "arguments": arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            return {"role": "assistant", "content": "", "tool_calls": [call]}
        case "function_call_output":
            if item.call_id is None or item.output is None:
                raise Misused(f"{path}.call_id", "A function_call_output has no call_id or no output.")
            return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output, f"{path}.output")}
    raise Unsupported(f"{path}.type", f"An item of type {item.type!r:.80} is not supported.")


def _text(content: str | Sequence[Part], path: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for at, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"):
            found = f"Content of type {part.type!r:.80} is not supported."
            raise Unsupported(f"{path}.{at}.type", found, "The model reads text.")
        if text is None:
            raise Misused(f"{path}.{at}.text", f"A part of type {part.type} has no text.")
        texts.append(text)
    return "\n".join(texts)
