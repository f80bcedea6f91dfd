"""A sample -> token ids, and which of them a model is to learn; knows no row, no packing and no loss.

What stands before an answer is, id by id, what the model will be asked with. Most templates never change what they
wrote, so all answers of a conversation are learned in one sequence. Some do: they leave out earlier reasoning, or end
the last turn in another way. An answer that the whole conversation does not hold as it will be written then becomes a
sequence of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lathe.data.samples import Chat, Completion, Judged, Preference, Sample, Text
from lathe.data.writing import ASKED, Part, Talk, Writer
from lathe.tokenizer import Tokenizer
from lathe.tokenizer.styles import PLAIN

LossOn = Literal["assistant", "last", "all"]
STYLE = "alpaca"  # how conversations are written for a model that has no chat template
NOW = datetime(2025, 1, 1)


@dataclass(frozen=True, eq=False)
class Example:
    """ids: (n,) int32. supervised: (n,) bool, True where the id is to be predicted from those before it."""

    ids: np.ndarray
    supervised: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


Group = tuple[Example, ...]  # what is packed together: one example, or one that is chosen and one that is rejected


def learned(groups: Iterable[Group]) -> int:
    """How many tokens a model learns from examples."""
    return sum(int(example.supervised[1:].sum()) for group in groups for example in group)


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
        own: whether that is the model's own.

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
        self.own = chosen is None
        self.tokenizer = tokenizer if chosen is None else tokenizer.styled(chosen)
        self.writer = Writer(self.tokenizer, now, variables or {})
        self._headers: dict[str, list[int]] = {}

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
        talk = Talk([*ASKED, {"role": "assistant", "content": "b"}])
        return tuple(dict.fromkeys((*self.tokenizer.eos_ids, *self._turn(self.writer.part(talk, 1)).answer[-1:])))

    # ------------------------------------------------------------ texts

    def _text(self, text: str) -> Example:
        ids = self.tokenizer.closed(self.tokenizer.encode(text))
        begun = int(ids[:1] == [self.tokenizer.bos_id])
        return _example(ids[:begun], ids[begun:])

    def _completion(self, sample: Completion) -> Example:
        if not self.plain:
            asked = {"role": "user", "content": sample.prompt}
            [example] = self._chat(Chat((asked, {"role": "assistant", "content": sample.completion})))
            return example
        encode = self.tokenizer.encode
        asked_ids = encode(sample.prompt)
        answer = self._after(asked_ids, encode(sample.prompt + sample.completion), sample.completion)
        return self._learned(_Turn(asked_ids, self.tokenizer.closed(answer)))

    def _after(self, asked: list[int], whole: list[int], text: str) -> list[int]:
        """The ids of `text` after those of `asked`: of both together, unless a token would lie across the place."""
        if whole[: len(asked)] == asked:
            return whole[len(asked) :]
        encode = self.tokenizer.encode
        line = len(encode("\n", special=False))
        for ids in (encode(text, special=False), encode("\n" + text, special=False)[line:]):
            stream = self.tokenizer.stream(asked, skip_special=False)
            if "".join([stream.push(number) for number in ids]) + stream.flush() == text:
                return ids
        return encode(text, special=False)

    # ------------------------------------------------------------ conversations

    def _answer(self, sample: Chat | Completion) -> Example:
        """One of two answers: the last, where there are several after what both share."""
        return self._completion(sample) if isinstance(sample, Completion) else self._chat(sample)[-1]

    def _chat(self, chat: Chat) -> list[Example]:
        talk = self.writer.talk(chat)
        answers = [at for at, message in enumerate(talk.messages) if message["role"] == "assistant" and at]
        learned = [at for at in answers if at not in chat.muted]
        if self.loss_on != "assistant":
            learned = learned[-1:]
        if not learned:  # nothing to learn, which whoever checks the data will say
            return [_example(self.tokenizer.encode(self.writer.text(talk), special=False), [])]
        parts = [self.writer.part(talk, at) for at in learned]
        whole = _Whole.of(parts[-1].asked + parts[-1].answer, self.writer)
        turns: list[_Turn] = []
        found: list[Example] = []
        for part in reversed(parts):
            turn = self._standing(part, whole) or self._turn(part)
            ids = turn.asked + turn.answer
            host = next((i for i, other in enumerate(turns) if (other.asked + other.answer)[: len(ids)] == ids), None)
            if host is None:
                turns.append(turn)
                found.append(self._learned(turn))
            else:
                found[host].supervised[len(turn.asked) : len(ids)] = True
        return found[::-1]

    def _learned(self, turn: _Turn) -> Example:
        if self.loss_on == "all":
            return _example(turn.asked[:1], turn.asked[1:] + turn.answer)
        return _example(turn.asked, turn.answer)

    def _turn(self, part: Part) -> _Turn:
        asked = self.tokenizer.encode(part.asked, special=False)
        ids = self._after(asked, self.tokenizer.encode(part.asked + part.answer, special=False), part.answer)
        return _Turn(asked, ids if part.closed else self.tokenizer.closed(ids))

    def _standing(self, part: Part, whole: _Whole) -> _Turn | None:
        """What `_turn` gives, read off the ids of a whole conversation; None where that takes more than a look.

        Text between two marks has the same ids whatever stands beyond them. So it is enough to see that the words
        between the last mark before the answer and the answer have the ids there that they have on their own.
        """
        mark = whole.mark_before(len(part.asked))
        if not (part.closed and mark and whole.text.startswith(part.asked + part.answer)):
            return None
        begin, end = mark
        header = self._header(whole.text[begin:end], part.asked[end:])
        first = whole.at(end)
        start, stop = first + len(header), whole.at(len(part.asked + part.answer))
        return _Turn(whole.ids[:start], whole.ids[start:stop]) if whole.ids[first:start] == header else None

    def _header(self, mark: str, text: str) -> list[int]:
        """The ids of a text after a mark."""
        if mark + text not in self._headers:
            ids = self.tokenizer.encode(mark + text, special=False)
            self._headers[mark + text] = (
                ids[ids.index(number) + 1 :] if (number := self.tokenizer.id(mark)) in ids else []
            )
        return self._headers[mark + text]


@dataclass(frozen=True)
class _Turn:
    asked: list[int]
    answer: list[int]


@dataclass(frozen=True)
class _Whole:
    """A text, its ids, the place of each in it, and where its marks begin and end."""

    text: str
    ids: list[int]
    places: list[int]
    marks: list[tuple[int, int]]

    @staticmethod
    def of(text: str, writer: Writer) -> _Whole:
        return _Whole(text, *writer.tokenizer.placed(text), [mark.span() for mark in writer.marks.finditer(text)])

    def at(self, place: int) -> int:
        """The first id that begins at a place in the text, or behind it."""
        return bisect_left(self.places, place)

    def mark_before(self, place: int) -> tuple[int, int] | None:
        number = bisect_left(self.marks, place + 1, key=lambda mark: mark[1])
        return self.marks[number - 1] if number else None


def _example(asked: Sequence[int], answer: Sequence[int]) -> Example:
    supervised = np.zeros(len(asked) + len(answer), dtype=bool)
    supervised[len(asked) :] = True
    return Example(np.array([*asked, *answer], dtype=np.int32), supervised)
