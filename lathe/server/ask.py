"""What every wire turns a client's body into, and what comes back for it; knows no wire, no engine and no torch.

A wire (OpenAI's, Anthropic's, LitGPT's, Ollama's) reads its body into an `Ask`, and writes the `Event`s that the desk
gives for it into its own frames. Whatever is wrong with an Ask is raised before its first event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Reason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask to be called. parameters: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolChoice:
    """auto: the model decides. none: no call. required: at least one call. name: this one. parallel: more than one."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True


@dataclass(frozen=True)
class Form:
    """What the answer's text must be. json: any JSON object. schema, regex, lark: as `source` says.

    field: the client's word for it, where it is refused.
    """

    kind: Literal["json", "schema", "regex", "lark"]
    source: str | Mapping[str, Any] = ""
    field: str = "response_format"


@dataclass(frozen=True)
class Ask:
    """One request for answers.

    model: the name of a model or adapter; None for the one that is served.
    prompt: messages, rendered through the chat template; or a text or token ids, continued as they are.
    wishes: fields of `engine.Sampling`, those that the client named; the checkpoint's generation_config.json says the
        rest. `logprobs` is among them.
    stop: strings that end the answer and are not part of it. stop_tokens: ids that do, too. ignore_eos: the model's own
        do not.
    keep_stop: a stop string stays part of the answer. keep_special: special tokens are written, too.
    n: how many answers, from seeds that follow one another.
    form: what the text must be; tools and choice: which calls it may or must hold.
    think: whether the model is to reason first, where its template can say so; None as the template does by itself.
    effort: how much, as "low" or "high": a variable of the template, and where it reads none, a share of the answer.
    thought: how many tokens it may reason for at most.
    words: further variables of the template. continues: the last message is begun, and goes on.
    opens: whether the template's opening of the assistant's turn is added.
    room: how many tokens the prompt and an answer may be together; None for as many as the context holds.
    salt: requests share cached prefixes only with those of the same salt.
    priority: lower goes first.
    """

    prompt: Sequence[Mapping[str, Any]] | str | Sequence[int]
    model: str | None = None
    wishes: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    keep_stop: bool = False
    keep_special: bool = False
    n: int = 1
    form: Form | None = None
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = ToolChoice()
    think: bool | None = None
    effort: str | None = None
    thought: int | None = None
    words: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    opens: bool = True
    room: int | None = None
    salt: str = ""
    priority: int = 0


@dataclass(frozen=True)
class Word:
    """A generated token: its id, the bytes it writes, its log-probability and the likeliest with theirs."""

    id: int
    text: bytes
    logprob: float | None = None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Begun:
    """The prompt was read. cached: how many of its tokens had been read for another request before. tokens: its ids."""

    prompt: int
    cached: int = 0
    tokens: Sequence[int] = ()


@dataclass(frozen=True)
class Reading:
    """A long prompt is being read: `done` of `total` tokens so far."""

    done: int
    total: int


@dataclass(frozen=True)
class Said:
    """More text of one answer, of whole characters and never empty, with the tokens that it came of."""

    index: int
    text: str
    kind: Literal["content", "reasoning"] = "content"
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Called:
    """More of one tool call: the first of each has its id and name, the others more of its arguments (JSON)."""

    index: int
    call: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Ended:
    """One answer is whole. stop: the string or token id that ended it. tokens: how many were generated.

    reasoning: how many of them were reasoning. seconds: to its first token, and from there to its last.
    """

    index: int
    reason: Reason
    tokens: int
    stop: str | int | None = None
    reasoning: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)


Event = Begun | Reading | Said | Called | Ended
