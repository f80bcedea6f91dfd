"""The bodies of Ollama's chat and generate, checked, become Asks; what would change an answer in vain is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lathe.server.ask import Ask, Form, Tool
from lathe.server.desk import Named
from lathe.server.refusals import Unsupported
from lathe.server.wires.fields import MOST_STOPS, MOST_TOP, Finite
from lathe.server.wires.messages import MOST_MESSAGES, MOST_TOOLS, ToolBody, offered

# Of options: where and how a model runs, which is decided when it is served, and changes no answer.
PLACE = frozenset(
    "num_keep num_batch num_gpu main_gpu num_thread numa low_vram vocab_only use_mmap use_mlock f16_kv logits_all"
    " penalize_newline draft_num_predict".split()
)
# What Lathe has no such thing for, with the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "mirostat_tau": (5,),
    "mirostat_eta": (0.1,),
}
Think = bool | Literal["low", "medium", "high", "max"]


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class Options(Loose):
    num_predict: int | None = Field(None, ge=-2, lt=2**31)
    num_ctx: int | None = Field(None, ge=0, lt=2**31)
    temperature: Finite | None = Field(None, ge=0)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    top_p: Finite | None = Field(None, ge=0, le=1)
    min_p: Finite | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    repeat_penalty: Finite | None = Field(None, gt=0)
    presence_penalty: Finite | None = Field(None, ge=-2, le=2)
    frequency_penalty: Finite | None = Field(None, ge=-2, le=2)
    repeat_last_n: int | None = Field(None, ge=-1, lt=2**31)

    def wishes(self) -> dict[str, Any]:
        """Fields of `engine.Sampling`, those that are named. Raises Unsupported."""
        same = ("temperature", "top_p", "min_p", "seed")
        wishes = {name: getattr(self, name) for name in same}
        wishes["top_k"] = None if self.top_k is None else max(0, self.top_k)
        if self.num_predict is not None and self.num_predict > 0:
            wishes["max_new_tokens"] = self.num_predict
        if self.repeat_last_n != 0:  # 0: penalties look at nothing
            wishes["repetition_penalty"] = self.repeat_penalty
            wishes |= {name: getattr(self, name) for name in ("presence_penalty", "frequency_penalty")}
        if self.repeat_last_n not in (None, 0, -1) and self._penalized():
            found = "Penalties look at all of the prompt and the answer here, not at the last tokens alone."
            raise Unsupported("options.repeat_last_n", found, "It must be -1 or 0.")
        return {name: wish for name, wish in wishes.items() if wish is not None}

    def _penalized(self) -> bool:
        return self.repeat_penalty not in (None, 1) or bool(self.presence_penalty or self.frequency_penalty)

    def stops(self) -> tuple[str, ...]:
        return tuple(filter(None, [self.stop] if isinstance(self.stop, str) else self.stop or []))

    def unknown(self) -> list[str]:
        """The names of options that nobody knows. Raises Unsupported for one that cannot be done."""
        extra = {name: value for name, value in (self.model_extra or {}).items() if value is not None}
        for name, value in extra.items():
            if name in REFUSED and value not in REFUSED[name]:
                raise Unsupported(f"options.{name}", f"The option {name} is not supported.", fix="Leave it out.")
        return [f"options.{name}" for name in extra if name not in REFUSED and name not in PLACE]


class Body(Loose):
    """What chat and generate have in common."""

    model: str = Field(min_length=1, max_length=1024)
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: Think | None = None
    keep_alive: str | float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)

    def unknown(self) -> list[str]:
        """The names of fields and options that nobody knows. Raises Unsupported for one that cannot be done."""
        return [*(self.model_extra or ()), *(self.options or Options.model_validate({})).unknown()]

    def unloads(self) -> bool:
        """Whether it asks that the model is kept for no time."""
        return self.keep_alive in (0, "0", "0s", "0m")

    def common(self, name: str) -> dict[str, Any]:
        """The fields of an Ask that both have. name: the model's, here. Raises Unsupported."""
        options = self.options or Options.model_validate({})
        wishes = options.wishes()
        if self.logprobs or self.top_logprobs:
            wishes["logprobs"] = self.top_logprobs or 0
        return {
            "model": name,
            "wishes": wishes,
            "stop": options.stops(),
            "form": self._form(),
            "think": None if self.think is None else bool(self.think),
            "effort": self.think if isinstance(self.think, str) else None,
            "room": options.num_ctx or None,
        }

    def _form(self) -> Form | None:
        if isinstance(self.format, dict):
            return Form("schema", self.format)
        if self.format in (None, ""):
            return None
        if self.format == "json":
            return Form("json")
        raise Unsupported("format", f"The format {self.format!r:.80} is not supported.", 'It is "json" or a schema.')


class CalledFunction(Loose):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Call(Loose):
    id: str | None = None
    function: CalledFunction


class Message(Loose):
    """tool_name: whose result a message of role tool is."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def plainly(self) -> dict[str, Any]:
        """As templates read it. Raises Unsupported."""
        refuse_images(self.images)
        told: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.thinking:
            told |= {"reasoning_content": self.thinking, "reasoning": self.thinking}
        if self.tool_calls:
            told["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.model_dump(include={"name", "arguments"})}
                for call in self.tool_calls
            ]
        if self.tool_name:
            told["name"] = self.tool_name
        if self.tool_call_id:
            told["tool_call_id"] = self.tool_call_id
        return told


class ChatBody(Body):
    """Without messages it asks for nothing but that the model is loaded, or may be unloaded."""

    messages: list[Message] | None = Field(None, max_length=MOST_MESSAGES)
    tools: list[ToolBody] | None = Field(None, max_length=MOST_TOOLS)

    def ask(self, named: Named) -> Ask | None:
        """None where nothing is asked. Raises Unsupported, Misused."""
        if not self.messages:
            return None
        tools: Sequence[Tool] = offered(self.tools)
        return Ask([message.plainly() for message in self.messages], tools=tuple(tools), **self.common(named.name))


class GenerateBody(Body):
    """raw: the prompt is continued as it is. Without a prompt it asks for nothing but that the model is loaded."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None

    def ask(self, named: Named) -> Ask | None:
        """None where nothing is asked. Raises Unsupported."""
        refuse_images(self.images)
        for field in ("suffix", "template", "context"):
            if getattr(self, field):
                raise Unsupported(field, f"{field} is not supported.", fix="Leave it out.")
        if not self.prompt:
            return None
        if self.raw or not named.served.tokenizer.has_template:
            system = None if self.raw else self.system
            return Ask("\n\n".join(filter(None, (system, self.prompt))), **self.common(named.name))
        messages = [{"role": "system", "content": self.system}] if self.system else []
        return Ask([*messages, {"role": "user", "content": self.prompt}], **self.common(named.name))


class ShowBody(Loose):
    """name: what `model` was called before."""

    model: str | None = Field(None, max_length=1024)
    name: str | None = Field(None, max_length=1024)
    verbose: bool | None = None


def refuse_images(images: Sequence[Any] | None) -> None:
    if images:
        raise Unsupported("images", "The model reads text, and images are given.", fix="Leave them out.")
