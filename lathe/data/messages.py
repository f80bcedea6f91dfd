"""A conversation as some data set writes it -> messages as chat templates take them; knows no row and no tokenizer.

Read are OpenAI's messages (role, content as text or in parts, tool_calls, reasoning_content) and ShareGPT's turns
(from, value, with turns of their own for calls and their results). Out come objects with role and content, and where
there are any, reasoning_content, and tool_calls whose arguments are an object.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lathe.errors import DataError, did_you_mean

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_CALLS = ("tool_call", "function_call", "tool_use")
_SHAPE = 'A message is {"role": "user", "content": "..."} or {"from": "human", "value": "..."}.'
# What data sets call a switch or a weight that keeps a message out of the loss, and the value that does.
_SWITCHES = ("weight", "loss_weight", "loss", "loss_scale", "train", "training", "loss_mask")


def read(turns: Sequence[Any]) -> tuple[tuple[Message, ...], frozenset[int]]:
    """The messages, and the places of those that the data set keeps out of the loss (weight 0, train false, ...).

    Raises:
        DataError: a message has an unknown role or content of an unknown kind.
    """
    if turns and all(isinstance(turn, str) for turn in turns):  # LIMA's: only texts, the user's first
        turns = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    messages = []
    for number, turn in enumerate(turns, 1):
        try:
            messages.append(_message(turn))
        except DataError as error:
            raise DataError(f"message {number}: {error.found}", error.expected, error.fix) from None
    _number_calls(messages)
    muted = {at for at, turn in enumerate(turns) if any(_off(turn.get(name)) for name in _SWITCHES)}
    muted |= {at for at, turn in enumerate(turns) if turn.get("masked") is True}
    return tuple(messages), frozenset(muted)


def _off(value: Any) -> bool:
    return value is not None and not isinstance(value, str) and not value


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"it is {_kind(turn)}.", _SHAPE)
    said = turn.get("role", turn.get("from"))
    role = ROLES.get(str(said).lower())
    if role is None:
        known = ", ".join(ROLES)
        found = "it has no role." if said is None else f'the role "{said}" is unknown.'
        raise DataError(found, f"Roles are {known}.", did_you_mean(str(said), ROLES))
    content = turn.get("content", turn.get("value", turn.get("text")))
    if said == "function_call" and isinstance(content, str):
        return {"role": role, "content": "", "tool_calls": _calls(content)}
    message = {"role": role, **_content(content)}
    if role == "assistant":
        reasoning = turn.get("reasoning_content") or turn.get("reasoning") or turn.get("thinking")
        if isinstance(reasoning, str) and reasoning:
            message["reasoning_content"] = reasoning
        listed = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
        if listed:
            message["tool_calls"] = [*message.get("tool_calls", []), *_calls(listed)]
    else:
        message |= {name: turn[name] for name in ("name", "tool_call_id") if isinstance(turn.get(name), str)}
    return message


def _content(content: Any) -> Message:
    """A content's text, and apart from it the reasoning and the calls that stand among its parts."""
    if content is None or isinstance(content, str):
        return {"content": content or ""}
    if not isinstance(content, Sequence):
        raise DataError(f"its content is {_kind(content)}.", "A content is a text or a list of parts.")
    texts, reasoning, calls = [], [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else "text" if isinstance(part, str) else None
        if kind == "text":
            texts.append(_text(part, "text", "value", "content"))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(_text(part, "text", "value", "content", "thinking", "reasoning"))
        elif kind in _CALLS:
            calls += _calls(part.get("value", part))
        else:
            found = f"a part of its content is of the kind {kind}." if kind else "a part of its content has no type."
            raise DataError(found, "Parts are of the kinds text, reasoning and tool_call.")
    message: Message = {"content": "".join(texts)}
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = calls
    return message


def _text(part: Any, *names: str) -> str:
    if isinstance(part, str):
        return part
    text = next((part[name] for name in names if isinstance(part.get(name), str)), None)
    if text is None:
        raise DataError(f"a part of its content has no text, only {', '.join(map(str, part))}.")
    return text


# ---- tools ----------------------------------------------------------------------------------------------------------
def tools(listed: Any) -> tuple[Message, ...]:
    """Tools on offer as templates take them, from a list or its JSON, each bare or as {"type": "function", ...}."""
    listed = _parsed(listed, "the tools") if isinstance(listed, str) and listed.strip() else listed
    if not listed:
        return ()
    if isinstance(listed, Mapping):
        listed = [listed]
    if not isinstance(listed, Sequence) or not all(isinstance(tool, Mapping) for tool in listed):
        raise DataError(f"the tools are {_kind(listed)}.", "They are a list of JSON schemas, or the JSON of one.")
    return tuple(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in listed)


def _calls(listed: Any) -> list[Message]:
    listed = _parsed(listed, "a tool call") if isinstance(listed, str) else listed
    return [_call(call) for call in (listed if isinstance(listed, list) else [listed])]


def _call(call: Any) -> Message:
    """One call as {"type": "function", "function": {"name", "arguments"}}, with its id if it has one."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise DataError("a tool call has no name.", 'A call is {"name": "...", "arguments": {...}}.')
    arguments: Any = next(
        (inner[name] for name in ("arguments", "parameters", "input") if inner.get(name) is not None), {}
    )
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"the arguments of {inner['name']}") if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        raise DataError(f"the arguments of {inner['name']} are {_kind(arguments)}.", "They are an object, or its JSON.")
    made: Message = {"type": "function", "function": {"name": inner["name"], "arguments": dict(arguments)}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _number_calls(messages: Iterable[Message]) -> None:
    """Gives calls without an id one, and results that of the call they answer: nine letters and digits, for Mistral."""
    waiting: list[str] = []
    count = 0
    for message in messages:
        for call in message.get("tool_calls", ()):
            count += 1
            waiting.append(call.setdefault("id", f"call{count:05d}"))
        if message["role"] == "tool":
            due = waiting.pop(0) if waiting else None
            if "tool_call_id" not in message and due is not None:
                message["tool_call_id"] = due


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} should be JSON and is not: {error}.") from None


def _kind(value: Any) -> str:
    names = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return "nothing" if value is None else names.get(type(value), "an object")
