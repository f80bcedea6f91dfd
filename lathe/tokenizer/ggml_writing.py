"""A vocabulary becomes GGUF's words for a tokenizer (`tokenizer.ggml.*`), from which llama.cpp gives the same ids.

Knows no file's form and no chat template's meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from lathe.errors import TokenizerError
from lathe.tokenizer import bytelevel
from lathe.tokenizer.ggml_reading import HERE, NAMED
from lathe.tokenizer.vocab import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER, Vocab, joins

_LAST = -1e9  # the score of a piece that nothing merges into


def write(found: Vocab, before: Sequence[int], after: Sequence[int], ends: Iterable[int]) -> dict[str, Any]:
    """The keys `tokenizer.ggml.*` of a vocabulary: read again, they give the same ids.

    GGUF has no word for a special token that takes the spaces around it, for a beginning or an end of several
    tokens, for the composed form of Unicode (which llama.cpp does not bring text to), and for more than three ends of
    a turn; these are left out.

    Args:
        before, after: the ids put at either end of a text.
        ends: every id that ends a turn.

    Raises:
        TokenizerError: a vocabulary of a kind that llama.cpp would give other ids for.
    """
    model = json.loads(found.pipeline.model.__getstate__())
    if model["type"] != "BPE":
        raise _unsaid(f"is of the kind {model['type']}", "Byte-pair encodings can be written.")
    written = _bytes(found.pipeline, model) if _over_bytes(found.pipeline) else _pieces(found, model)
    ids = {name: found.pipeline.token_to_id(token) for name, token in found.names.items()}
    for name, edge in (("bos_token", before), ("eos_token", after)):
        if len(edge) == 1:
            ids[name] = edge[0]
    others = [number for number in ends if number != ids.get("eos_token")]
    if ids.get("eos_token") is None and others:
        ids["eos_token"] = others.pop(0)
    told = {theirs: ids.get(name) for name, theirs in NAMED.items()}
    told |= dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))
    told = {name: number for name, number in told.items() if number is not None}
    told |= {"add_bos_token": len(before) == 1, "add_eos_token": len(after) == 1}
    return {HERE + name: value for name, value in {**written, **told}.items()}


def _unsaid(found: str, expected: str) -> TokenizerError:
    return TokenizerError(
        f"GGUF has no words for this tokenizer: it {found}.", expected, "Write the model in Hugging Face's form."
    )


def _over_bytes(pipeline: Tokenizer) -> bool:
    return bool(pipeline.decoder) and json.loads(pipeline.decoder.__getstate__())["type"] == "ByteLevel"


def _bytes(pipeline: Tokenizer, model: Mapping[str, Any]) -> dict[str, Any]:
    """A vocabulary over bytes, with the name of how it cuts text."""
    vocab, merges = model["vocab"], [tuple(merge) for merge in model["merges"]]
    made = {left + right for left, right in merges}
    reached = all(len(token) == 1 or token in made for token in vocab.keys() - _added(pipeline).keys())
    pre = bytelevel.name(pipeline, bool(model.get("ignore_merges")), reached)
    if pre is None:
        raise _unsaid("cuts text in a way that llama.cpp has no name for", "Its names are those of published models.")
    texts, kinds = _listed(pipeline, vocab)
    merged = [" ".join(merge) for merge in merges]
    return {"model": "gpt2", "pre": pre, "tokens": texts, "token_type": kinds, "merges": merged}


def _pieces(found: Vocab, model: Mapping[str, Any]) -> dict[str, Any]:
    """A vocabulary over characters, ▁ for a space, with a score for each piece."""
    pipeline, vocab = found.pipeline, model["vocab"]
    texts, kinds = _listed(pipeline, vocab)
    for number, text in enumerate(texts):
        if text == model["unk_token"]:
            kinds[number] = UNKNOWN
        elif model["byte_fallback"] and kinds[number] == NORMAL and re.fullmatch("<0x[0-9A-F]{2}>", text):
            kinds[number] = BYTE
    pieces = {text for text, kind in zip(texts, kinds, strict=True) if kind == NORMAL}
    merges = [
        (left, right)
        for left, right in model["merges"]
        if left in pieces and right in pieces and left + right in pieces
    ]
    scores = _scores(merges)
    if not _same_order(joins({piece: scores.get(piece, _LAST) for piece in pieces}), merges, scores):
        raise _unsaid("merges in an order that no scores give", "SentencePiece's vocabularies and their kind have one.")
    return {
        "model": "llama",
        "pre": "default",
        "tokens": texts,
        "scores": [scores.get(text, _LAST) if kind == NORMAL else 0.0 for text, kind in zip(texts, kinds, strict=True)],
        "token_type": kinds,
        "add_space_prefix": found.leading_space or _prefix(pipeline),
    }


def _added(pipeline: Tokenizer) -> dict[str, int]:
    """The tokens that are looked for in the text before it is cut -> their kinds."""
    added = pipeline.get_added_tokens_decoder().values()
    return {token.content: CONTROL if token.special else USER for token in added}


def _listed(pipeline: Tokenizer, vocab: Mapping[str, int]) -> tuple[list[str], list[int]]:
    """Every token and its kind, by id; an id that no token has gets one that never occurs."""
    ids: dict[int, str] = {number: text for text, number in pipeline.get_vocab(with_added_tokens=True).items()}
    added = _added(pipeline)
    texts = [ids.get(number, f"[UNUSED{number}]") for number in range(max(ids) + 1)]
    return texts, [added.get(text, NORMAL) if number in ids else UNUSED for number, text in enumerate(texts)]


def _scores(merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """A score for every piece that is merged, such that `joins` of them are the merges again.

    The merges into one piece follow one another. Where those of several pieces are mixed up, as SentencePiece's runs
    of spaces are, which all score the same, these pieces get one score.
    """
    last = {left + right: rank for rank, (left, right) in enumerate(merges)}
    scores: dict[str, float] = {}
    score, open_until = 0.0, -1
    for rank, (left, right) in enumerate(merges):
        if rank > open_until:
            score = -float(rank)
        scores.setdefault(left + right, score)
        open_until = max(open_until, last[left + right])
    return scores


def _same_order(ours: list[tuple[str, str]], theirs: list[tuple[str, str]], scores: Mapping[str, float]) -> bool:
    """Whether two lists hold the same merges, the pieces that share a score with others in the same order."""
    sizes: dict[float, set[str]] = {}
    for piece, score in scores.items():
        sizes.setdefault(score, set()).add(piece)

    def tied(merges: list[tuple[str, str]]) -> list[tuple[int, str]]:
        return [(len(left), left + right) for left, right in merges if len(sizes.get(scores[left + right], ())) > 1]

    return set(ours) == set(theirs) and [size for size, _ in tied(ours)] == [size for size, _ in tied(theirs)]


def _prefix(pipeline: Tokenizer) -> bool:
    """Whether a pipeline puts a space before a text. Raises TokenizerError for what else it does before merging."""
    parts = [
        part
        for stage in (pipeline.normalizer, pipeline.pre_tokenizer)
        if stage
        for part in _flat(json.loads(stage.__getstate__()))
    ]
    prefix = False
    for part in parts:
        match part:
            case {"type": "Prepend", "prepend": mark} if mark == SPACE:
                prefix = True
            case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme} if mark == SPACE:
                prefix |= scheme != "never"
            case {"type": "Replace", "pattern": {"String": " "}, "content": mark} if mark == SPACE:
                pass
            case {"type": "Split", "pattern": {"String": " "}}:
                pass  # there are no spaces left
            case _:
                raise _unsaid(f"changes text with a {part['type']} first", "llama.cpp turns spaces into ▁ and no more.")
    return prefix


def _flat(stage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    parts = stage.get("normalizers") or stage.get("pretokenizers")
    return [part for inner in parts for part in _flat(inner)] if parts is not None else [stage]
