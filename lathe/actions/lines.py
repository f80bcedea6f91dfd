"""Turns typed text, or the lines of a pipe, into messages; knows no key.

In a pipe a message is a line. After a backslash at its end it goes on in the next line, and from three quotes at its
beginning to the next three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lathe.errors import UsageError

QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether three quotes at the beginning wait for three more."""
    return text.startswith(QUOTES) and text.count(QUOTES) == 1


def whole(text: str) -> str:
    """Text in whole characters only: a byte typed or pasted that is no UTF-8 arrives as half of one."""
    return text.encode("utf-8", "replace").decode()


def message(typed: str) -> str:
    """What is meant by what was typed: without quotes around all of it, and without blank lines at its ends."""
    text = typed.rstrip()
    if text.startswith(QUOTES) and text.endswith(QUOTES) and len(text) >= 6:
        text = text[3:-3]
    return text.strip("\r\n")


def piped(lines: Iterable[bytes]) -> Iterator[str]:
    """The messages in the lines of a pipe; blank lines between them are passed over. Raises UsageError."""
    typed = ""
    for line in lines:
        typed += decoded(line).rstrip("\r\n")
        if is_open(typed):
            typed += "\n"
        elif typed.endswith("\\"):
            typed = typed[:-1] + "\n"
        else:
            if text := message(typed):
                yield text
            typed = ""
    if text := message(typed):
        yield text


def decoded(data: bytes, place: str = "Standard input") -> str:
    """Bytes from `place` as text. Raises UsageError."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"{place} is not UTF-8: {error.reason}."
        raise UsageError(found, fix="Convert it, for example with iconv.") from None
