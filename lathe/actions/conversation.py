"""Turns what was said into messages that fit a model's context, and into a file and back; knows no model."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lathe.errors import DataError, MissingError

Message = dict[str, str]  # {"role": "user", "content": "Hello"}
SHAPE = 'It must be JSON like {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]}.'


class Exchange(NamedTuple):
    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """A system message, if any, and questions with their answers. Every change makes a new one.

    left_out: how many of the oldest exchanges the model is no longer shown. They are still saved.
    """

    system: str | None = None
    exchanges: tuple[Exchange, ...] = ()
    left_out: int = 0

    def messages(self, question: str) -> list[Message]:
        """What the model is shown when `question` is asked."""
        return _messages(self.system, self.exchanges[self.left_out :], question)

    def added(self, question: str, answer: str) -> Conversation:
        return replace(self, exchanges=(*self.exchanges, Exchange(question, answer)))

    def undone(self) -> Conversation:
        """Without the last exchange; older ones may be shown again, now that there is more room."""
        return replace(self, exchanges=self.exchanges[:-1], left_out=0)

    def fitted(self, question: str, count: Callable[[list[Message]], int], room: int) -> Conversation:
        """With as few of the oldest exchanges left out as bring the messages to at most `room` tokens.

        count: the tokens of messages. Where the system message and the question alone are too long, all are left out.
        """

        def fits(left_out: int) -> bool:
            return count(replace(self, left_out=left_out).messages(question)) <= room

        if fits(self.left_out):
            return self
        everyone = range(len(self.exchanges))
        return replace(self, left_out=bisect_left(everyone, True, lo=min(self.left_out + 1, len(everyone)), key=fits))

    def save(self, path: Path) -> None:
        """Write the whole conversation as JSON, in the form in which chats are also trained on.

        A file that holds something else is not overwritten: raises DataError. Raises MissingError where the folder is
        missing or must not be written to.
        """
        if path.exists():
            try:
                Conversation.load(path)
            except DataError as error:
                raise DataError(f"{path} exists and is no conversation.", fix="Choose another name.") from error
        messages = _messages(self.system, self.exchanges)
        beside = path.with_name(f".{path.name}.unfinished")
        try:
            beside.write_text(json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n", "utf-8")
            beside.replace(path)
        except OSError as error:
            raise MissingError(f"Cannot write {path}: {error.strerror}.") from None

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote, or a bare list of messages. Raises MissingError, DataError."""
        try:
            held = json.loads(path.read_text("utf-8-sig"))
        except OSError as error:
            raise MissingError(f"Cannot read {path}: {error.strerror}.") from None
        except (ValueError, RecursionError):
            raise DataError(f"{path} is not JSON.", SHAPE) from None
        messages = held.get("messages") if isinstance(held, dict) else held
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise DataError(f"{path} holds no messages with a role and a text.", SHAPE)
        # JSON can spell half a character, which no tokenizer takes.
        said = [(message["role"], message["content"].encode("utf-8", "replace").decode()) for message in messages]
        system = said.pop(0)[1] if said and said[0][0] == "system" else None
        for i, (role, _) in enumerate(said):
            if role != ("user", "assistant")[i % 2]:
                turn = "Messages of the user and the assistant take turns, after at most one of the system."
                raise DataError(f'In {path}, a message of "{role}" is out of turn.', turn)
        if len(said) % 2:
            raise DataError(f"In {path}, the last message has no answer.")
        texts = [text for _, text in said]
        return cls(system, tuple(map(Exchange, texts[::2], texts[1::2])))


def _messages(system: str | None, exchanges: Iterable[Exchange], question: str | None = None) -> list[Message]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.question})
        messages.append({"role": "assistant", "content": exchange.answer})
    return messages if question is None else [*messages, {"role": "user", "content": question}]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def plain(messages: Iterable[Message]) -> str:
    """The messages as one text for a model without a chat template to go on with: answers follow what they answer."""
    texts = [message["content"] + ("\n" if message["role"] in ("system", "assistant") else "") for message in messages]
    return "".join(texts)
