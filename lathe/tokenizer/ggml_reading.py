"""GGUF's words for a tokenizer (`tokenizer.ggml.*`) become a vocabulary that gives the ids that llama.cpp gives.

Knows no file's form and no chat template's meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, models

from lathe.errors import MissingError, TokenizerError
from lathe.tokenizer import bytelevel
from lathe.tokenizer.vocab import NORMAL, Piece, Vocab, mark, numbered, scored

HERE = "tokenizer.ggml."
NAMED = {  # tokenizer_config.json's name -> GGUF's
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def read(metadata: Mapping[str, Any]) -> Vocab:
    """A GGUF file's tokenizer.

    Args:
        metadata: the keys `tokenizer.ggml.*` as plain values (lists of str, float and int; int; bool; str).

    Raises:
        MissingError: there is no tokenizer.
        TokenizerError: a key is missing, or names a tokenizer whose ids could not be given exactly.
    """

    def key(name: str, default: Any = None) -> Any:
        return metadata.get(HERE + name, default)

    model, tokens = key("model"), key("tokens")
    if model not in ("llama", "gpt2") or not tokens:
        if not tokens:
            raise MissingError("The GGUF file holds no tokenizer.")
        found = f"a tokenizer of the kind {model!r}"
        raise TokenizerError(f"The GGUF file holds {found}.", 'Lathe reads the kinds "llama" and "gpt2".')
    kinds = key("token_type", [NORMAL] * len(tokens))
    scores = key("scores", [0.0] * len(tokens))
    if not len(tokens) == len(kinds) == len(scores):
        raise TokenizerError("The GGUF file's tokens, token types and scores differ in number.")
    if model == "llama":
        pieces = [Piece(*piece) for piece in zip(tokens, scores, kinds, strict=True)]
        pipeline = scored(pieces, [], bool(key("add_space_prefix", True)), "The GGUF file")
        defaults, begins = {"bos_token": 1, "eos_token": 2}, True
    else:
        cut = _cut(key("pre", "default"))
        pipeline = _merged(tokens, kinds, key("merges"), cut)
        defaults, begins = {}, cut.bos
    ids = {name: key(theirs, defaults.get(name)) for name, theirs in NAMED.items()}
    names = {name: tokens[number] for name, number in ids.items() if number is not None and number < len(tokens)}
    ends = (key("eot_token_id"), key("eom_token_id"))
    return Vocab(
        pipeline,
        names,
        add_bos="bos_token" in names and bool(key("add_bos_token", begins)),
        add_eos="eos_token" in names and bool(key("add_eos_token", False)),
        ends=tuple(number for number in ends if number is not None),
    )


def _cut(pre: str) -> bytelevel.Cut:
    if pre not in bytelevel.CUTS:
        raise TokenizerError(
            f"The GGUF file's tokenizer cuts text in a way named {pre!r}, which Lathe does not know.",
            f"Known are {', '.join(sorted(bytelevel.CUTS))}.",
            "Use the model's Hugging Face folder instead.",
        )
    return bytelevel.CUTS[pre]


def _merged(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str] | None, cut: bytelevel.Cut) -> Tokenizer:
    if not merges:
        raise TokenizerError('The GGUF file\'s tokenizer of the kind "gpt2" lacks its merges.')
    pairs = [(merge[:at], merge[at + 1 :]) for merge in merges if (at := merge.find(" ", 1)) > 0]
    try:
        model = models.BPE(vocab=numbered(tokens, "The GGUF file"), merges=pairs, ignore_merges=cut.whole)
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"The GGUF file's merges do not fit its tokens: {error}.") from error
    pipeline = bytelevel.pipeline(model, cut)
    mark(pipeline, tokens, kinds)
    return pipeline
