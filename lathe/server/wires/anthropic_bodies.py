"""Anthropic's request for a message becomes an Ask: blocks of content become messages as OpenAI's clients write them.

A field that changes the answer is honoured or refused by name. What cannot be read (images, documents, blocks of tools
that run elsewhere) is refused; redacted thinking, which nobody here can read, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from lathe.server.ask import Ask, Form, Tool, ToolChoice
from lathe.server.refusals import Misused, Unsupported
from lathe.server.wires.fields import MOST_STOPS, Body, Finite
from lathe.server.wires.messages import MOST_MESSAGES, MOST_TOOLS


class Block(BaseModel):
    """A block of content, of whatever type."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolBody(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class Choice(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=1)
    display: Literal["summarized", "omitted"] | None = None


class Format(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class Output(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class CountBody(Body):
    """The body of a question for how long a prompt is."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "container": (),
        "context_management": (),
        "mcp_servers": ([],),
        "prefill": (),
        "speed": ("standard",),
    }
    cosmetic: ClassVar[frozenset[str]] = frozenset(
        "metadata service_tier inference_geo cache_control diagnostics user_profile_id workspace_id".split()
    )

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    system: str | list[Block] | None = None
    tools: list[ToolBody] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: Output | None = None
    output_format: Format | None = None

    def conversation(self) -> dict[str, Any]:
        """The fields of an Ask that say what is rendered. Raises Misused, Unsupported."""
        messages = [each for at, message in enumerate(self.messages) for each in _plainly(message, f"messages.{at}")]
        if self.system:
            messages.insert(0, {"role": "system", "content": _text(self.system, "system")})
        tools = _offered(self.tools)
        return {
            "prompt": messages,
            "model": self.model,
            "tools": tools,
            "choice": _chosen(self.tool_choice, tools),
            "think": None if self.thinking is None else self.thinking.type != "disabled",
            "effort": self.output_config.effort if self.output_config else None,
            "thought": self.thinking.budget_tokens if self.thinking else None,
            "continues": self.messages[-1].role == "assistant",
        }


class MessagesBody(CountBody):
    """The body of a request for a message."""

    max_tokens: int = Field(ge=1, lt=2**31)
    stream: bool | None = None
    temperature: Finite | None = Field(None, ge=0, le=2)
    top_p: Finite | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=1024)]] | None = Field(
        None, max_length=MOST_STOPS
    )

    def ask(self) -> Ask:
        """Raises Misused, Unsupported."""
        named = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "seed")}
        wishes = {name: value for name, value in named.items() if value is not None}
        form = self.output_config.format if self.output_config and self.output_config.format else self.output_format
        return Ask(
            wishes={**wishes, "max_new_tokens": self.max_tokens},
            stop=tuple(self.stop_sequences or ()),
            form=None if form is None else _formed(form, "output_config.format"),
            **self.conversation(),
        )


def _formed(form: Format, field: str) -> Form:
    if form.type != "json_schema":
        raise Unsupported(f"{field}.type", f"A format of type {form.type!r:.80} is not supported.", "Use json_schema.")
    if form.schema_ is None:
        raise Misused(f"{field}.schema", "The format holds no schema.")
    return Form("schema", form.schema_, field)


def _offered(bodies: Sequence[ToolBody] | None) -> tuple[Tool, ...]:
    found: dict[str, Tool] = {}
    for at, body in enumerate(bodies or ()):
        if body.type not in (None, "custom"):
            raise Unsupported(f"tools.{at}.type", f"A tool of type {body.type!r:.80} is not supported.", "Use custom.")
        if body.input_schema is None:
            raise Misused(f"tools.{at}.input_schema", f"The tool {body.name!r} has no input_schema.")
        if body.name in found:
            raise Misused(f"tools.{at}.name", f"Two tools are called {body.name!r}.")
        found[body.name] = Tool(body.name, body.description or "", body.input_schema)
    return tuple(found.values())


def _chosen(choice: Choice | None, tools: Sequence[Tool]) -> ToolChoice:
    if choice is None:
        return ToolChoice()
    parallel = not choice.disable_parallel_tool_use
    match choice.type:
        case "auto" | "none":
            return ToolChoice(choice.type, parallel=parallel)
        case "any" if tools:
            return ToolChoice("required", parallel=parallel)
        case "tool" if choice.name in [tool.name for tool in tools]:
            return ToolChoice("required", choice.name, parallel)
    wanted = "a call" if choice.type == "any" else f"the tool {choice.name!r:.200}"
    raise Misused("tool_choice", f"tool_choice asks for {wanted}, which is not among the tools.")


def _plainly(message: Message, path: str) -> list[dict[str, Any]]:
    """One message as several: what tools gave are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    told: list[dict[str, Any]] = []
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []

    def end() -> None:
        if texts:
            told.append({"role": message.role, "content": "\n".join(texts)})
            texts.clear()

    for at, block in enumerate(message.content):
        place = f"{path}.content.{at}"
        match block.type, message.role:
            case "text", _:
                texts.append(_needed(block.text, f"{place}.text"))
            case "thinking", "assistant":
                thoughts.append(_needed(block.thinking, f"{place}.thinking"))
            case "redacted_thinking", "assistant":
                pass
            case "tool_use", "assistant":
                name = _needed(block.name, f"{place}.name")
                function = {"name": name, "arguments": block.input or {}}
                calls.append({"id": _needed(block.id, f"{place}.id"), "type": "function", "function": function})
            case "tool_result", "user":
                end()
                result = _text(block.content or "", place)
                result = json.dumps({"error": result}, ensure_ascii=False) if block.is_error else result
                id = _needed(block.tool_use_id, f"{place}.tool_use_id")
                told.append({"role": "tool", "tool_call_id": id, "content": result})
            case _:
                found = f"A block of type {block.type!r:.80} is not supported in a message of {message.role}."
                raise Unsupported(f"{place}.type", found, "The model reads text.")
    if message.role != "assistant":
        end()
        return told
    more: dict[str, Any] = {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
    more |= {"tool_calls": calls} if calls else {}
    return [{"role": "assistant", "content": "\n".join(texts), **more}]


def _text(content: str | Sequence[Block], path: str) -> str:
    if isinstance(content, str):
        return content
    for at, block in enumerate(content):
        if block.type != "text":
            found = f"A block of type {block.type!r:.80} is not supported here."
            raise Unsupported(f"{path}.{at}.type", found, "The model reads text.")
    return "\n".join(_needed(block.text, f"{path}.{at}.text") for at, block in enumerate(content))


def _needed(value: str | None, place: str) -> str:
    if value is None:
        raise Misused(place, f"{place} is missing.")
    return value
