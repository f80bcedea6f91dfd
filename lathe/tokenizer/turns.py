"""How a model writes its turns: where its reasoning begins and ends, and how it calls a tool. Pure data.

`turns_learning` finds it out from a chat template; `turns_parsing` reads by it, and a server's grammar writes by it.
Marks are texts; those that are special tokens must be kept when ids become text (`Turns.kept`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

ID, INDEX = "\ue000", "\ue001"  # where a call's id and its place among the calls stand in a mark

Form = Literal["json", "named", "tagged", "loose", "python", "harmony"]


@dataclass(frozen=True)
class Reasoning:
    """begin and end: the marks around it, without the space that surrounds them; no begin: it is always open.

    then: what a template writes between the end and the answer, if it is more than space.
    """

    begin: str
    end: str
    then: str = ""


@dataclass(frozen=True)
class Arguments:
    """Arguments between tags. begin: before a key. values: between a key and a value of each JSON type. end: after."""

    begin: str
    values: Mapping[str, str]
    end: str


@dataclass(frozen=True)
class Calls:
    """How tool calls are written: opening, then before NAME between ARGUMENTS after for each, with separator between
    them, then closing; exactly as the template does.

    form: what the arguments are. json: the whole call is a JSON object. named: a JSON object after a name. tagged:
        `tags` around each. loose: objects with bare keys, and `quote` around strings. python: keywords in parentheses.
        harmony: messages of a channel of their own (GPT-OSS).
    name, arguments: the keys of a JSON call; no name: the object's only key is the name.
    several: whether one turn may hold more than one call.
    told: whether the template tells the model of its tools; if not, somebody else must. shown: whether it writes
        earlier calls and their results.
    """

    form: Form
    opening: str = ""
    before: str = ""
    between: str = ""
    after: str = ""
    separator: str = ""
    closing: str = ""
    name: str | None = "name"
    arguments: str = "arguments"
    tags: Arguments | None = None
    quote: str = ""
    several: bool = True
    told: bool = True
    shown: bool = True

    def marks(self) -> str:
        """Everything that is written around names and arguments, in one text."""
        tags = (self.tags.begin, self.tags.end, *self.tags.values.values()) if self.tags else ()
        literal = (self.opening, self.before, self.between, self.after, self.separator, self.closing, self.quote, *tags)
        return "\n".join(literal)


HARMONY = "<|start|><|channel|><|message|><|constrain|><|end|><|call|><|return|>"  # openai.github.io/harmony


@dataclass(frozen=True)
class History:
    """What a template asks of the messages that it is given.

    thoughts: the key of a message in which it reads earlier reasoning, if it reads any.
    objects: the arguments of a call are an object, not JSON text.
    blank: a message of calls has an empty text, not none.
    ids: what the ids of calls must be; "short" is nine letters and digits, "place" is functions.NAME:0.
    system: it takes a system message.
    """

    thoughts: str | None = None
    objects: bool = True
    blank: bool = False
    ids: Literal["any", "short", "place"] = "any"
    system: bool = True


@dataclass(frozen=True)
class Turns:
    """reasoning, calls: how they are written; None: no way was found (of calls), or the model has none (of reasoning).

    switch: the template's variable that turns reasoning on and off.
    opening: what the template writes before an answer, as far as it is always the same.
    """

    reasoning: Reasoning | None = None
    calls: Calls | None = None
    switch: str | None = None
    history: History = History()
    opening: str = ""

    def opened(self, prompt: str) -> bool:
        """Whether a rendered prompt ends within reasoning, so that the answer goes on with it."""
        if self.reasoning is None:
            return False
        answer = prompt.rpartition(self.opening)[2] if self.opening else prompt
        thought = answer.rpartition(self.reasoning.begin)[2] if self.reasoning.begin else answer
        begun = self.reasoning.begin in answer and (bool(self.opening) or not thought.strip())
        return begun and self.reasoning.end not in thought

    def closed(self, prompt: str) -> bool:
        """Whether a rendered prompt ends behind reasoning, so that the answer holds none."""
        if self.reasoning is None:
            return True
        answer = prompt.rpartition(self.opening)[2] if self.opening else prompt
        behind = answer.rpartition(self.reasoning.end)[2].strip().removeprefix(self.reasoning.then)
        return self.reasoning.end in answer and (bool(self.opening) or not behind)

    def kept(self, special: Collection[str], *, tools: bool) -> frozenset[str]:
        """Those special tokens that are marks, or parts of them: text without them would not show where a turn changes.

        tools: whether calls are looked for.
        """
        texts = [self.reasoning.begin, self.reasoning.end, self.reasoning.then] if self.reasoning else []
        if self.calls and self.calls.form == "harmony":
            texts += [HARMONY]
        elif self.calls and tools:
            texts += [self.calls.marks(), PYTHON_TAG]
        return frozenset(token for token in special if any(token in text for text in texts))


PYTHON_TAG = "<|python_tag|>"  # Llama 3's, before a call to a tool of its own
