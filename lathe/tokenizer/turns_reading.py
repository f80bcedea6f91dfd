"""Text that arrives in pieces, read as if it were there as a whole: every reader waits until what it sees is certain.

A reader is a generator that yields when it needs more text and returns what it read. What it decides never depends on
where the pieces were cut.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from lathe.tokenizer.stream import begun

T = TypeVar("T")
Reading = Generator[None, None, T]
Give = Callable[[str], None]

_SPACE = " \t\r\n"
_DEEPEST = 64  # values within values, of a kind that is read value by value
_NAME = re.compile(r"[\w.\-]*")
_SCALAR_ENDS = re.compile(r"[,}\]\s]")


class Reader:
    """The text that came and was not read yet. read: how many characters were."""

    def __init__(self) -> None:
        self.rest, self.ended, self.read = "", False, 0
        self._past: list[str] | None = None

    def record(self) -> None:
        """Remember what is read from here on, for `restore`."""
        self._past = []

    def forget(self) -> None:
        self._past = None

    def restore(self) -> None:
        """Unread what was read since `record`."""
        if self._past:
            past = "".join(self._past)
            self.rest, self.read = past + self.rest, self.read - len(past)
        self._past = None

    def take(self, count: int) -> str:
        """The next characters, which must be there."""
        taken, self.rest = self.rest[:count], self.rest[count:]
        self.read += len(taken)
        if self._past is not None:
            self._past.append(taken)
        return taken

    # ------------------------------------------------------------ readers

    def until(self, marks: Sequence[str], give: Give) -> Reading[str | None]:
        """Gives what comes before the first mark to be complete, as it comes; returns that mark, or None at the end."""
        while True:
            found = [(at + len(mark), at, mark) for mark in marks if (at := self.rest.find(mark)) >= 0]
            if found:
                _, at, mark = min(found)
                self._give(at, give)
                self.take(len(mark))
                return mark
            keep = 0 if self.ended else max((begun(self.rest, mark) for mark in marks), default=0)
            self._give(len(self.rest) - keep, give)
            if self.ended:
                return None
            yield

    def _give(self, count: int, give: Give) -> None:
        if count:
            give(self.take(count))

    def space(self) -> Reading[str]:
        """Skips space; returns the character after it, or nothing at the end."""
        while True:
            self.take(len(self.rest) - len(self.rest.lstrip(_SPACE)))
            if self.rest or self.ended:
                return self.rest[:1]
            yield

    def skip(self, text: str) -> Reading[None]:
        """Skips `text`, or as much of its beginning as is there."""
        for letter in text:
            while not self.rest and not self.ended:
                yield
            if not self.rest.startswith(letter):
                return
            self.take(1)

    def expect(self, options: Sequence[str]) -> Reading[str | None]:
        """Skips space and the longest of the options that comes next; returns it, or None if none does."""
        yield from self.space()
        while True:
            alive = [option for option in options if option.startswith(self.rest[: len(option)])]
            there = max((option for option in alive if len(option) <= len(self.rest)), key=len, default=None)
            if self.ended or not any(len(option) > len(self.rest) for option in alive):
                if there is not None:
                    self.take(len(there))
                return there
            yield

    def name(self) -> Reading[str]:
        """A function's name: letters, digits, _ . and -, after space."""
        yield from self.space()
        while (end := _NAME.match(self.rest).end()) == len(self.rest) and not self.ended:  # type: ignore[union-attr]
            yield
        return self.take(end)

    def value(self, give: Give) -> Reading[bool]:
        """Gives a JSON value as it is written; returns whether it came to its end. Leaves what comes after it."""
        first = yield from self.space()
        if first not in ('"', "{", "["):
            while not (end := _SCALAR_ENDS.search(self.rest)) and not self.ended:
                yield
            self._give(end.start() if end else len(self.rest), give)
            return end is not None
        depth, quoted, escaped = 0, False, False
        while True:
            for at, letter in enumerate(self.rest, 1):
                if escaped:
                    escaped = False
                elif quoted:
                    escaped, quoted = letter == "\\", letter != '"'
                elif letter == '"':
                    quoted = True
                else:
                    depth += (letter in "{[") - (letter in "}]")
                if depth <= 0 and not quoted:
                    self._give(at, give)
                    return True
            self._give(len(self.rest), give)
            if self.ended:
                return False
            yield

    def string(self) -> Reading[str | None]:
        """A JSON string's text, or None if there is none."""
        first = yield from self.space()
        parts: list[str] = []
        if first != '"' or not (yield from self.value(parts.append)):
            return None
        try:
            text = json.loads("".join(parts), strict=False)
        except ValueError:
            return None
        return text if isinstance(text, str) else None

    def literal(self, ends: str) -> Reading[str | None]:
        """A Python or JSON literal up to one of the characters of `ends`, which is left; as JSON."""
        depth, quote, at = 0, "", 0
        while True:
            while at < len(self.rest):
                letter = self.rest[at]
                if quote:
                    at += letter == "\\"
                    quote = "" if letter == quote else quote
                elif letter in "'\"":
                    quote = letter
                elif depth == 0 and letter in ends:
                    return as_json(self.take(at).strip())
                else:
                    depth += (letter in "{[(") - (letter in "}])")
                at += 1
            if self.ended:
                return None
            yield

    def loose(self, quote: str, give: Give, deep: int = 0) -> Reading[bool]:
        """A value with bare keys and `quote` around strings, given as JSON; returns whether it came to its end."""
        if deep > _DEEPEST:
            return False
        found = yield from self.expect([quote, "{", "["])
        if found == quote:
            give('"')
            if (yield from self.until([quote], lambda text: give(escaped(text)))) is None:
                return False
            give('"')
        elif found is not None:
            closing = {"{": "}", "[": "]"}[found]
            give(found)
            ended = yield from self.expect([closing])
            while ended != closing:
                if found == "{":
                    key: list[str] = []
                    if (yield from self.until([":"], key.append)) is None:
                        return False
                    give(json.dumps("".join(key).strip().removeprefix(quote).removesuffix(quote)) + ": ")
                if not (yield from self.loose(quote, give, deep + 1)):
                    return False
                ended = yield from self.expect([",", closing])
                if ended is None:
                    return False
                give(", " if ended == "," else "")
            give(closing)
        else:
            text = yield from self.literal(",}]")
            if text is None:
                return False
            give(text)
        return True


def escaped(text: str) -> str:
    """A text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def as_json(text: str) -> str:
    """A JSON or Python literal as JSON; any other text as a JSON string."""
    try:
        json.loads(text, parse_constant=float.fromhex)  # NaN and its like are no JSON
        return text
    except (ValueError, RecursionError):
        pass
    value: Any = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    try:
        return json.dumps(ast.literal_eval(text.replace("\n", "\\n")), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return json.dumps(value, ensure_ascii=False)
