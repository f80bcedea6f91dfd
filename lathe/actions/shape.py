"""Turns MODEL and --shape into a configuration, and opens the tokenizer that goes with it; knows no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe import hub
from lathe.errors import UsageError

if TYPE_CHECKING:
    from lathe.tokenizer import Tokenizer

CONTEXT = 512  # positions of a model whose shape does not say
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Shape:
    hidden_size: int | None = None
    """Width of the residual stream."""
    intermediate_size: int | None = None
    """Width inside each MLP."""
    num_hidden_layers: int | None = None
    """How many layers."""
    num_attention_heads: int | None = None
    """How many heads ask in each layer."""
    num_key_value_heads: int | None = None
    """How many heads answer; fewer than ask is grouped-query attention. By default as many."""
    head_dim: int | None = None
    """Channels of a head. By default hidden-size / num-attention-heads."""
    tie_word_embeddings: bool | None = None
    """Use one matrix for the embeddings and for the scores of the next token."""


def configuration(
    model: str, shape: Shape, context: int | None, checkpoints: Path
) -> tuple[dict[str, Any], Path | None]:
    """The config.json that `model` has, with the sizes in `shape`, and the folder or file its tokenizer is in.

    model: a folder, file, config.json, its text, or repo id; or a family by its `model_type`, which needs the four main
    sizes and has no tokenizer. context: a family's positions.
    """
    from lathe import checkpoint, families

    told = {name: value for name, value in asdict(shape).items() if value is not None}
    family = next((family for family in families.FAMILIES.values() if family.model_type == model), None)
    if family is not None and not Path(model).exists():
        lacking = [f"--shape.{name.replace('_', '-')}" for name in NEEDED if name not in told]
        if lacking:
            raise UsageError(
                f'"{model}" names a family, which has no size of its own.', fix=f"Give {', '.join(lacking)}."
            )
        named = {"architectures": [family.architecture], "model_type": family.model_type}
        return {**named, "max_position_embeddings": context or CONTEXT, **told}, None
    if model.startswith("{"):
        return told_by(model) | told, None
    place = hub.find(model, checkpoints, weights=False)
    config, _ = checkpoint.shape(place)
    return config | told, place.parent if place.suffix == ".json" else place


def told_by(text: str) -> dict[str, Any]:
    """The configuration that is written out. Raises UsageError."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UsageError(f"MODEL begins like a configuration and is not JSON: {error}.") from None
    return dict(config)


def open_tokenizer(place: Path) -> Tokenizer:
    """The tokenizer in a model's folder, or in its GGUF file."""
    from lathe import checkpoint
    from lathe.tokenizer import Tokenizer

    return Tokenizer.open(place) if place.is_dir() else checkpoint.open(place).tokenizer()


def adopted(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The configuration of the same model for another tokenizer: its vocabulary, and the ids that it ends with."""
    kept = {key: value for key, value in config.items() if not key.endswith("_token_id")}
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return {**kept, "vocab_size": tokenizer.vocab_size, **{key: id for key, id in ids.items() if id is not None}}
