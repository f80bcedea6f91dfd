"""Messages, tools and forms in OpenAI's shape become those of an Ask: plain texts, arguments as objects.

Knows no template. Nothing is ever fetched: a part that is no text is refused by its type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lathe.server.ask import Form, Tool, ToolChoice
from lathe.server.refusals import Misused, Unsupported

MOST_MESSAGES = 4096
MOST_TOOLS = 128
RESERVED = frozenset("messages tools tool_choice add_generation_prompt continue_final_message now tokenize".split())
# Templates for which the model's own words begin with them get these from the tokenizer alone.
RESERVED_ENDS = ("_token", "_tokens", "_template")


class Part(BaseModel):
    """A part of a message's content. Only texts ("text", and "refusal", a text by another name) are supported."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None
    refusal: str | None = None


class Called(BaseModel):
    """name, and arguments: JSON, as the model wrote it; or the object itself."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    arguments: str | dict[str, Any] = "{}"


class Call(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    id: str | None = None
    type: str | None = "function"
    function: Called


class Message(BaseModel):
    """One message. What else it holds goes to the template as it is."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class Function(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str = "function"
    function: Function | None = None


class Named(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: str


class NamedTool(BaseModel):
    """The one function that is to be called."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    function: Named | None = None


class Schema(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, populate_by_name=True)

    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Conversation(BaseModel):
    """What decides how messages are rendered."""

    model_config = ConfigDict(extra="allow", strict=True)

    tools: list[ToolBody] | None = Field(None, max_length=MOST_TOOLS)
    reasoning_effort: Effort | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def rendering(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The fields of an Ask that say the same. Raises Misused, Unsupported."""
        continues = self.continue_final_message is True
        if continues and self.add_generation_prompt:
            found = "add_generation_prompt and continue_final_message are both true."
            raise Misused("continue_final_message", found, "A message is begun, or goes on.")
        if continues and messages[-1].role != "assistant":
            raise Misused("continue_final_message", "The last message is not the assistant's, and cannot go on.")
        return {
            "prompt": plainly(messages),
            "tools": offered(self.tools),
            "think": None if self.reasoning_effort is None else self.reasoning_effort != "none",
            "effort": None if self.reasoning_effort == "none" else self.reasoning_effort,
            "words": variables(self.chat_template_kwargs),
            "continues": continues,
            "opens": self.add_generation_prompt is not False and not continues,
        }


class Format(BaseModel):
    """json_object: `schema` narrows it down, as llama.cpp has it."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    json_schema: Schema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


def plainly(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates read them. Raises Misused and Unsupported."""
    return [_plainly(message, f"messages.{at}") for at, message in enumerate(messages)]


def _plainly(message: Message, path: str) -> dict[str, Any]:
    told = message.model_dump(exclude={"content", "tool_calls", "reasoning", "reasoning_content"}, exclude_none=True)
    told["role"] = "system" if message.role == "developer" else message.role  # templates know it by its older name
    told["content"] = _text(message, path)
    if thought := message.reasoning_content or message.reasoning:
        told["reasoning_content"] = told["reasoning"] = thought
    if message.tool_calls:
        told["tool_calls"] = [_call(call, f"{path}.tool_calls.{at}") for at, call in enumerate(message.tool_calls)]
    return told


def _text(message: Message, path: str) -> str:
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise Misused(f"{path}.content", f"A message of {message.role} has no content.")
    if isinstance(message.content, str):
        return message.content
    texts = []
    for at, part in enumerate(message.content):
        text = part.text if part.type == "text" else part.refusal if part.type == "refusal" else None
        if part.type not in ("text", "refusal"):
            found = f"Content of type {part.type!r:.80} is not supported."
            raise Unsupported(f"{path}.content.{at}.type", found, "The model reads text.")
        if text is None:
            raise Misused(f"{path}.content.{at}.{part.type}", f"A part of type {part.type} has no {part.type}.")
        texts.append(text)
    return "\n".join(texts)


def _call(call: Call, path: str) -> dict[str, Any]:
    if call.type not in ("function", None):
        raise Unsupported(
            f"{path}.type", f"A call of type {call.type!r:.80} is not supported.", 'It must be "function".'
        )
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise Misused(f"{path}.function.arguments", "The arguments of a call are not a JSON object.")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def offered(bodies: Sequence[ToolBody] | None) -> tuple[Tool, ...]:
    """Raises Unsupported for a tool that is no function, Misused for two of one name."""
    found: dict[str, Tool] = {}
    for at, body in enumerate(bodies or ()):
        if body.type != "function" or body.function is None:
            raise Unsupported(
                f"tools.{at}.type", f"A tool of type {body.type!r:.80} is not supported.", "Use functions."
            )
        function = body.function
        if function.name in found:
            raise Misused(f"tools.{at}.function.name", f"Two tools are called {function.name!r}.")
        found[function.name] = Tool(function.name, function.description or "", function.parameters or {})
    return tuple(found.values())


def chosen(wanted: str | NamedTool | None, parallel: bool | None, there: Sequence[Tool]) -> ToolChoice:
    """Raises Misused where no tool is there to be chosen, Unsupported for other ways to choose."""
    at_once = parallel is not False
    if wanted in (None, "auto", "none"):
        return ToolChoice("none" if wanted == "none" else "auto", parallel=at_once)
    if not there:
        raise Misused("tool_choice", "tool_choice asks for a call, and there are no tools.", fix="Give tools.")
    if wanted == "required":
        return ToolChoice("required", parallel=at_once)
    if isinstance(wanted, str):
        raise Misused("tool_choice", "tool_choice is none that is known.", "Known are auto, none, required and a name.")
    assert wanted is not None
    if wanted.type != "function" or wanted.function is None:
        raise Unsupported("tool_choice.type", f"tool_choice of type {wanted.type!r:.80} is not supported.")
    if wanted.function.name not in (tool.name for tool in there):
        raise Misused("tool_choice.function.name", f"There is no tool {wanted.function.name!r:.200}.")
    return ToolChoice("required", wanted.function.name, at_once)


def formed(wanted: Format | None) -> Form | None:
    """response_format as an Ask's form. Raises Misused, Unsupported."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Form("json") if wanted.schema_ is None else Form("schema", wanted.schema_)
    if wanted.type == "json_schema":
        schema = wanted.json_schema.schema_ if wanted.json_schema else wanted.schema_
        if schema is None:
            raise Misused("response_format.json_schema", "response_format holds no schema.")
        return Form("schema", schema)
    found = f"response_format of type {wanted.type!r:.80} is not supported."
    raise Unsupported("response_format.type", found, "Known are text, json_object and json_schema.")


def variables(told: Mapping[str, Any] | None) -> dict[str, Any]:
    """Further variables of the template. Raises Misused for those that it has from elsewhere."""
    for name in told or {}:
        if name in RESERVED or name.endswith(RESERVED_ENDS):
            raise Misused("chat_template_kwargs", f"chat_template_kwargs must not hold {name!r:.80}.")
    return dict(told or {})
