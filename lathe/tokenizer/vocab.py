"""Vocabularies in other hands (SentencePiece, tiktoken ranks) -> one `tokenizers` pipeline.

Knows which merges a score or a rank stands for; knows no folder, no chat template and no model.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from lathe.errors import TokenizerError
from lathe.tokenizer import bytelevel

# The numbers SentencePiece and GGUF both give to the kinds of piece.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"  # what SentencePiece writes for a space


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Vocab:
    """A pipeline and what its file says about the ends of a text.

    Args:
        pipeline: text -> ids, adding nothing at either end.
        names: special tokens by the name tokenizer_config.json gives them: {"bos_token": "<s>", ...}.
        add_bos, add_eos: whether a text is put between them.
        ends: further ids that end a turn.
        leading_space: a space goes before the text (and not, as the pipeline could do, before every part of it).
    """

    pipeline: Tokenizer
    names: Mapping[str, str]
    add_bos: bool = False
    add_eos: bool = False
    ends: tuple[int, ...] = ()
    leading_space: bool = False


# ---------------------------------------------------------------- merges from scores


def joins(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way in which two pieces join into a third, in the order SentencePiece and tiktoken would take them.

    Both join, again and again, the neighbours whose joint piece scores best, and of equals the leftmost. Ranked
    merges cannot say "leftmost", but equals are runs of one character (Llama's spaces all score -1e9), and such a
    run grows from the left just when the longer left part ranks first.
    """
    pairs = [
        (-score, -at, text[:at], text[at:])
        for text, score in scores.items()
        for at in range(1, len(text))
        if text[:at] in scores and text[at:] in scores
    ]
    pairs.sort(key=lambda pair: pair[:2])
    return [(left, right) for _, _, left, right in pairs]


def numbered(texts: Sequence[str], where: str) -> dict[str, int]:
    numbers = {text: number for number, text in enumerate(texts)}
    if len(numbers) != len(texts):
        twice = next(text for number, text in enumerate(texts) if numbers[text] != number)
        raise TokenizerError(f"{where} holds the token {twice!r} twice.", "Every token has one id.")
    return numbers


def mark(pipeline: Tokenizer, texts: Sequence[str], kinds: Sequence[int]) -> None:
    """Tells the pipeline which tokens are found in the text before it is cut, and which of them are special."""
    added = [(text, kind) for text, kind in zip(texts, kinds, strict=True) if kind in (UNKNOWN, CONTROL, USER)]
    pipeline.add_tokens([AddedToken(text, special=kind != USER, normalized=False) for text, kind in added])


def scored(pieces: Sequence[Piece], before: Sequence[normalizers.Normalizer], prefix: bool, where: str) -> Tokenizer:
    """SentencePiece's BPE. `prefix`: a space goes before every part of the text between special tokens."""
    kinds = [piece.kind for piece in pieces]
    # User-defined pieces are looked for before the text's spaces are turned into ▁.
    texts = [piece.text.replace(SPACE, " ") if piece.kind == USER else piece.text for piece in pieces]
    model = models.BPE(
        vocab=numbered(texts, where),
        merges=joins({piece.text: piece.score for piece in pieces if piece.kind == NORMAL}),
        unk_token=next((piece.text for piece in pieces if piece.kind == UNKNOWN), None),
        fuse_unk=True,
        byte_fallback=BYTE in kinds,
    )
    pipeline = Tokenizer(model)
    spaces = [normalizers.Prepend(SPACE)] * prefix + [normalizers.Replace(" ", SPACE)]
    pipeline.normalizer = normalizers.Sequence([*before, *spaces])
    strip = [decoders.Strip(" ", 1, 0)] * prefix
    pipeline.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    mark(pipeline, texts, kinds)
    return pipeline


# ---------------------------------------------------------------- SentencePiece


def _malformed() -> TokenizerError:
    return TokenizerError(
        "tokenizer.model has neither SentencePiece's form nor tiktoken's.",
        "It may be cut short, or a Git LFS pointer in place of the file.",
        "Download it again.",
    )


def _fields(message: Any) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field of a protobuf message: an int, a float, or the bytes of a string or message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while shift < 64:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value
        raise IndexError

    if not isinstance(message, bytes):
        raise _malformed()
    try:
        while at < len(message):
            key = varint()
            number, form = key >> 3, key & 7
            if form == 0:
                yield number, varint()
                continue
            size = varint() if form == 2 else {1: 8, 5: 4}[form]
            if at + size > len(message):
                raise IndexError
            value, at = message[at : at + size], at + size
            yield number, struct.unpack("<f", value)[0] if form == 5 else value
    except LookupError:
        raise _malformed() from None


def _piece(message: Any) -> Piece:
    fields = dict(_fields(message))
    try:
        return Piece(fields.get(1, b"").decode(), float(fields.get(2, 0.0)), int(fields.get(3, NORMAL)))
    except (AttributeError, TypeError, ValueError):
        raise _malformed() from None


def sentencepiece(data: bytes, every_part: bool = True) -> Vocab:
    """A SentencePiece `tokenizer.model` of the BPE kind: the same ids as the sentencepiece library.

    Two things are only nearly so: Unicode normalization (which no model since Llama has) of a letter with several
    marks, and user-defined pieces within a text, after which a space is put as after special tokens.

    Args:
        data: the file: a protobuf ModelProto, https://github.com/google/sentencepiece.
        every_part: the space that such models put before a text goes before each part of it between special tokens
            (what transformers calls legacy), rather than only before the first.

    Raises:
        TokenizerError: not such a file, or of a kind whose ids this pipeline could not give exactly.
    """
    fields = list(_fields(data))
    pieces = [_piece(value) for number, value in fields if number == 1]
    trainer, normalizer = (
        {key: value for number, message in fields if number == part for key, value in _fields(message)}
        for part in (2, 3)
    )
    trainer = {key: value for key, value in trainer.items() if isinstance(value, int)}
    if trainer.get(3, 1) != 2 or trainer.get(24, 0) or not normalizer.get(5, 1):
        kind = {1: "unigram", 3: "word", 4: "char"}.get(trainer.get(3, 1), "BPE with spaces as suffixes or unmarked")
        raise TokenizerError(
            f"tokenizer.model is a SentencePiece model of the kind {kind}.",
            "Lathe reads the BPE kind.",
            "Put the model's tokenizer.json beside it.",
        )
    before: list[normalizers.Normalizer] = []
    if charsmap := normalizer.get(2):
        before.append(normalizers.Precompiled(charsmap))
    if normalizer.get(4, 1):  # spaces at the ends go, runs of them become one
        before += [normalizers.Replace(Regex(pattern), to) for pattern, to in ((r"\A +|[ ▁]+\z", ""), (" {2,}", " "))]
    prefix = bool(normalizer.get(3, 1))
    ids = {"unk_token": trainer.get(40, 0), "bos_token": trainer.get(41, 1), "eos_token": trainer.get(42, 2)}
    # An id of -1, meaning none, reads as 2^64 - 1.
    names = {name: pieces[number].text for name, number in ids.items() if number < len(pieces)}
    return Vocab(
        scored(pieces, before, prefix and every_part, "tokenizer.model"),
        names,
        add_bos="bos_token" in names,  # the convention of every such class; tokenizer_config.json may say otherwise
        leading_space=prefix and not every_part,
    )


# ---------------------------------------------------------------- tiktoken

# Meta's names for the 256 ids after Llama 3's 128,000 ranks, by offset; the others are reserved, counted in order.
_LLAMA3_NAMES = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def is_tiktoken(data: bytes) -> bool:
    """Whether `data` begins as a file of tiktoken ranks does: base64, a space, a number, line after line."""
    return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data) is not None


def tiktoken(data: bytes) -> Vocab:
    """Llama 3's original `tokenizer.model`: bytes and their ranks, to which Meta's code adds a pattern and 256 names.

    The file holds neither pattern nor names, so any other set of ranks is a TokenizerError.
    """
    letters = bytelevel.letters()
    try:
        lines = [line.split() for line in data.splitlines()]
        ranks = {"".join(letters[byte] for byte in base64.b64decode(token)): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise TokenizerError(f"tokenizer.model breaks off within its tiktoken ranks: {error}.") from error
    if len(ranks) != 128_000:
        raise TokenizerError(
            f"tokenizer.model holds {len(ranks):,} tiktoken ranks and does not say how text is cut.",
            "Only Llama 3's 128,000 are known by themselves.",
            "Put the model's tokenizer.json beside it.",
        )
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(256))
    specials = [_LLAMA3_NAMES.get(offset) or next(reserved) for offset in range(256)]
    vocab = {**ranks, **{special: 128_000 + offset for offset, special in enumerate(specials)}}
    cut = bytelevel.CUTS["llama3"]
    merges = joins({token: -rank for token, rank in ranks.items()})
    pipeline = bytelevel.pipeline(models.BPE(vocab=vocab, merges=merges, ignore_merges=cut.whole), cut)
    mark(pipeline, specials, [CONTROL] * 256)
    names = {"bos_token": specials[0], "eos_token": specials[1]}
    return Vocab(pipeline, names, add_bos=cut.bos, ends=(vocab["<|eom_id|>"], vocab["<|eot_id|>"]))
