"""A tokenizer becomes the words of a subject: ids with what texts begin with and never with what they end with."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.errors import TokenizerError
from lathe.tokenizer import Tokenizer

OPEN = "\ufdd0the end of what is open\ufdd0"  # code points that are no characters: no text holds them


class Spelt:
    """What a tokenizer makes of texts, see `asks.Words`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.begin = tokenizer, tokenizer.begin

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        begin = [*self.begin]
        found = self.tokenizer.encode_all(texts, special=False)
        return [ids if ids[: len(begin)] == begin else begin + ids for ids in found]

    @property
    def prefix(self) -> int:
        told = [*self.begin[:1], self.tokenizer.bos_id, self.tokenizer.eos_id]
        found = next((id for id in told if id is not None), None)
        if found is None:
            found_words = "The tokenizer names no token that begins or ends a text."
            raise TokenizerError(found_words, "One must stand before a text that is judged from its first token on.")
        return found

    def render(self, messages: Sequence[dict[str, str]], open_ended: bool) -> str:
        if not open_ended:
            return self.tokenizer.render(messages)
        *before, last = messages
        marked = [*before, {**last, "content": last["content"] + OPEN}]
        text, found, _ = self.tokenizer.render(marked, add_generation_prompt=False).rpartition(OPEN)
        if not found:
            raise TokenizerError("The chat template does not show the last message as it is.")
        return text
