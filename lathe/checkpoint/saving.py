"""A decoder, or tensors by their names in memory, become a model on disk in one of the hands: whole, or not at all.

hf      a folder: safetensors, config.json, generation_config.json, the tokenizer's files
litgpt  a folder: lit_model.pth, model_config.yaml, and the same small files
gguf    one file, with the tokenizer in it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from lathe import families
from lathe.checkpoint import merging, placing, quantized
from lathe.checkpoint.documents import write_json
from lathe.checkpoint.filling import main_dtype
from lathe.checkpoint.packing import pack
from lathe.errors import UsageError, did_you_mean
from lathe.families import litgpt
from lathe.model.blank import blank
from lathe.model.decoder import Decoder
from lathe.weights import pickled, rules, safetensors
from lathe.weights.rules import Refs
from lathe.weights.tensors import Ref

if TYPE_CHECKING:
    from lathe.tokenizer import Tokenizer

FORMS = ("hf", "litgpt", "gguf")
SHARD_BYTES = 5_000_000_000  # what transformers and the hub call one shard
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save(
    place: Path | str,
    model: Decoder | Mapping[str, Ref],
    config: Mapping[str, Any],
    *,
    form: str = "hf",
    dtype: str | None = None,
    generation: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    files: Mapping[str, str] | None = None,
    more: Callable[[Path], None] | None = None,
    settings: str | None = None,
    coded: Mapping[str, Ref] | None = None,
    replace: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model, a piece of a tensor in memory at a time, beside its place, and rename it there when it is whole.

    model: a decoder, or tensors by their names in memory. config, generation: config.json and generation_config.json.
    tokenizer: its files are written beside the weights, or into the GGUF file. form: one of FORMS. dtype: what weights
    become: F32, F16 or BF16, in GGUF also one of its mixtures, as Q4_K_M; None keeps each as it is. files: further text
    files by name (recipe.yaml), in a folder. more: writes whatever else shall be in the folder, before it is there.
    settings: the text of model_config.yaml, where LitGPT itself described the model; None describes it, which not all
    models can be. coded: the matrices (`weights.coded.Coded`) that an hf folder keeps in codes, by names in memory.
    shard_bytes: how large a file of weights becomes before another is begun.

    Raises:
        UsageError: something is at `place` and `replace` is not given; no such form; no room on the disk.
        ConfigError: the form has no words for this model.
    """
    place, config = Path(place), families.plain(config)
    if form not in FORMS:
        fix = did_you_mean(form, FORMS)
        raise UsageError(f'"{form}" is no format that Lathe writes.', f"Known are {', '.join(FORMS)}.", fix)
    if not replace:
        placing.refuse(place)
    if isinstance(model, Decoder):
        model = merging.weights(model)
    if dtype in DTYPES and form != "gguf":  # which keeps some tensors wide, and knows which
        learned = {name for name, _ in blank(families.read(config)).named_parameters()}  # buffers stay as they are
        model = {name: ref.to(DTYPES[dtype]) if name in learned else ref for name, ref in model.items()}
    if "lm_head.weight" in model and families.read(config).tied:  # an adapter parted them
        config = {**config, "tie_word_embeddings": False}
    config = described(config)
    smaller = bool(coded) or dtype not in (None, *DTYPES)
    placing.room(place, 0 if smaller else sum(ref.nbytes for ref in model.values()))
    with placing.beside(place, replace) as written:
        if form == "gguf":
            _write_gguf(written, dict(model), config, dtype, tokenizer)
            return
        written.mkdir()
        if form == "hf":
            _write_hugging_face(written, dict(model), config, shard_bytes, coded or {})
        else:
            _write_litgpt(written, dict(model), config, settings)
        if generation:
            write_json(written / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save(written)
            if form == "litgpt":
                tokenizer.complete(written)
            if form == "litgpt" and not (written / "tokenizer_config.json").exists():
                # LitGPT opens no folder without this file and its class.
                write_json(written / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        for name, text in (files or {}).items():
            (written / name).write_text(text, encoding="utf-8")
        if more is not None:
            more(written)


def _write_hugging_face(
    folder: Path, model: Refs, config: Mapping[str, Any], shard_bytes: int, coded: Mapping[str, Ref]
) -> None:
    laws = families.rules(config, families.read(config))
    named = stored = rules.back(laws, model)
    if coded:
        stored, told = quantized.packed(named, rules.back(laws, {**model, **coded}))
        config = {**config, quantized.KEY: told}
    shards = cut(stored, shard_bytes)
    found = {file_name(number, len(shards)): shard for number, shard in enumerate(shards, 1)}
    for name, shard in found.items():
        safetensors.write(folder / name, shard)
    if len(found) > 1:
        write_index(folder, found)
    write_config(folder, named, config)


def _write_litgpt(folder: Path, model: Refs, config: Mapping[str, Any], settings: str | None) -> None:
    spec = families.read(config)
    # Before anything is written: some models LitGPT cannot have.
    text = settings if settings is not None else yaml.safe_dump(litgpt.settings(config, spec))
    named = rules.back(litgpt.rules(spec), model)
    pickled.write(folder / "lit_model.pth", named)
    (folder / "model_config.yaml").write_text(text, encoding="utf-8")
    write_config(folder, named, config)


def _write_gguf(
    file: Path, model: Refs, config: Mapping[str, Any], dtype: str | None, tokenizer: Tokenizer | None
) -> None:
    pack(
        file, model, config, dtype or kept(main_dtype(model.values())), {} if tokenizer is None else tokenizer.to_gguf()
    )


def kept(dtype: torch.dtype) -> str:
    """What GGUF calls a type of stored weights; a wider one for those that it does not have."""
    return next((name for name, known in DTYPES.items() if known == dtype), "F32")


def untied(model: Refs, tied: bool) -> Refs:
    """The tensors for a hand that has no word for a tied head: one tensor under two names, which is stored once."""
    return {**model, "lm_head.weight": model["model.embed_tokens.weight"]} if tied else model


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the text model with both names of its family, of which a reader may want either."""
    config = families.plain(config)
    family = families.find(config)
    return {"architectures": [family.architecture], "model_type": family.model_type, **config}


def write_config(folder: Path, named: Refs, config: Mapping[str, Any]) -> None:
    # What the configuration's dialect calls the type of the weights (transformers 4 and 5).
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    dtype = str(main_dtype(named.values())).removeprefix("torch.")
    write_json(folder / "config.json", {**config, key: dtype})


def cut(refs: Refs, limit: int) -> list[Refs]:
    """What each of several files holds, at most `limit` bytes, unless one tensor is larger."""
    shards: list[Refs] = [{}]
    for name, ref in refs.items():
        if shards[-1] and sum(r.nbytes for r in shards[-1].values()) + ref.nbytes > limit:
            shards.append({})
        shards[-1][name] = ref
    return shards


def file_name(number: int, count: int) -> str:
    """What is number `number`, from 1, of `count` files of weights."""
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def write_index(folder: Path, files: Mapping[str, Refs]) -> None:
    """Say which tensor is in which file."""
    where = {name: file for file, refs in files.items() for name in refs}
    total = sum(ref.nbytes for refs in files.values() for ref in refs.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
