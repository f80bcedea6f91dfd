"""Rules of a grammar in Lark's notation, as llguidance reads it; special tokens stand in them as <[id]>.

A text is read as the longest that a rule allows, without a second thought: rules here never let one text be the
beginning of another that may stand in the same place, but where the rule is lazy, or the two come to the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from lathe.tokenizer.turns import ID, INDEX

ANY = "/(?s:.*)/"
SPACE = r"/[ \t\r\n]{0,8}/"
_SLOTS = {ID: "/[a-zA-Z0-9_-]{1,40}/", INDEX: "/[0-9]{1,3}/"}


class Rules:
    """The rules of one grammar, as they are written.

    special: the special tokens, and their ids.
    """

    def __init__(self, special: Mapping[str, int]) -> None:
        self._special = special
        self._split = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self.written: list[str] = []

    def rule(self, body: str, *, lazy: bool = False, field: str = "") -> str:
        """A rule of this body; returns its name.

        lazy: its text ends where it can first. field: the client's word for where the body is from; stands behind it.
        """
        return self.fill(self.place(), f"{body} // {field}" if field else body, lazy=lazy)

    def place(self) -> str:
        """The name of a rule that is yet to be filled, so that it can stand within itself."""
        self.written.append("")
        return f"r{len(self.written) - 1}"

    def fill(self, name: str, body: str, *, lazy: bool = False) -> str:
        self.written[int(name[1:])] = f"{name}{'[lazy]' if lazy else ''}: {body}"
        return name

    def terminal(self, body: str) -> str:
        """A text of this body, which other texts may be made of; returns its name."""
        self.written.append(f"T{len(self.written)}: {body}")
        return f"T{len(self.written) - 1}"

    def literal(self, text: str) -> str:
        """A mark as a template writes it."""
        parts: list[str] = []
        at = 0
        for found in [*self._split.finditer(text), None]:
            plain = text[at : found.start() if found else len(text)]
            for piece in re.split(f"([{ID}{INDEX}])", plain):
                if piece:
                    parts.append(_SLOTS.get(piece) or json.dumps(piece, ensure_ascii=False))
            if found:
                parts.append(f"<[{self._special[found[0]]}]>")
                at = found.end()
        return " ".join(parts)

    def upto(self, mark: str, text: str = ANY) -> str:
        """Any text, and the mark that ends it."""
        first = self._split.search(mark)
        if first and first.start() == 0:
            return f"{text} {self.literal(mark)}"
        lead = mark[: first.start()] if first else mark
        ends = self.rule(f"{text} {self.literal(lead)}", lazy=True)
        return f"{ends} {self.literal(mark[len(lead) :])}".strip()

    def token(self, text: str) -> bool:
        """Whether a text begins with a special token."""
        return self._split.match(text) is not None

    def listed(self, members: Sequence[tuple[str, bool]], separator: str) -> str:
        """Members in their order, each with whether it must be there, and a separator between those that are."""
        first = rest = ""  # what may come, as the first and behind another
        for body, needed in reversed(members):
            member = self.rule(body)
            here = self.rule(f"{member} {rest}".strip())
            if needed:
                first = here
            else:
                first = self.rule(f"{here} | {first}" if first else f"{here}?")
            rest = self.rule(f"({json.dumps(separator)} {member}){'' if needed else '?'} {rest}".strip())
        return first


def slashed(regex: str) -> str:
    """A regular expression as it stands between slashes."""
    return re.sub(r"\\.|/|\n", lambda found: {"/": "\\/", "\n": "\\n"}.get(found[0], found[0]), regex, flags=re.S)
