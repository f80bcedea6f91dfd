"""Tensors by their names in memory, a configuration and a vocabulary become one GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lathe import families
from lathe.errors import CheckpointError
from lathe.families import ggml
from lathe.weights import gguf, rules
from lathe.weights.tensors import Ref

TOKENS, SCORES, TYPES = (f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
UNUSED = 5  # llama.cpp's number for the type of a token that never occurs


def pack(
    path: Path, tensors: Mapping[str, Ref], config: Mapping[str, Any], kind: str, vocabulary: Mapping[str, Any]
) -> None:
    """Write a model to a new file in one of ggml.KINDS ("F16", "Q4_K_M", ...), a piece of a tensor at a time.

    vocabulary: the tokenizer in GGUF's words (`Tokenizer.to_gguf`); nothing for a file that only Lathe shall read.

    Raises:
        ConfigError: GGUF has no word for something in the model.
        CheckpointError: the vocabulary has more tokens than the model, or a tensor does not fit its type.
    """
    config = families.plain(config)
    spec = families.read(config)
    settings = ggml.settings(spec)
    refs = rules.back([*ggml.rules(config, spec), *families.tie(spec)], dict(tensors))
    refs |= {name: Ref.of(torch.tensor(values), name) for name, values in settings.items()}
    shapes = {name: ref.shape for name, ref in refs.items()}
    metadata = ggml.metadata(config, spec)
    ggml.check(spec, {**metadata, **settings}, shapes)
    metadata |= {**ggml.described(kind), **_padded(vocabulary, spec.vocab)}
    gguf.write(path, metadata, refs, ggml.mix(kind, metadata, shapes))


def _padded(vocabulary: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A vocabulary with a token for each row of the embedding, as llama.cpp wants it."""
    filled = dict(vocabulary)
    count = len(filled.get(TOKENS, ()))
    if not count:
        return filled
    if count > size:
        raise CheckpointError(
            f"The tokenizer has {count} tokens, the model {size}.",
            fix="Check that tokenizer and weights are of one model.",
        )
    more = range(count, size)
    for name, values in ((TOKENS, [f"[PAD{n}]" for n in more]), (SCORES, [-1000.0] * len(more))):
        if name in filled:
            filled[name] = [*filled[name], *values]
    if more or TYPES in filled:
        filled[TYPES] = [*filled.get(TYPES, [1] * count), *[UNUSED] * len(more)]
    return filled
