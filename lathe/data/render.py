"""A sample -> token ids, and which of them a model is to learn; knows no row, no packing and no loss.

A conversation is written by the model's own chat template, and every answer is cut out of it in the place where the
model will write it: what comes before an answer is, id by id, what it will be asked with. For each answer

    asked   the template's text of the messages before it, with the words that begin the assistant's turn
    whole   the template's text of the messages up to and with it, which goes on from `asked`
    learned what `whole` has beyond `asked`, up to and with the token that ends the turn

Most templates never change what they wrote, so all answers of a conversation are learned in one sequence. Some do: they
leave out earlier reasoning, or end the last turn in another way. An answer that the whole conversation does not hold as
it will be written then becomes a sequence of its own. No `{% generation %}` marks are needed, nor trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lathe.data.formats import Chat, Completion, Judged, Preference, Sample, Text
from lathe.data.messages import Message
from lathe.errors import TokenizerError
from lathe.tokenizer import Tokenizer
from lathe.tokenizer.styles import PLAIN

LossOn = Literal["assistant", "last", "all"]
STYLE = "alpaca"  # how conversations are written for a model that has no chat template
NOW = datetime(2025, 1, 1)
PROBE, OTHER = "\ue000", "\ue001"  # two texts that no template and no conversation holds
THINKING = {"enable_thinking": True, "thinking": True, "open_thinking": True}  # templates' names for one switch


_ASKED: list[Message] = [{"role": "user", "content": "a"}]


@dataclass(frozen=True, eq=False)
class Example:
    """ids: (n,) int32. supervised: (n,) bool, True where the id is to be predicted from those before it."""

    ids: np.ndarray
    supervised: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


Group = tuple[Example, ...]  # what is packed together: one example, or one that is chosen and one that is rejected


class Renderer:
    """Samples -> examples, for one tokenizer.

    Args:
        tokenizer: the model's.
        loss_on: "assistant": every answer with the token that ends its turn; "last": only the last one; "all": every
            token of the text but the first.
        style: the name of a prompt style to use instead of the model's chat template; "none" for plain text. A model
            without a template writes conversations in the style `STYLE`, and prompt and completion as plain text.
        now: what a template's clock shows. It stands still, so that a run can be repeated and resumed on another day.
        variables: further names for the template, as enable_thinking.

    Attributes:
        tokenizer: the one to keep beside the model: its chat template is the one used here.

    Raises:
        UsageError: there is no style of that name.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        loss_on: LossOn = "assistant",
        style: str | None = None,
        now: datetime = NOW,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.loss_on = loss_on
        # Without a template of its own, a model goes on with texts as they are.
        self.plain = style in PLAIN or (style is None and not tokenizer.has_template)
        chosen = STYLE if style is None and not tokenizer.has_template else style
        self.tokenizer = tokenizer if chosen is None else tokenizer.styled(chosen)
        self.now, self.variables = now, dict(variables or {})
        self._mark = re.compile("|".join(map(re.escape, sorted(self.tokenizer.marks, key=len, reverse=True))) or "$^")
        self._closings: set[str] = set()

    def groups(self, sample: Sample) -> list[Group]:
        """What a sample is learned as: one example, or several where the template rewrites what it wrote; two that
        belong together for a preference; nothing for an answer that is not wanted.

        Raises:
            TokenizerError: the template refuses the conversation, or has no words for a part of it.
        """
        match sample:
            case Chat():
                return [(example,) for example in self._chat(sample)]
            case Completion():
                return [(self._completion(sample),)]
            case Text():
                return [(self._text(sample.text),)]
            case Preference():
                return [(self._answer(sample.chosen), self._answer(sample.rejected))]
            case Judged():
                return self.groups(sample.answer) if sample.wanted else []

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's, and that of the template, which a base model's files often lack."""
        if not self.tokenizer.has_template:
            return self.tokenizer.eos_ids
        talk = _Talk([*_ASKED, {"role": "assistant", "content": "b"}], (), False)
        return tuple(dict.fromkeys((*self.tokenizer.eos_ids, *self._turn(talk, 1).answer[-1:])))

    # ------------------------------------------------------------ texts

    def _text(self, text: str) -> Example:
        ids = self._ended(self.tokenizer.encode(text))
        begun = ids[:1] == [self.tokenizer.bos_id]
        return _example([], ids) if not begun else _example(ids[:1], ids[1:])

    def _completion(self, sample: Completion) -> Example:
        if not self.plain:
            asked = {"role": "user", "content": sample.prompt}
            [example] = self._chat(Chat((asked, {"role": "assistant", "content": sample.completion})))
            return example
        asked_ids, whole = (
            self.tokenizer.encode(sample.prompt),
            self.tokenizer.encode(sample.prompt + sample.completion),
        )
        answer = self._after(asked_ids, whole, sample.completion)
        return self._learned(_Turn(asked_ids, self._ended(answer)))

    def _ended(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]

    def _after(self, asked: list[int], whole: list[int], text: str) -> list[int]:
        """The ids of `text` after those of `asked`: of both together, unless a token would lie across the place."""
        if whole[: len(asked)] == asked:
            return whole[len(asked) :]
        line = self.tokenizer.encode("\n", special=False)
        after_line = self.tokenizer.encode("\n" + text, special=False)
        for ids in (self.tokenizer.encode(text, special=False), after_line[len(line) :]):
            stream = self.tokenizer.stream(asked, skip_special=False)
            if "".join([stream.push(number) for number in ids]) + stream.flush() == text:
                return ids
        return self.tokenizer.encode(text, special=False)

    # ------------------------------------------------------------ conversations

    def _answer(self, sample: Chat | Completion) -> Example:
        """One of two answers: the last, where there are several after what both share."""
        return self._completion(sample) if isinstance(sample, Completion) else self._chat(sample)[-1]

    def _chat(self, chat: Chat) -> list[Example]:
        talk = self._talk(chat)
        messages = talk.messages
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant" and at]
        learned = [at for at in answers if at not in chat.muted]
        if self.loss_on != "assistant":
            learned = learned[-1:]
        if not learned:  # nothing to learn, which whoever checks the data will say
            text = self._render(talk, messages, asking=False)
            return [_example(self.tokenizer.encode(text, special=False), [])]
        found: list[_Turn] = []
        marked: list[Example] = []
        for at in reversed(learned):
            turn = self._turn(talk, at)
            ids = turn.asked + turn.answer
            host = next((i for i, other in enumerate(found) if (other.asked + other.answer)[: len(ids)] == ids), None)
            if host is None:
                found.append(turn)
                marked.append(self._learned(turn))
            else:
                marked[host].supervised[len(turn.asked) : len(ids)] = True
        return marked[::-1]

    def _learned(self, turn: _Turn) -> Example:
        if self.loss_on == "all":
            return _example(turn.asked[:1], turn.asked[1:] + turn.answer)
        return _example(turn.asked, turn.answer)

    def _turn(self, talk: _Talk, at: int) -> _Turn:
        """The answer messages[at], as ids after those that it will be asked with."""
        message = talk.messages[at]
        asked = self._render(talk, talk.messages[:at], asking=True)
        whole = self._render(talk, talk.messages[: at + 1], asking=False)
        probed: str | None = None
        if whole.startswith(asked):
            answer = whole[len(asked) :]
        else:
            probed = self._probed(talk, at)
            answer = self._rewritten(message, asked, whole[_same(whole, probed) :])
        if _reasoning(message) not in answer:
            raise TokenizerError("The chat template leaves reasoning out.", fix="Leave it out of the data, too.")
        closing = next((text for text in self._closings if answer.endswith(text)), None)
        if closing is None:
            probed = probed or self._probed(talk, at)
            closing = answer[len(answer) - _same(answer[::-1], probed[::-1]) :]
            self._closings |= {closing} if closing else set()
        text, closed = self._closed(answer, len(answer) - len(closing))
        asked_ids = self.tokenizer.encode(asked, special=False)
        ids = self._after(asked_ids, self.tokenizer.encode(asked + text, special=False), text)
        return _Turn(asked_ids, ids if closed else self._ended(ids))

    def _probed(self, talk: _Talk, at: int) -> str:
        """The text up to messages[at], with another answer in its place."""
        return self._render(talk, [*talk.messages[:at], {"role": "assistant", "content": PROBE}], asking=False)

    def _rewritten(self, message: Message, asked: str, answer: str) -> str:
        """An answer by a template that does not go on from what it asks with.

        The question's end is taken as it will be asked. Where it has begun to think, that ends before the answer.
        """
        opened = asked.rstrip().endswith("<think>")
        if opened and "</think>" not in answer:
            return f"{_reasoning(message)}\n</think>\n\n{answer}"
        if not opened and "</think>" in answer:
            found = "The chat template writes an answer's reasoning where it asks for an answer without."
            raise TokenizerError(found, fix="Leave the reasoning out, or use another template with --prompt-style.")
        return answer

    def _closed(self, answer: str, at: int) -> tuple[str, bool]:
        """An answer up to and with the token that ends the turn; up to `at`, where the closing begins, if none does."""
        marks = [mark for mark in self._mark.finditer(answer) if mark.end() > at]
        ending = [mark for mark in marks if self.tokenizer.marks[mark[0]] or self._ends_turn(mark[0])]
        chosen = (ending or marks)[:1]
        return (answer[: chosen[0].end()], True) if chosen else (answer[:at], False)

    def _ends_turn(self, token: str) -> bool:
        return self.tokenizer.id(token) in self.tokenizer.eos_ids

    def _render(self, talk: _Talk, messages: Sequence[Message], asking: bool) -> str:
        """Some of a conversation as the template writes it."""
        given = {**(THINKING if talk.thinks else {}), **self.variables}
        render = self.tokenizer.render
        return render(messages, tools=talk.tools or None, add_generation_prompt=asking, now=self.now, **given)

    # ------------------------------------------------------------ how a template wants its messages

    def _talk(self, chat: Chat) -> _Talk:
        """A conversation in the form that the template has words for."""
        written: list[Message] = []
        for message in chat.messages:
            message = dict(message)
            if "input" in message and self.tokenizer.style is None:
                message["content"] += "\n" + message.pop("input")
            if "reasoning_content" in message and not self._reasons:
                reasoning = message.pop("reasoning_content").strip("\n")
                message["content"] = f"<think>\n{reasoning}\n</think>\n\n{message['content']}"
            if "tool_calls" in message:
                message["tool_calls"] = self._called(message["tool_calls"])
            written.append(message)
        thinks = any("reasoning_content" in message or "</think>" in message["content"] for message in written)
        return _Talk(written, chat.tools, thinks)

    @cached_property
    def _reasons(self) -> bool:
        """Whether the template writes an answer's `reasoning_content`."""
        return self._writes({"role": "assistant", "content": PROBE, "reasoning_content": OTHER})

    def _called(self, calls: Sequence[Message]) -> list[Message]:
        """Calls with their arguments as the template takes them: an object, else JSON."""
        if not self._arguments:
            raise TokenizerError("The chat template has no words for tool calls.", fix="Leave such rows out.")
        return [self._arguments(call) for call in calls]

    @cached_property
    def _arguments(self) -> Callable[[Message], Message] | None:
        call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"a": OTHER}}}
        for form in (dict, _spelt):
            if self._writes({"role": "assistant", "content": "", "tool_calls": [form(call)]}):
                return form
        return None

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template writes which tools there are."""
        tool = {"type": "function", "function": {"name": "f", "description": OTHER, "parameters": {"type": "object"}}}
        try:
            return OTHER in self._render(_Talk(_ASKED, (tool,), False), _ASKED, asking=True)
        except TokenizerError:
            return False

    def _writes(self, answer: Message) -> bool:
        """Whether the template writes what `OTHER` stands for in an answer."""
        try:
            talk = _Talk([*_ASKED, answer], (), "reasoning_content" in answer)
            return OTHER in self._render(talk, talk.messages, asking=False)
        except TokenizerError:
            return False


@dataclass(frozen=True)
class _Talk:
    """A conversation in a template's own form. thinks: whether there is reasoning in it."""

    messages: list[Message]
    tools: Sequence[Message]
    thinks: bool


@dataclass(frozen=True)
class _Turn:
    asked: list[int]
    answer: list[int]


def _example(asked: Sequence[int], answer: Sequence[int]) -> Example:
    supervised = np.zeros(len(asked) + len(answer), dtype=bool)
    supervised[len(asked) :] = True
    return Example(np.array([*asked, *answer], dtype=np.int32), supervised)


def _same(a: str, b: str) -> int:
    """How many characters two texts have in common at their beginning."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _reasoning(message: Message) -> str:
    """What was thought before an answer, wherever it stands in the message."""
    inline, thought, _ = message["content"].partition("</think>")
    return str(message.get("reasoning_content") or (inline.rpartition("<think>")[2] if thought else "")).strip()


def _spelt(call: Message) -> Message:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
