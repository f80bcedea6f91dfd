"""LitGPT's adapters become parts of a decoder's modules: what its finetuning scripts leave beside lit_model.pth.

lit_model.pth.lora        {"model": only lora_A and lora_B}; what they are, hyperparameters.yaml says
lit_model.pth.adapter     {"model": adapter_wte, gating_factor}: LLaMA-Adapter
lit_model.pth.adapter_v2  those, adapter_scale, adapter_bias, and the norms: LLaMA-Adapter V2
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lathe.checkpoint.documents import read_yaml
from lathe.checkpoint.filling import Checkpoint, named
from lathe.checkpoint.landing import A, B, Landing, Parts, column, parts, whole
from lathe.errors import CheckpointError, ConfigError
from lathe.families import litgpt
from lathe.families.keys import Keys
from lathe.model.spec import Attention
from lathe.transforms.prefix import Tokens
from lathe.transforms.terms import Lora
from lathe.transforms.whole import Scaled
from lathe.weights import pickled
from lathe.weights.rules import Refs
from lathe.weights.tensors import Ref

FORMS = {
    "lit_model.pth.lora": "LitGPT's LoRA",
    "lit_model.pth.adapter": "LitGPT's LLaMA-Adapter",
    "lit_model.pth.adapter_v2": "LitGPT's LLaMA-Adapter V2",
}
HYPERPARAMETERS = "hyperparameters.yaml"  # the options of the run
QKV = re.compile(r"transformer\.h\.(\d+)\.attn\.qkv")
PREFIX = re.compile(r"transformer\.h\.(\d+)\.attn\.(adapter_wte\.weight|gating_factor)")


def read(file: Path, model: Checkpoint) -> tuple[Parts, Lora | None]:
    """The parts in one of LitGPT's files, for this base, and the settings of a LoRA.

    Raises CheckpointError, ConfigError, MissingError, UnsafeError.
    """
    tree = pickled.open(file)
    tensors = named(tree.get("model") if isinstance(tree, dict) else tree, file)
    tensors = {litgpt.bare(name): ref for name, ref in tensors.items()}
    landing = Landing.of(model, litgpt.rules(replace(model.spec, tied=False)))
    if file.name.endswith(".lora"):
        settings, learned = _lora(read_yaml(file.parent / HYPERPARAMETERS))
        return parts(_unpacked(tensors, settings.rank, learned, landing), settings, landing), settings
    return _adapter(tensors, landing), None


def _lora(told: Mapping[str, Any]) -> tuple[Lora, list[bool]]:
    """The settings, and which of q, k and v have terms."""
    keys = Keys(told, file=HYPERPARAMETERS)
    learned = [keys.flag(f"lora_{name}", name != "key") for name in ("query", "key", "value")]
    settings = Lora(keys.size("lora_r"), keys.real("lora_alpha"), dropout=keys.real("lora_dropout", 0.0))
    if not 0 <= settings.dropout <= 1:
        raise keys.wrong("lora_dropout", settings.dropout, "a number from 0 to 1")
    return settings, learned


def _unpacked(tensors: Refs, rank: int, learned: list[bool], landing: Landing) -> Refs:
    """The same tensors in PEFT's words, those of q, k and v apart: of those that are learned, the As lie one below the
    other in one tensor, the Bs in another."""
    found: Refs = {}
    for name, ref in tensors.items():
        module, _, end = name.rpartition(".")
        key = {"lora_A": A, "lora_B": B}.get(end)
        if key is None or len(ref.shape) != 2:
            raise landing.foreign(ref)
        if not (match := QKV.fullmatch(module)):
            found[f"{module}.{key}"] = ref
            continue
        names = [f"model.layers.{match[1]}.self_attn.{part}_proj" for part in "qkv"]
        names = [part for part, does in zip(names, learned, strict=True) if does]
        if any(f"{part}.weight" not in landing.shapes for part in names):
            raise landing.foreign(ref)
        rows = [rank if key == A else landing.shapes[f"{part}.weight"][0] for part in names]
        if ref.shape[0] != sum(rows):
            flags = f"{HYPERPARAMETERS} says which of query, key and value have one"
            raise CheckpointError(f"{ref.source} has shape {list(ref.shape)}.", f"{flags}: {sum(rows)} rows in all.")
        start = 0
        for part, count in zip(names, rows, strict=True):
            found[f"{part}.{key}"] = ref[start : start + count]
            start += count
    return found


def _adapter(tensors: Refs, landing: Landing) -> Parts:
    """Prefixes, and of the second kind scales, biases and norms."""
    found: Parts = defaultdict(list)
    prefixes: dict[str, Refs] = defaultdict(dict)
    scales: dict[str, Refs] = defaultdict(dict)
    rest: Refs = {}
    for name, ref in tensors.items():
        module, _, end = name.rpartition(".")
        if match := PREFIX.fullmatch(name):
            prefixes[f"model.layers.{match[1]}.self_attn"][match[2]] = ref
        elif end in ("adapter_scale", "adapter_bias"):
            scales[module][end] = ref
        else:
            rest[name] = ref
    for module, own in prefixes.items():
        found[module].append(_prefix(module, own, landing))
    for module, own in scales.items():
        for name, part in _scaled(module, own, landing).items():
            found[name].append(part)
    whole(rest, landing, found)
    return dict(found)


def _prefix(module: str, own: Refs, landing: Landing) -> Tokens:
    one, spec = next(iter(own.values())), landing.spec
    number = int(module.split(".")[2])
    mixer = spec.layers[number].mixer if number < len(spec.layers) else None
    if len(own) != 2 or not isinstance(mixer, Attention):
        raise landing.foreign(one)
    tokens, gates = own["adapter_wte.weight"], own["gating_factor"]
    if len(tokens.shape) != 2 or tokens.shape[1] != spec.width:
        raise landing.foreign(tokens)
    if gates.shape not in ((1, 1, mixer.heads, 1), (1, mixer.heads, 1, 1)):  # until 2024 the second
        raise landing.foreign(gates)
    return Tokens(tokens.read(), gates.read().flatten(), as_litgpt=True)


def _scaled(module: str, own: Refs, landing: Landing) -> dict[str, Scaled]:
    one = next(iter(own.values()))
    if len(own) != 2:
        raise ConfigError(f"{one.source} has no partner.", "A module has both, adapter_scale and adapter_bias.")
    landed = {end: landing.rows(module, column(ref)) for end, ref in own.items()}
    found = {}
    for name in landed["adapter_scale"] or (module,):
        halves: list[Ref] = []
        for end in ("adapter_scale", "adapter_bias"):
            if name not in landed[end]:
                raise landing.foreign(own[end])
            landing.fit(name, landed[end][name], (landing.shapes[f"{name}.weight"][0], 1))
            halves.append(landed[end][name])
        found[name] = Scaled(*(half.read()[:, 0] for half in halves))
    return found
