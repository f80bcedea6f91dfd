"""A decoder, or tensors by their names in memory, become a folder in Hugging Face form: whole, or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe import families
from lathe.checkpoint.filling import main_dtype, slots
from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.weights import rules, safetensors
from lathe.weights.tensors import Ref

if TYPE_CHECKING:
    from lathe.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000  # what transformers and the hub call one shard


def save(
    folder: Path | str,
    model: Decoder | Mapping[str, Ref],
    config: Mapping[str, Any],
    *,
    generation: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    files: Mapping[str, str] | None = None,
    replace: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's folder in Hugging Face form: safetensors, config.json, generation_config.json, the tokenizer.

    model: a decoder, or tensors by their names in memory. files: further text files by name (recipe.yaml). The folder
    is written beside its place and renamed into it when it is whole.

    Raises:
        UsageError: the folder exists, is not empty, and `replace` is not given.
    """
    folder = Path(folder)
    if folder.exists() and not replace and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already.", "", "Choose another place, or remove it first.")
    if isinstance(model, Decoder):
        model = {name: Ref.of(tensor.detach()) for name, tensor in slots(model)}
    family, spec = families.find(config), families.read(config)
    # Both names of the family, of which a reader may want either.
    config = {"architectures": [family.architecture], "model_type": family.model_type, **config}
    named = rules.back(families.rules(config, spec), dict(model))
    dtype = main_dtype(named.values())

    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        _write_shards(beside, named, shard_bytes)
        _write_json(beside / "config.json", {**config, _dtype_key(config): str(dtype).removeprefix("torch.")})
        if generation:
            _write_json(beside / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save(beside)
        for name, text in (files or {}).items():
            (beside / name).write_text(text, encoding="utf-8")
        _move(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_shards(folder: Path, refs: Mapping[str, Ref], limit: int) -> None:
    """One file, or several of at most `limit` bytes each (unless one tensor is larger) and their index."""
    shards: list[dict[str, Ref]] = [{}]
    for name, ref in refs.items():
        if shards[-1] and sum(r.nbytes for r in shards[-1].values()) + ref.nbytes > limit:
            shards.append({})
        shards[-1][name] = ref
    if len(shards) == 1:
        safetensors.write(folder / "model.safetensors", shards[0])
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        safetensors.write(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    total = sum(ref.nbytes for ref in refs.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _dtype_key(config: Mapping[str, Any]) -> str:
    """What the configuration's dialect calls the type of the weights (transformers 4 and 5)."""
    return "torch_dtype" if "torch_dtype" in config else "dtype"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move(source: Path, place: Path) -> None:
    """Rename a finished folder into its place; what was there goes only when the new one stands."""
    old = None
    if place.exists():
        old = place.parent / f".{place.name}.old-{os.getpid()}"
        place.rename(old)
    source.rename(place)
    if old is not None:
        shutil.rmtree(old)
