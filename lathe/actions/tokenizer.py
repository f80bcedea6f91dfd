"""Turns texts into a new tokenizer's folder; knows no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from lathe.errors import UsageError

SAMPLE = 1 << 20  # characters that the new tokenizer is tried on


@dataclass(frozen=True)
class Options:
    verb: Literal["train"]
    """What to do; train is all there is."""
    data: tuple[str, ...]
    """Files or folders of texts, as lathe pretrain takes them."""
    _: KW_ONLY
    kind: Literal["bpe", "char"] = "bpe"
    """bpe: pieces of words, over bytes, so that every text can be encoded. char: a token for each character of the
    data, and for no other."""
    vocab_size: int | None = None
    """How many tokens a bpe has, 256 bytes and specials included. By default 8192."""
    special: tuple[str, ...] = ()
    """Special tokens; the first one ends a document. May be given several times. By default <|endoftext|>; for char
    only where there are several documents."""
    text_column: str | None = None
    """The field that holds the text in rows. By default text or content."""
    out: Path = Path("out/tokenizer")
    """The folder to write."""
    overwrite: bool = False
    """Replace the tokenizer that is there."""

    def __post_init__(self) -> None:
        if self.kind == "char" and self.vocab_size is not None:
            raise UsageError("--vocab-size is given for --kind char.", "It has as many tokens as there are characters.")


def run(options: Options) -> None:
    """Make a tokenizer from texts.

    The folder is a Hugging Face tokenizer's, which transformers reads too. The texts are read one at a time, so they
    may be more than fits into memory; data.jsonl#100000 takes the first rows only.
    """
    from lathe.data import sources
    from lathe.tokenizer import train_bpe, train_characters

    if not options.overwrite and (options.out / "tokenizer.json").exists():
        raise UsageError(f"{options.out} holds a tokenizer.", fix="Give --overwrite, or another --out.")

    def texts() -> Iterator[str]:
        return sources.stream(options.data, options.text_column)

    if options.kind == "char":
        made = train_characters(texts(), options.special or None)
    else:
        made = train_bpe(texts(), options.vocab_size or 8192, options.special or ("<|endoftext|>",))
    made.save(options.out)
    tried, size = list[str](), 0
    for text in texts():
        tried.append(text)
        size += len(text)
        if size >= SAMPLE:
            break
    ids = sum(map(len, made.encode_all(tried)))
    print(f"{options.out}: {made.vocab_size:,} tokens, {size / max(1, ids):.2f} characters of the data each")
