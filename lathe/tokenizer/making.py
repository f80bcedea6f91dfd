"""Texts become a new tokenizer for texts like them: of pairs of bytes (BPE), or of single characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lathe.tokenizer import bytelevel, characters
from lathe.tokenizer.tokenizer import Tokenizer
from lathe.tokenizer.vocab import Vocab


def train_bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str] = ("<|endoftext|>",)) -> Tokenizer:
    """A new byte-level BPE tokenizer: any text round-trips exactly; EOS is the first special, if any; there is no BOS.

    The same texts give the same tokenizer.

    Raises:
        TokenizerError: `vocab_size` has no room for the 256 bytes and the specials.
    """
    names = {"eos_token": specials[0]} if specials else {}
    return Tokenizer(Vocab(bytelevel.learn(texts, vocab_size, specials), names))


def train_characters(texts: Iterable[str], specials: Sequence[str] | None = None) -> Tokenizer:
    """A new tokenizer with a token for each character of `texts`; EOS is the first special, if any; there is no BOS.

    specials: by default <|endoftext|> where there are several texts, and none for a single one, which has no end to be
    learned.

    Raises:
        TokenizerError: there are no characters.
    """
    pipeline, found = characters.learn(texts, specials)
    return Tokenizer(Vocab(pipeline, {"eos_token": found[0]} if found else {}))
