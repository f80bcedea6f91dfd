"""Turns an example into lines for people: its text, and which tokens of it are learned.

On a terminal what is learned is green, in two shades that part one token from the next, and the rest is dim. Elsewhere
what is learned stands between {+ and +}.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from lathe.data.render import Example
    from lathe.tokenizer import Tokenizer

SHADES = {True: ("bold green", "green"), False: ("dim", "dim")}


def pieces(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The text of each token, and whether it is learned; a character of several tokens stands with its last."""
    stream = tokenizer.stream(skip_special=False)
    ids = zip(example.ids.tolist(), example.supervised.tolist(), strict=True)
    found = [(stream.push(number), learned) for number, learned in ids]
    return [*found, (stream.flush(), bool(example.supervised[-1]))]


def plain(example: Example, tokenizer: Tokenizer) -> str:
    parts = groupby(pieces(example, tokenizer), key=lambda piece: piece[1])
    texts = [("".join(text for text, _ in some), learned) for learned, some in parts]
    return "".join(f"{{+{text}+}}" if learned and text else text for text, learned in texts)


def coloured(example: Example, tokenizer: Tokenizer) -> Text:
    from rich.text import Text

    found = Text()
    for at, (text, learned) in enumerate(pieces(example, tokenizer)):
        found.append(text, SHADES[learned][at % 2])
    return found
