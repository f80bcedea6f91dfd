"""Ids -> text as it arrives: whole characters only, the space before a word kept, no part of a stop string shown.

Knows how a pipeline's decoder spells bytes and spaces; knows no special token's meaning and no model.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from lathe.errors import TokenizerError, UsageError
from lathe.tokenizer import bytelevel


class Spelling:
    """What each token contributes to the text, in bytes, read from a pipeline's decoder.

    Text is the tokens' bytes end to end, decoded as UTF-8, less some leading spaces. Saying it in bytes lets a
    character that is spread over tokens appear when its last byte does, and never sooner.

    Args:
        pipeline: its decoder is ByteLevel (GPT-2's letters for bytes), or Replace, ByteFallback, Fuse and Strip in
            this order (SentencePiece's ▁ and <0x0A>), or Metaspace.

    Raises:
        TokenizerError: the decoder has a part that is none of these.
    """

    def __init__(self, pipeline: Tokenizer) -> None:
        self._pipeline = pipeline
        self._known: dict[int, bytes] = {}
        self.leading = 0  # spaces to drop at the beginning of a text
        # An undecodable run of bytes becomes one U+FFFD for byte-level vocabularies, as in Rust's from_utf8_lossy,
        # and one for each of its bytes for SentencePiece, as in its Decode.
        self.errors = "surrogateescape"
        self._letters: dict[str, int] = {}
        self._replaced: list[tuple[str, str]] = []
        self._fallback = False
        decoder = pipeline.decoder
        form: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder else {"type": "none"}
        for part in form["decoders"] if form["type"] == "Sequence" else [form]:
            self._read(part)

    def _read(self, part: Mapping[str, Any]) -> None:
        match part:
            case {"type": "ByteLevel"}:
                self._letters = {letter: byte for byte, letter in enumerate(bytelevel.letters())}
                self.errors = "replace"
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                self._replaced.append((old, new))
            case {"type": "ByteFallback"}:
                self._fallback = True
            case {"type": "Fuse"}:
                pass  # the bytes are joined in any case
            case {"type": "Strip", "content": " ", "start": start, "stop": 0}:
                self.leading = start
            case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
                self._replaced.append((mark, " "))
                self.leading = int(scheme != "never")
            case _:
                raise TokenizerError(
                    f"The tokenizer turns ids into text with a decoder that Lathe does not know: {json.dumps(part)}.",
                    "ByteLevel, Replace, ByteFallback, Fuse, Strip at the beginning and Metaspace are known.",
                )

    def __call__(self, number: int) -> bytes:
        """The bytes of one id; none for an id that no token has (models pad their vocabularies)."""
        if number not in self._known:
            self._known[number] = self._spell(self._pipeline.id_to_token(number) or "")
        return self._known[number]

    def _spell(self, token: str) -> bytes:
        if self._letters:
            if all(letter in self._letters for letter in token):
                return bytes(self._letters[letter] for letter in token)
            return token.encode()
        for old, new in self._replaced:
            token = token.replace(old, new)
        if self._fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass  # a token that only looks like a byte
        return token.encode()


class TextStream:
    """Ids in, text out: the pieces that `push` and `flush` return are, end to end, the decoded text.

    Args:
        spell: id -> bytes.
        skipped: ids that show nothing.
        after: ids whose text is already shown; what is pushed continues it, with its space if it begins a word.
    """

    def __init__(self, spell: Spelling, skipped: Iterable[int] = (), after: Iterable[int] = ()) -> None:
        self._spell, self._skipped = spell, frozenset(skipped)
        self._decoder = codecs.getincrementaldecoder("utf-8")(spell.errors)
        self._leading = spell.leading
        for number in after:
            self.push(number)

    def push(self, number: int) -> str:
        """The text that this id completes; often a word, empty in the middle of a character."""
        return "" if number in self._skipped else self._show(self._spell(number))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was begun and not finished."""
        return self._show(b"", final=True)

    def _show(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        while self._leading and text:
            if not text.startswith(" "):
                self._leading = 0
            else:
                text, self._leading = text[1:], self._leading - 1
        return text if text.isascii() else text.translate(_UNDECODED)


# The half characters with which "surrogateescape" marks bytes that are no UTF-8.
_UNDECODED = dict.fromkeys(range(0xDC80, 0xDD00), "\ufffd")


class StopStrings:
    """Holds text back while it may be the beginning of a stop string, so that no part of one is ever shown.

    The first stop string to be complete ends the text, however the text is cut into pieces.

    Args:
        stops: the strings; none may be empty.

    Attributes:
        found: the one that ended the text, once one has.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise UsageError("A stop string is empty.", "A stop string has at least one character.")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        return self.found is not None

    def push(self, text: str) -> str:
        """The text that can be shown now; nothing once `stopped`."""
        if self.stopped:
            return ""
        held = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self._held = ""
            end, start = min(found)
            self.found = held[start:end]
            return held[:start]
        keep = max((begun(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back, at the end of a text that no stop string ended."""
        held, self._held = self._held, ""
        return held


def begun(text: str, mark: str) -> int:
    """How many characters at the end of `text` are the beginning of `mark`, and not all of it."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
