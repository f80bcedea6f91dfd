"""What quantization_config says becomes the rules by which a checkpoint's matrices are read, and are written.

A method is one function from that configuration to rules, in a file that says what its parts look like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lathe import families
from lathe.checkpoint.documents import read_json
from lathe.checkpoint.quantized import bitsandbytes, compressed, float8, gptq, written
from lathe.errors import ConfigError, UsageError, did_you_mean
from lathe.families.keys import Keys
from lathe.weights.coded import Coded
from lathe.weights.rules import Refs, Rule, Transpose, back

KEY = "quantization_config"
OLDER = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
METHODS: dict[str, Callable[[Keys, torch.dtype], list[Rule]]] = {
    "gptq": gptq.gptq,
    "awq": gptq.awq,
    "compressed-tensors": compressed.compressed,
    "fp8": float8.fp8,
    "fbgemm_fp8": float8.fp8,
    "bitsandbytes": bitsandbytes.bitsandbytes,
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
TARGETS = {"int8": written, "int4": written, "int4-zp": written, "fp8": written, "nf4": bitsandbytes}


def amended(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with what older programs wrote into a file beside it."""
    for name, method in OLDER.items():
        if KEY not in config and (folder / name).is_file():
            return {**config, KEY: {"quant_method": method, **read_json(folder / name)}}
    return config


def rules(config: Mapping[str, Any], laws: Sequence[Rule]) -> tuple[str, list[Rule]]:
    """What the weights of a model with this config.json are quantized by, in a word, and the rules that read them; they
    come before the laws of its family. Nothing where they are not, or where the family reads them itself.

    Raises:
        ConfigError: there is no such method here, or something in it is not understood.
    """
    told = config.get(KEY) or (config.get("text_config") or {}).get(KEY)
    if told is None or KEY in families.find(families.plain(config)).spent:
        return "", []
    method = told.get("quant_method") if isinstance(told, Mapping) else None
    if method is None and isinstance(told, Mapping) and (told.get("load_in_4bit") or told.get("load_in_8bit")):
        method = "bitsandbytes"
    if method not in METHODS:
        raise ConfigError(
            f'config.json says that the weights are quantized ("{KEY}", {method}).',
            f"Known are {', '.join(METHODS)}, and mxfp4 for gpt-oss.",
            did_you_mean(str(method), METHODS) or "Take a copy of the model in bfloat16, or one in GGUF.",
        )
    if any(isinstance(law, Transpose) for law in laws):
        found = "The weights are quantized, and this family's files keep matrices the other way round than codes do."
        raise ConfigError(found, "Which of the two these are is not said.", "Take a copy that is not quantized.")
    return method, _laws(told, dtype(config))


def _laws(told: Mapping[str, Any], dtype: torch.dtype) -> list[Rule]:
    keys = Keys(told, f"{KEY}.", noise=())
    found = METHODS[told.get("quant_method", "bitsandbytes")](keys, dtype)
    keys.check()
    return found


def dtype(config: Mapping[str, Any]) -> torch.dtype:
    """What numbers are computed in from codes: the type of the model before it was quantized, as far as it is told."""
    for part in (config, config.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if part.get(key) in DTYPES:
                return DTYPES[part[key]]
    return torch.bfloat16


def packed(plain: Refs, coded: Refs) -> tuple[Refs, dict[str, Any]]:
    """The tensors of a file, with codes in the place of those that may have them there, and its quantization_config.

    plain, coded: by the names of the family's files. What is no matrix of its own there stays as it is.
    """
    codes = {name: ref for name, ref in coded.items() if isinstance(ref, Coded) and len(ref.shape) == 2}
    if not codes:
        found = "No matrix of this model can be written in codes: its family's files keep them in stacks, or turned."
        raise UsageError(found, "", "GGUF has types for it: --to Q8_0, Q4_0 or Q4_K_M.")
    matrices = {name.removesuffix(".weight"): ref for name, ref in codes.items()}
    ways = {TARGETS[ref.kind] for ref in codes.values()}
    assert len(ways) == 1, "one configuration says how all are stored"
    way = ways.pop()
    others = {name.removesuffix(".weight") for name, ref in plain.items() if len(ref.shape) == 2} - matrices.keys()
    told = way.told(matrices, {*others, "lm_head"})
    return back(_laws(told, dtype({})), {**plain, **codes}), told
