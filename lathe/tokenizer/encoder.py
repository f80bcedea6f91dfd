"""Text <-> ids by one vocabulary, whole or as they arrive; knows no message, no chat template and no file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from lathe.errors import TokenizerError
from lathe.tokenizer import bytelevel, characters
from lathe.tokenizer.stream import Spelling, TextStream
from lathe.tokenizer.vocab import Vocab

if TYPE_CHECKING:
    from tokenizers import Encoding

PART = 1 << 18  # characters encoded at once


class Encoder:
    """Text <-> ids. `Tokenizer`, which has a conversation's side too, says what its attributes are."""

    def __init__(self, words: Vocab) -> None:
        self._words, self._pipeline = words, words.pipeline
        # Files may carry the truncation and padding of somebody's training run.
        self._pipeline.no_truncation()
        self._pipeline.no_padding()
        self._spell = Spelling(self._pipeline)
        added = self._pipeline.get_added_tokens_decoder()
        self._added = tuple(token.content for token in added.values())
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.marks = {token.content: token.special for token in added.values()}
        self.bos, self.bos_id = self._named("bos_token")
        self.eos, self.eos_id = self._named("eos_token")
        self.vocab_size: int = self._pipeline.get_vocab_size()
        self._before, self._after = self._both_ends()

    def _named(self, name: str) -> tuple[str | None, int | None]:
        token = self._words.names.get(name)
        number = None if token is None else self.id(token)
        return (None if number is None else token), number

    def _both_ends(self) -> tuple[list[int], list[int]]:
        """The ids put before and after a text: the post-processor's of the pipeline, then those `words` asks for."""
        probe = self._pipeline.encode(characters.sample(self._pipeline))
        text = [at for at, added in enumerate(probe.special_tokens_mask) if not added] or [len(probe.ids)]
        before, after = probe.ids[: text[0]], probe.ids[text[-1] + 1 :]
        if self._words.add_bos and self.bos_id is not None and self.bos_id not in before:
            before = [self.bos_id, *before]
        if self._words.add_eos and self.eos_id is not None and self.eos_id not in after:
            after = [*after, self.eos_id]
        return before, after

    # ------------------------------------------------------------ text -> ids

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Text -> ids. Special tokens written in the text become their ids.

        Args:
            text: any string of whole characters.
            special: put what the files say at either end (BOS, EOS); BOS not twice, if the text begins with it.

        Raises:
            TokenizerError: the text holds half a character, or one that the vocabulary has no token for.
        """
        (ids,) = self._ids([self._prepared(text)])
        return self._framed(ids) if special else ids

    @property
    def begin(self) -> tuple[int, ...]:
        """The ids that the files say a text begins with."""
        return tuple(self._before)

    def encode_all(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """What `encode` gives for each text, on all processors.

        A long text is encoded in parts, where that gives the same ids, because encoding takes a hundred times a part's
        size in memory.
        """
        prepared = [self._prepared(text) for text in texts]
        if self._divisible:
            parts = [bytelevel.parts(text, PART) for text in prepared]
        else:
            parts = [[text] for text in prepared]
        ids = self._ids([part for some in parts for part in some])
        found = [[number for _ in some for number in next(ids)] for some in parts]
        return [self._framed(numbers) for numbers in found] if special else found

    @cached_property
    def _divisible(self) -> bool:
        return bytelevel.divisible(self._pipeline)

    def _prepared(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"The text holds half a character (a lone surrogate) at position {error.start}.",
                fix="Read it as UTF-8.",
            ) from None
        if self._words.leading_space and text and not text.startswith(self._added):
            return " " + text
        return text

    def _ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The ids of texts, as many encoded at once as have PART characters together."""
        begin = size = 0
        for end, text in enumerate(texts, 1):
            size += len(text)
            if size >= PART or end == len(texts):
                yield from (encoded.ids for encoded in self._batch(self._pipeline.encode_batch_fast, texts[begin:end]))
                begin, size = end, 0

    def _batch(self, encode: Callable[..., list[Encoding]], texts: Sequence[str]) -> list[Encoding]:
        try:
            return encode(texts, add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            lacking = characters.missing(self._pipeline, texts)
            if lacking is None:
                raise
            fix = "It knows the characters of the texts that it was made from, and no others."
            raise TokenizerError(f"The tokenizer has no token for {lacking!r}.", fix=fix) from error

    def _framed(self, ids: list[int]) -> list[int]:
        begun = ids[: len(self._before)] == self._before
        return [*([] if begun else self._before), *ids, *self._after]

    def closed(self, ids: list[int]) -> list[int]:
        """A document's ids with EOS after them, unless they end with it or there is none."""
        return ids if self.eos_id is None or ids[-1:] == [self.eos_id] else [*ids, self.eos_id]

    @cached_property
    def digest(self) -> str:
        """32 hex digits that change with whatever may change any text's ids."""
        told = (self._pipeline.to_str(), self._before, self._after, self._words.leading_space, self.eos_id)
        return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()

    def placed(self, text: str) -> tuple[list[int], list[int]]:
        """Text -> ids, without any at either end, and the place in the text where each begins, in characters."""
        led = self._prepared(text)
        (found,) = self._batch(self._pipeline.encode_batch, [led])
        return found.ids, [start - (len(led) - len(text)) for start, _ in found.offsets]

    # ------------------------------------------------------------ ids -> text

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Ids -> text; U+FFFD for bytes that are no characters, nothing for ids that no token has.

        skip_special: special tokens show nothing.
        """
        stream = self.stream(skip_special=skip_special)
        return "".join([stream.push(number) for number in ids]) + stream.flush()

    def stream(
        self, after: Iterable[int] = (), *, skip_special: bool = True, shown: Collection[int] = ()
    ) -> TextStream:
        """Ids -> text one at a time: the pieces end to end are what `decode` gives.

        Args:
            after: the ids that the text continues, if their text is already shown. Then `decode` of these and the
                pieces make `decode` of all, where the pieces alone would lose the space before a first word.
            skip_special: special tokens show nothing, but for those that are `shown`.
        """
        return TextStream(self._spell, self.special_ids.difference(shown) if skip_special else (), after)

    # ------------------------------------------------------------ one token

    def id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        number: int | None = self._pipeline.token_to_id(token)
        return number

    def get(self, number: int) -> str | None:
        """The token of an id as the vocabulary writes it (with Ġ or ▁ for a space), or None."""
        token: str | None = self._pipeline.id_to_token(number) if number >= 0 else None
        return token

    def token(self, number: int) -> str:
        """The token of the id `number` as the vocabulary writes it; there must be one.

        Raises:
            TokenizerError: no token has this id.
        """
        token = self.get(number)
        if token is None:
            raise TokenizerError(f"No token has the id {number}.", f"The tokenizer has {self.vocab_size:,} tokens.")
        return token

    def spelling(self, number: int) -> bytes:
        """What a token writes, in bytes, which may be part of a character; none for an id that no token has."""
        return self._spell(number)

    def spellings(self) -> list[bytes]:
        """The bytes that each token writes, by id: nothing for ids that no token has."""
        return [self._spell(number) for number in range(max(self._pipeline.get_vocab().values(), default=-1) + 1)]
