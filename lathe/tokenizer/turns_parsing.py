"""An answer's text as it is generated -> content, reasoning and tool calls, by the way its model writes turns.

Half a mark is never given out, and what comes out is the same wherever the text was cut. Nothing is lost: what looked
like a call and is none is content.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lathe.tokenizer.turns import PYTHON_TAG, Turns
from lathe.tokenizer.turns_calling import CallReader
from lathe.tokenizer.turns_reading import Reader, Reading


@dataclass(frozen=True)
class Text:
    """More of what the answer says. start: where it stands in the text that was pushed, in characters."""

    kind: Literal["content", "reasoning"]
    text: str
    start: int = 0


@dataclass(frozen=True)
class Call:
    """More of the answer's call number `index`: its id and name in the first, then its arguments, as JSON."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


Delta = Text | Call


class Parser:
    """One answer.

    Args:
        turns: how its model writes.
        tools: the JSON schema of the arguments of each tool on offer, by name; calls are looked for if there are any.
        opened: the prompt ends within reasoning (`Turns.opened`).
        ids: gives the id of a call.
    """

    def __init__(
        self,
        turns: Turns,
        tools: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        opened: bool = False,
        ids: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}",
    ) -> None:
        self._turns, self._tools, self._ids = turns, tools or {}, ids
        self._calls = turns.calls if self._tools else None
        self._text = Reader()
        self._out: list[Delta] = []
        self._kind: Literal["content", "reasoning"] = "content"
        self._fresh, self._held = False, ""  # no text yet, of which leading space is no part; space that may be none
        self._count = 0
        harmony = turns.calls is not None and turns.calls.form == "harmony"
        self._reading = self._harmony() if harmony else self._turn(opened)
        self._done = False
        self._run()  # up to where it needs text

    @property
    def calls(self) -> int:
        """How many calls were begun so far."""
        return self._count

    @property
    def thinking(self) -> bool:
        """Whether the text is within reasoning."""
        return self._kind == "reasoning"

    def push(self, text: str) -> list[Delta]:
        """What is certain now that `text` came, too."""
        self._text.rest += text
        return self._run()

    def flush(self) -> list[Delta]:
        """What was held back, at the end of the answer."""
        self._text.ended = True
        return self._run()

    def _run(self) -> list[Delta]:
        if not self._done:
            self._done = next(self._reading, self) is self
        if self._text.ended:
            self._say(self._held, certain=True)
        out, self._out = self._out, []
        merged: list[Delta] = []
        for delta in out:
            last = merged[-1] if merged else None
            if isinstance(delta, Text) and isinstance(last, Text) and _joined(last, delta):
                merged[-1] = Text(delta.kind, last.text + delta.text, last.start)
            elif isinstance(delta, Call) and isinstance(last, Call) and last.index == delta.index:
                merged[-1] = Call(last.index, last.id, last.name, last.arguments + delta.arguments)
            else:
                merged.append(delta)
        return merged

    # ------------------------------------------------------------ what comes out

    def _become(self, kind: Literal["content", "reasoning"], *, fresh: bool) -> None:
        """From here on it is `kind`. fresh: space before its first word is not part of it."""
        self._kind, self._fresh, self._held = kind, fresh, ""

    def _say(self, text: str, *, certain: bool = False) -> None:
        """More text. Space at its end is held until more follows, since it may only lead to a mark."""
        if not certain:
            text = self._held + text
            said = text.rstrip()
            said, self._held = (said, text[len(said) :]) if self._looks else (text, "")
        else:
            said, self._held = text, ""
        if self._fresh:
            said = said.lstrip()
            if not said:
                self._held = ""
                return
            self._fresh = False
        if said:
            self._out.append(Text(self._kind, said, self._text.read - len(self._held) - len(said)))

    @property
    def _looks(self) -> bool:
        return self._calls is not None or self._kind == "reasoning"

    def _begin(self, name: str) -> None:
        self._held = ""
        self._text.forget()
        self._out.append(Call(self._count, self._ids(), name))
        self._count += 1

    def _argue(self, text: str) -> None:
        if text:
            self._out.append(Call(self._count - 1, arguments=text))

    # ------------------------------------------------------------ a turn

    def _turn(self, opened: bool) -> Reading[None]:
        text, reasoning, calls = self._text, self._turns.reasoning, self._calls
        # A thought that begins here, or is open already: later, its marks are only words.
        if reasoning and (opened or (yield from self._thought(reasoning.begin))):
            self._become("reasoning", fresh=True)
            if (yield from text.until([reasoning.end], self._say)) is None:
                return
            self._become("content", fresh=True)
            if reasoning.then:
                yield from text.expect([reasoning.then])
        if calls is None:
            yield from text.until([], self._say)
            return
        reader = CallReader(text, calls, self._tools, self._begin, self._argue)
        if not reader.entry:
            yield from reader.bare()
            self._become("content", fresh=self._count > 0)
        while (mark := (yield from text.until([reader.entry or PYTHON_TAG], self._say))) is not None:
            begun = self._count
            text.record()
            if not (yield from reader.after(mark)) and self._count == begun:
                text.restore()
                self._say(mark)
                continue
            text.forget()
            while (yield from text.expect(reader.stray)):
                pass
            self._become("content", fresh=True)

    def _thought(self, begin: str) -> Reading[bool]:
        if not begin:
            return False
        self._text.record()
        if (yield from self._text.expect([begin])):
            self._text.forget()
            return True
        self._text.restore()
        return False

    # ------------------------------------------------------------ harmony

    def _harmony(self) -> Reading[None]:
        """Messages of several channels: header, <|message|>, body, and a token that ends it."""
        text = self._text
        while True:
            header: list[str] = []
            if (yield from text.until(["<|message|>"], header.append)) is None:
                return
            head = "".join(header)
            called = re.search(r"to=functions\.([\w.\-]+)", head)
            ends = ["<|end|>", "<|call|>", "<|return|>", "<|start|>"]
            if called and self._calls:
                self._begin(called[1])
                ended = yield from text.until(ends, self._argue)
            else:
                self._become("reasoning" if "analysis" in head else "content", fresh=False)
                ended = yield from text.until(ends, self._say_all)
                self._become("content", fresh=False)
            if ended is None:
                return

    def _say_all(self, text: str) -> None:
        self._say(text, certain=True)


def _joined(one: Text, other: Text) -> bool:
    return one.kind == other.kind and one.start + len(one.text) == other.start
