"""A conversation -> for each answer the text it is asked with and the text that the model is to write; knows no ids.

Both are written by the model's own chat template. For the answer messages[at]

    asked   the template's text of the messages before it, with the words that begin the assistant's turn
    whole   the template's text of the messages up to and with it, which goes on from `asked`
    answer  what `whole` has beyond `asked`, up to and with the token that ends the turn

No `{% generation %}` marks are needed, nor trusted: they differ in what they take in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from lathe.data.messages import Message
from lathe.data.samples import Chat
from lathe.errors import TokenizerError
from lathe.tokenizer import Tokenizer

PROBE, OTHER = "\ue000", "\ue001"  # two texts that no template and no conversation holds
THINKING = {"enable_thinking": True, "thinking": True, "open_thinking": True}  # templates' names for one switch
ASKED: list[Message] = [{"role": "user", "content": "a"}]


@dataclass(frozen=True)
class Talk:
    """A conversation in a template's own form. thinks: whether there is reasoning in it."""

    messages: list[Message]
    tools: Sequence[Message] = ()
    thinks: bool = False


@dataclass(frozen=True)
class Part:
    """closed: whether the answer ends with a token that ends the turn; else the template has none."""

    asked: str
    answer: str
    closed: bool


class Writer:
    """Writes conversations by a tokenizer's chat template.

    Args:
        now: what the template's clock shows.
        variables: further names for the template, as enable_thinking.
    """

    def __init__(self, tokenizer: Tokenizer, now: datetime, variables: Mapping[str, Any]) -> None:
        self.tokenizer, self.now, self.variables = tokenizer, now, variables
        self.marks = re.compile("|".join(map(re.escape, sorted(tokenizer.marks, key=len, reverse=True))) or "$^")
        self._closings: set[str] = set()

    def talk(self, chat: Chat) -> Talk:
        """A conversation in the form that the template has words for. Raises TokenizerError where there is none."""
        written: list[Message] = []
        for message in chat.messages:
            message = dict(message)
            if "input" in message and self.tokenizer.style is None:
                message["content"] += "\n" + message.pop("input")
            if "reasoning_content" in message and not self._reasons:
                thought = message.pop("reasoning_content").strip("\n")
                message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
            if "tool_calls" in message:
                if not self._arguments:
                    raise TokenizerError("The chat template has no words for tool calls.", fix="Leave such rows out.")
                message["tool_calls"] = [self._arguments(call) for call in message["tool_calls"]]
            written.append(message)
        return Talk(written, chat.tools, any(map(reasoning, written)))

    def text(self, talk: Talk, end: int | None = None, asking: bool = False) -> str:
        """The conversation up to messages[end], with the words that begin the next answer if `asking` for it."""
        given = {**(THINKING if talk.thinks else {}), **self.variables}
        tools = talk.tools or None
        return self.tokenizer.render(
            talk.messages[:end], tools=tools, add_generation_prompt=asking, now=self.now, **given
        )

    def part(self, talk: Talk, at: int) -> Part:
        """The answer messages[at]. Raises TokenizerError where the template refuses it, or leaves a part of it out."""
        message, probed = talk.messages[at], ""
        asked, whole = self.text(talk, at, asking=True), self.text(talk, at + 1)
        if whole.startswith(asked):
            answer = whole[len(asked) :]
        else:
            probed = self._probed(talk, at)
            answer = self._rewritten(message, asked, whole[_same(whole, probed) :])
        if reasoning(message) not in answer:
            raise TokenizerError("The chat template leaves reasoning out.", fix="Leave it out of the data, too.")
        closing = max((text for text in self._closings if answer.endswith(text)), key=len, default="")
        if not closing:
            probed = probed or self._probed(talk, at)
            closing = answer[len(answer) - _same(answer[::-1], probed[::-1]) :]
            self._closings |= {closing} if closing else set()
        return Part(asked, *self._closed(answer, len(answer) - len(closing)))

    def _probed(self, talk: Talk, at: int) -> str:
        """The text up to messages[at], with another answer in its place."""
        probe = {"role": "assistant", "content": PROBE}
        return self.text(Talk([*talk.messages[:at], probe], talk.tools, talk.thinks))

    def _rewritten(self, message: Message, asked: str, answer: str) -> str:
        """An answer by a template that does not go on from what it asks with.

        The question's end is taken as it will be asked. Where it has begun to think, that ends before the answer.
        """
        begun = asked.rstrip()
        if begun.endswith("<think>") and "</think>" not in answer:
            return f"{reasoning(message)}\n</think>\n\n{answer}"
        if begun.endswith("</think>") and "</think>" in answer:
            found = "The chat template writes an answer's reasoning where it asks for an answer without."
            raise TokenizerError(found, fix="Leave the reasoning out, or use another template with --prompt-style.")
        return answer

    def _closed(self, answer: str, at: int) -> tuple[str, bool]:
        """An answer up to and with the token that ends the turn; up to `at`, where the closing begins, if none does."""
        marks = [mark for mark in self.marks.finditer(answer) if mark.end() > at]
        ending = [mark for mark in marks if self.tokenizer.marks[mark[0]] or self._ends_turn(mark[0])]
        chosen = (ending or marks)[:1]
        return (answer[: chosen[0].end()], True) if chosen else (answer[:at], False)

    def _ends_turn(self, token: str) -> bool:
        return self.tokenizer.id(token) in self.tokenizer.eos_ids

    # ------------------------------------------------------------ what the template has words for

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template writes which tools there are."""
        tool = {"type": "function", "function": {"name": "f", "description": OTHER, "parameters": {"type": "object"}}}
        return self._writes(Talk(ASKED, [tool]))

    @cached_property
    def _reasons(self) -> bool:
        """Whether the template writes an answer's `reasoning_content`."""
        answer = {"role": "assistant", "content": PROBE, "reasoning_content": OTHER}
        return self._writes(Talk([*ASKED, answer], thinks=True))

    @cached_property
    def _arguments(self) -> Callable[[Message], Message] | None:
        """Makes the arguments of a call what the template takes: an object, else its JSON; None where it takes none."""
        call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"a": OTHER}}}
        for form in (dict, _spelt):
            if self._writes(Talk([*ASKED, {"role": "assistant", "content": "", "tool_calls": [form(call)]}])):
                return form
        return None

    def _writes(self, talk: Talk) -> bool:
        """Whether the template writes what `OTHER` stands for in a conversation."""
        try:
            return OTHER in self.text(talk)
        except TokenizerError:
            return False


def reasoning(message: Message) -> str:
    """What was thought before an answer, wherever it stands in the message."""
    inline, thought, _ = message["content"].partition("</think>")
    inside = inline.rpartition("<think>")[2] if thought and message["role"] == "assistant" else ""
    return str(message.get("reasoning_content") or inside).strip()


def _spelt(call: Message) -> Message:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _same(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
