"""A conversation as its client tells it -> the messages and tools that a template takes, with nothing of it lost.

Templates differ in where they read earlier reasoning, in the form and ids of calls, and in what they leave out. What a
template does not write (tools, calls, their results, a system message) is written here, as text of another message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lathe.tokenizer.turns import ID, INDEX, Calls, Turns

Message = dict[str, Any]
_RESULT = "<tool_response>\n", "\n</tool_response>"


def dressed(
    turns: Turns, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[Message], list[Mapping[str, Any]]]:
    """The messages and tools to render.

    Args:
        messages: as OpenAI's clients write them. reasoning, or reasoning_content: what was thought before the answer.
            tool_calls: their arguments as objects or as JSON.
        tools: {"type": "function", "function": {...}}.
    """
    ids = _Ids(turns.history.ids)
    told: list[Message] = []
    for message in messages:
        for each in _singly(turns, dict(message)):
            as_text = each.get("role") == "tool" and turns.calls is not None and not turns.calls.shown
            if (
                as_text and told and str(told[-1].get("content")).endswith(_RESULT[1])
            ):  # results are one turn of the user
                told[-1]["content"] += "\n" + _result(each)
            else:
                told.append({"role": "user", "content": _result(each)} if as_text else _message(turns, each, ids))
    if tools and turns.calls and not turns.calls.told:
        told = _instructed(told, _instructions(tools, turns.calls))
        tools = ()
    if not turns.history.system:
        told = _unled(told)
    return told, list(tools)


class _Ids:
    """Ids of calls as the template wants them, the same for a call and its result."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.names: dict[str, str] = {}
        self._given: dict[str, str] = {}

    def of(self, id: str, name: str = "") -> str:
        if name and id not in self._given:
            self.names[id] = name
            self._given[id] = self._make(id, name)
        return self._given.get(id, id)

    def _make(self, id: str, name: str) -> str:
        if self.kind == "short" and not (len(id) == 9 and id.isascii() and id.isalnum()):
            return hashlib.sha256(id.encode(errors="replace")).hexdigest()[:9]
        return f"functions.{name}:{len(self._given)}" if self.kind == "place" else id


def _result(message: Message) -> str:
    return f"{_RESULT[0]}{message.get('content') or ''}{_RESULT[1]}"


def _singly(turns: Turns, message: Message) -> list[Message]:
    """A message of several calls as several, where a template takes one at a time."""
    calls = message.get("tool_calls") or []
    if len(calls) < 2 or turns.calls is None or turns.calls.several:
        return [message]
    return [{**message, "tool_calls": calls[:1]}, *({"role": "assistant", "tool_calls": [call]} for call in calls[1:])]


def _message(turns: Turns, message: Message, ids: _Ids) -> Message:
    history = turns.history
    thought = message.pop("reasoning_content", None) or message.pop("reasoning", None)
    message.pop("reasoning", None)
    if thought and history.thoughts:
        message[history.thoughts] = thought
    calls = message.get("tool_calls")
    if message.get("role") == "assistant" and calls:
        content = message.get("content")
        if turns.calls and not turns.calls.shown:
            del message["tool_calls"]
            message["content"] = "\n".join(filter(None, [content, _written(turns.calls, calls)]))
        else:
            message["tool_calls"] = [_call(call, history.objects, ids) for call in calls]
            message["content"] = content or ("" if history.blank else None)
    elif message.get("role") == "tool":
        id = str(message.get("tool_call_id") or "")
        message |= {"tool_call_id": ids.of(id)} | ({"name": ids.names[id]} if id in ids.names else {})
    return message


def _call(call: Mapping[str, Any], objects: bool, ids: _Ids) -> Message:
    function = call["function"]
    arguments = function.get("arguments") or {}
    if objects and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    elif not objects and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = function["name"]
    given = {"name": name, "arguments": arguments}
    return {"id": ids.of(str(call.get("id") or ""), name), "type": "function", "function": given}


def _written(calls: Calls, made: Sequence[Mapping[str, Any]]) -> str:
    """Calls as the model writes them, where that is JSON."""
    parts = []
    for at, call in enumerate(made):
        arguments = call["function"].get("arguments") or "{}"
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        text = calls.before + call["function"]["name"] + calls.between + arguments + calls.after
        parts.append(text.replace(ID, str(call.get("id") or at)).replace(INDEX, str(at)))
    return calls.opening + calls.separator.join(parts) + calls.closing


def _instructions(tools: Sequence[Mapping[str, Any]], calls: Calls) -> str:
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    example = _written(calls, [{"function": {"name": "NAME", "arguments": '{"ARGUMENT": VALUE}'}}])
    return (
        f"You may call these functions:\n{listed}\n\nTo call one, write this, with its name and arguments:\n{example}"
    )


def _instructed(messages: list[Message], said: str) -> list[Message]:
    """Messages whose first is a system message that says this, too."""
    first = messages[0] if messages else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{said}"}, *messages[1:]]
    return [{"role": "system", "content": said}, *messages]


def _unled(messages: list[Message]) -> list[Message]:
    """Messages without those of the system, whose texts the next of the user begins with."""
    told: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.get("role") == "system":
            waiting.append(str(message.get("content") or ""))
        elif message.get("role") == "user" and waiting:
            told.append({**message, "content": "\n\n".join([*waiting, str(message.get("content") or "")])})
            waiting = []
        else:
            told.append(message)
    return told + ([{"role": "user", "content": "\n\n".join(waiting)}] if waiting else [])
