"""What a row of data can be once its shape is seen: a conversation, a text, a text and how it goes on, two answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lathe.data.messages import Message


@dataclass(frozen=True)
class Chat:
    """A conversation.

    messages: as `lathe.data.messages` makes them; a user's may have `input`, what an instruction is about.
    muted: places of messages that have no loss whatever they are.
    """

    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()
    muted: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Completion:
    """A text and how it goes on."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """A document."""

    text: str


@dataclass(frozen=True)
class Preference:
    """Two ways to go on from one beginning, in which messages that both share are muted."""

    chosen: Chat | Completion
    rejected: Chat | Completion


@dataclass(frozen=True)
class Judged:
    """An answer and whether it is wanted."""

    answer: Chat | Completion
    wanted: bool


Sample: TypeAlias = Chat | Completion | Text | Preference | Judged
