"""What type each tensor of a GGUF file is stored in: the mixtures that llama.cpp chooses, from names and shapes alone.

A mixture spends more bits where a model forgives least: on its head, on values, and on some layers' way out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lathe.errors import UsageError, did_you_mean

# ggml's number for each kind of file, and the type that most of its tensors have
KINDS = {
    "F32": (0, "F32"),
    "F16": (1, "F16"),
    "BF16": (32, "BF16"),
    "Q8_0": (7, "Q8_0"),
    "Q4_0": (2, "Q4_0"),
    "Q4_K_M": (15, "Q4_K"),
}
WHOLE = ("F32", "F16", "BF16")
ROW = {"Q4_K": 256, "Q5_K": 256, "Q6_K": 256}  # values in a block, where it is not 32
NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that are no whole blocks of 256
EXACT = re.compile(r".*(_norm|ffn_gate_inp|ffn_gate_inp_shexp|position_embd)\.weight|.*(?<!weight)")
VALUES = re.compile(r".*attn_(v|qkv|kv_b)\.weight")


@dataclass(frozen=True)
class _Model:
    """What a choice goes by, beyond the tensor. values: the names of all tensors that make values, in their order."""

    falcon: bool
    layers: int
    experts: int
    wide: bool
    tied: bool
    values: list[str]


def described(kind: str) -> dict[str, Any]:
    """What the metadata of a file of one of KINDS says of it.

    Raises:
        UsageError: there is no such kind.
    """
    if kind not in KINDS:
        raise UsageError(
            f"{kind!r} is no type that GGUF is written in.", f"Choose {', '.join(KINDS)}.", did_you_mean(kind, KINDS)
        )
    return {"general.file_type": KINDS[kind][0], **({} if kind in WHOLE else {"general.quantization_version": 2})}


def mix(kind: str, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str, Any], str]:
    """The type of each tensor in a file of one of KINDS, as `gguf.write` asks for it.

    metadata, shapes: of that file. Vectors, norms, routers and positions stay F32, as llama.cpp wants them.
    """
    described(kind)
    arch = metadata["general.architecture"]
    layers, heads = metadata[f"{arch}.block_count"], metadata[f"{arch}.attention.head_count"]
    model = _Model(
        falcon=arch == "falcon",
        layers=layers,
        experts=metadata.get(f"{arch}.expert_count", 0),
        wide=layers == 80 and metadata.get(f"{arch}.attention.head_count_kv", heads) != heads,
        tied="output.weight" not in shapes,
        values=sorted((name for name in shapes if VALUES.fullmatch(name)), key=_layer),
    )
    usual = KINDS[kind][1]
    types = {name: _type(name, shape, usual, model) for name, shape in shapes.items()}
    return lambda name, _: types[name]


def _type(name: str, shape: tuple[int, ...], usual: str, model: _Model) -> str:
    if len(shape) < 2 or EXACT.fullmatch(name):
        return "F32"
    if usual in WHOLE:
        return usual
    chosen = _chosen(name, shape[-1], usual, model)
    if shape[-1] % ROW.get(chosen, 32):
        chosen = NARROWER.get(chosen, chosen)
    return chosen if shape[-1] % 32 == 0 else "F16"


def _chosen(name: str, row: int, usual: str, model: _Model) -> str:
    """The type that a tensor would have if any row would do."""
    medium = usual == "Q4_K"
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        return "Q8_0" if usual == "Q8_0" or model.falcon or row % ROW.get(usual, 32) else "Q6_K"
    if name in model.values:
        if model.experts == 8:
            return "Q8_0"
        better = medium and _counts(model.values.index(name), len(model.values))
        return "Q6_K" if better else "Q5_K" if medium and model.wide else usual
    if model.experts == 8 and name.endswith("attn_k.weight"):
        return "Q8_0"
    if medium and "ffn_down" in name:
        layer = _layer(name)
        if model.falcon:
            return "Q6_K" if layer < model.layers // 16 else "Q5_K" if _counts(layer, model.layers) else usual
        return "Q6_K" if _counts(layer, model.layers) else usual
    if medium and model.experts == 8 and not model.falcon and name.endswith("attn_output.weight"):
        return "Q5_K"
    return usual


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _counts(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
