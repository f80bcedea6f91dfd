"""OpenAI's request for a response becomes an Ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from lathe.server.ask import Ask, Form, Tool, ToolChoice
from lathe.server.refusals import Misused, Unsupported
from lathe.server.wires.fields import COSMETIC, MOST_TOP, REFUSED, Body, Finite
from lathe.server.wires.messages import MOST_MESSAGES, MOST_TOOLS, Effort, variables
from lathe.server.wires.responses_items import Item, messages

MORE = "reasoning.encrypted_content"  # clients ask for it by habit; the thought itself is there to be sent back


class ToolBody(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(BaseModel):
    """The one function that is to be called, or those that may be."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=MOST_TOOLS)


class Format(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextBody(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    format: Format | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesBody(Body):
    """The body of a request for a response."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **REFUSED,
        "background": (False,),
        "context_management": (),
        "conversation": (),
        "prompt": (),
        "truncation": ("disabled",),
    }
    cosmetic: ClassVar[frozenset[str]] = COSMETIC | {"max_tool_calls", "stream_options"}  # of tools that run at OpenAI
    instead: ClassVar[Mapping[str, str]] = {"conversation": "Name the response before by previous_response_id."}

    input: str | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES)]
    previous_response_id: str | None = Field(None, max_length=128)
    store: bool | None = None
    instructions: str | None = None
    tools: list[ToolBody] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextBody | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = Field(None, max_length=32)
    metadata: dict[str, Any] | None = Field(None, max_length=16)
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: Finite | None = Field(None, ge=0)
    top_p: Finite | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: Finite | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    chat_template_kwargs: dict[str, Any] | None = None
    stream: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None

    @property
    def logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    def unknown(self, strict: bool) -> list[str]:
        asked = [f"include.{MORE}"] if MORE in (self.include or ()) else []
        return (
            super().unknown(strict)
            + asked
            + (["reasoning.summary"] if self.reasoning and self.reasoning.summary else [])
        )

    def items(self, find: Callable[[str], dict[str, Any] | None]) -> list[Item]:
        """What is said now. find: an item that is kept, by its id, which may stand in its place. Raises Misused."""
        if isinstance(self.input, str):
            return [Item(role="user", content=self.input)]
        return [_itself(item, at, find) for at, item in enumerate(self.input)]

    def ask(self, items: Sequence[Item], before: Sequence[Item] = ()) -> Ask:
        """items: what is said now. before: what an earlier response was told and said. Raises Misused, Unsupported."""
        told = [{"role": "system", "content": self.instructions}] if self.instructions else []
        named = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "min_p", "seed")}
        named |= {
            "max_new_tokens": self.max_output_tokens,
            "logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }
        effort = self.reasoning.effort if self.reasoning else None
        choice, tools = _chosen(self.tool_choice, self.parallel_tool_calls is not False, _offered(self.tools))
        return Ask(
            prompt=messages(items, messages(before, told)),
            model=self.model,
            wishes={name: value for name, value in named.items() if value is not None},
            form=_formed(self.text.format) if self.text and self.text.format else None,
            tools=tools,
            choice=choice,
            think=None if effort is None else effort != "none",
            effort=None if effort == "none" else effort,
            words=variables(self.chat_template_kwargs),
        )


def _itself(item: Item, at: int, find: Callable[[str], dict[str, Any] | None]) -> Item:
    """The item that a reference is to; any other is itself."""
    named = item.id or ""
    if item.type != "item_reference" and (item.type or item.role or not named):
        return item
    kept = find(named)
    if kept is None:
        raise Misused(f"input.{at}.id", f"There is no item {named!r:.80} here.", fix="Send the item itself.")
    return Item.model_validate(kept)


def _offered(bodies: Sequence[ToolBody] | None) -> tuple[Tool, ...]:
    found: dict[str, Tool] = {}
    for at, body in enumerate(bodies or ()):
        if body.type != "function":
            raise Unsupported(
                f"tools.{at}.type", f"A tool of type {body.type!r:.80} is not supported.", "Use functions."
            )
        if body.name is None or body.name in found:
            raise Misused(f"tools.{at}.name", "A tool has no name, or that of another.")
        found[body.name] = Tool(body.name, body.description or "", body.parameters or {})
    return tuple(found.values())


def _chosen(
    choice: str | Choice | None, parallel: bool, tools: tuple[Tool, ...]
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """The choice, and the tools that it leaves."""
    match choice:
        case None | "auto" | "none":
            return ToolChoice("none" if choice == "none" else "auto", parallel=parallel), tools
        case "required" if tools:
            return ToolChoice("required", parallel=parallel), tools
        case Choice(type="function") if choice.name in [tool.name for tool in tools]:
            return ToolChoice("required", choice.name, parallel), tools
        case Choice(type="allowed_tools"):
            allowed = {tool.get("name") for tool in choice.tools or ()}
            left = tuple(tool for tool in tools if tool.name in allowed)
            if left:
                return ToolChoice(choice.mode or "auto", parallel=parallel), left
        case Choice(type=kind) if kind != "function":
            raise Unsupported("tool_choice.type", f"tool_choice of type {kind!r:.80} is not supported.")
    raise Misused("tool_choice", "tool_choice asks for a call to a tool that is not there.", fix="Give it in tools.")


def _formed(form: Format) -> Form | None:
    match form.type:
        case "text":
            return None
        case "json_object":
            return Form("json", field="text.format")
        case "json_schema":
            if form.schema_ is None:
                raise Misused("text.format.schema", "text.format holds no schema.")
            return Form("schema", form.schema_, "text.format")
    found = f"text.format of type {form.type!r:.80} is not supported."
    raise Unsupported("text.format.type", found, "Known are text, json_object and json_schema.")
