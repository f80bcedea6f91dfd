"""Matrices as the library compressed-tensors stores them (llm-compressor, vLLM), and as Lathe does in 8 and 4 bits.

pack-quantized     weight_packed N K/w, in words of 32 bits along rows   weight_shape   weight_scale N G
int-quantized      weight N K, int8                                      weight_scale N G, N 1 or 1
float-quantized    weight N K, floats of 8 bits                          weight_scale N 1, 1, or one for a block
naive-quantized    as the two before
each with          weight_zero_point, as weight_scale, unless it is symmetric; weight_g_idx K where columns were sorted

https://github.com/vllm-project/compressed-tensors. What it says of activations, which a processor of vLLM's may round
too, is for those who do so: here they keep their precision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lathe.checkpoint.quantized.matrices import (
    FLOATS,
    FLOATS8,
    Matrices,
    Parts,
    bounded,
    exact,
    factors,
    in_order,
    needed,
    shaped,
    swapped,
    typed,
    whole,
)
from lathe.checkpoint.quantized.written import WRITE
from lathe.errors import CheckpointError
from lathe.families.keys import Keys
from lathe.transforms.grids import GROUP
from lathe.weights.coded import Coded, folded, made, scaled, unpacked
from lathe.weights.rules import Drop, Rule
from lathe.weights.tensors import Ref

FORMS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
PARTS = ("weight", "weight_packed", "weight_shape", "weight_zero_point", "weight_g_idx")
# For activations and caches in fewer bits.
OTHERS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point", "k_scale", "v_scale", "q_scale")


@dataclass(frozen=True)
class Scheme:
    """How the matrices of some modules are stored. targets: their names, expressions of these, or their class."""

    targets: tuple[str, ...]
    form: str
    bits: int
    floats: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None

    def named(self, module: str) -> bool:
        """Whether a target is the module's name."""
        return any(
            re.match(target[3:], module) if target.startswith("re:") else target == module for target in self.targets
        )

    @property
    def every(self) -> bool:
        """Whether a target is a class of modules, as Linear."""
        return any(re.fullmatch(r"[A-Z]\w*", target) for target in self.targets)


def compressed(keys: Keys, dtype: torch.dtype) -> list[Rule]:
    keys.ignore("quantization_status", "global_compression_ratio", "kv_cache_scheme", "ignore", "version")
    keys.ignore("quant_method", "run_compressed", "dequantize", "use_optimized_inference")
    form = keys.take("format", "dense")
    sparsity = keys.part("sparsity_config")
    sparsity.expect("format", "dense")
    sparsity.ignore("sparsity_structure", "global_sparsity", "registry_requires_subclass", "targets", "ignore")
    if keys.take("transform_config", {}):
        raise keys.wrong("transform_config", keys.take("transform_config"), "empty: no transforms are known here")
    groups = keys.part("config_groups")
    schemes = [_scheme(groups.part(name), form) for name in groups.config]

    def read(module: str, parts: Parts) -> Ref:
        scheme = next((s for s in schemes if s.named(module)), None) or next((s for s in schemes if s.every), None)
        if scheme is None:
            found = f"{module} is quantized, and no group of quantization_config has it among its targets."
            raise CheckpointError(found, "Nothing else says how.")
        return _matrix(module, parts, scheme, dtype)

    return [*(Drop(f"*.{name}") for name in OTHERS), Matrices("weight_scale", PARTS, read, WRITE)]


def _scheme(keys: Keys, form: str) -> Scheme:
    keys.ignore("input_activations", "output_activations")
    form = keys.take("format", form)
    if form not in FORMS:
        raise keys.wrong("format", form, f"one of {', '.join(FORMS)}")
    targets = keys.take("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise keys.wrong("targets", targets, "a list of names")
    weights = keys.part("weights")
    weights.ignore("dynamic", "observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype", "symmetric")
    strategy, kind, block = weights.take("strategy", "tensor"), weights.take("type", "int"), None
    if strategy not in ("tensor", "channel", "group", "block"):
        raise weights.wrong("strategy", strategy, "tensor, channel, group or block")
    if kind not in ("int", "float") or (kind == "float" and form == "pack-quantized"):
        raise weights.wrong("type", kind, f"int or float, as {form} has them")
    bits = weights.size("num_bits", 8, most=8)
    if bits not in ((2, 4, 8) if form == "pack-quantized" else (4, 8) if kind == "int" else (8,)):
        raise weights.wrong("num_bits", bits, "8, or where words of 32 bits are filled 2 or 4")
    if strategy == "block":
        high, wide = weights.numbers("block_structure", count=2)
        block = int(high), int(wide)
    weights.ignore("block_structure")
    group = weights.size("group_size") if strategy == "group" else None
    weights.ignore("group_size")
    return Scheme(tuple(targets), form, bits, kind == "float", strategy, group, block)


def _matrix(module: str, parts: Parts, scheme: Scheme, dtype: torch.dtype) -> Ref:
    zero = parts.get("weight_zero_point")
    if scheme.form == "pack-quantized":
        words, size, scales = needed(module, parts, "weight_packed", "weight_shape", "weight_scale")
        rows, inputs = (int(n) for n in shaped(size, 2).read())
        shaped(typed(words, torch.int32), rows, -(-inputs * scheme.bits // 32))
        codes, half = unpacked(words, scheme.bits, inputs, 1), 1 << scheme.bits - 1
        signed = codes.plus(-half)
        if zero is not None and zero.dtype == torch.int32:  # as packed as the codes, down columns
            shaped(zero, -(-rows * scheme.bits // 32), scales.shape[-1])
            zero = unpacked(zero, scheme.bits, rows, 0).plus(-half)
    else:
        signed, scales = needed(module, parts, "weight", "weight_scale")
        typed(signed, *(FLOATS8 if scheme.floats else (torch.int8,)))
        if len(signed.shape) != 2:
            raise CheckpointError(f"{signed.source} has shape {list(signed.shape)}.", "A quantized matrix has two.")
        rows, inputs = signed.shape
    groups, block = parts.get("weight_g_idx"), (1, scheme.group or inputs)
    if scheme.strategy == "tensor":
        block = rows, inputs
    elif scheme.block:
        block = scheme.block
    count = -(-rows // block[0]), -(-inputs // block[1])
    scales, zero = _table(typed(scales, *FLOATS), count), zero and _table(zero, count)
    if groups is not None:
        groups = bounded(shaped(groups, inputs), count[1])
    numbers = scaled(signed, scales, dtype, block, zero, groups)
    zeros = None if zero is None else zero.plus(8)  # of codes as they are stored
    known = _known(parts, scheme, signed, scales, zeros, block, groups)
    if known is None:
        return numbers
    kind, kept = known

    def sure() -> bool:
        held = kind in ("int8", "fp8") or (exact(scales) and (zeros is None or whole(zeros)))
        return held and in_order(groups, block[1])

    return Coded(numbers.shape, dtype, numbers.fetch, numbers.source, kind=kind, parts=kept, sure=sure)


def _table(values: Ref, count: tuple[int, int]) -> Ref:
    """Scales, or zero points, as a matrix: they may have one dimension or none where they are few."""
    if len(values.shape) != 2 and max(count) == _size(values) and 1 in count:
        values = folded(values, count)
    return shaped(values, *count)


def _size(ref: Ref) -> int:
    return torch.Size(ref.shape).numel()


def _known(
    parts: Parts,
    scheme: Scheme,
    signed: Ref,
    scales: Ref,
    zeros: Ref | None,
    block: tuple[int, int],
    groups: Ref | None,
) -> tuple[str, dict[str, Ref]] | None:
    """The kind of the codes and their parts, where they are one that is computed with as it is."""
    rows, inputs = signed.shape
    packed = scheme.form == "pack-quantized"
    grouped = block[0] == 1 and block[1] % GROUP == inputs % GROUP == 0
    if packed and scheme.bits == 4 and grouped:
        codes = made(parts["weight_packed"], (rows, inputs // 2), torch.uint8, swapped)
        kind = "int4" if zeros is None else "int4-zp"
        return kind, {"codes": codes, **factors(scales, inputs, block[1], zeros)}
    if zeros is not None or scheme.bits != 8:
        return None
    if packed:
        signed = made(parts["weight_packed"], (rows, inputs), torch.int8, lambda words: _bytes(words)[:, :inputs])
    if scheme.strategy == "group" and grouped and signed.dtype == torch.int8:
        return "int8-32", {"codes": signed, **factors(scales, inputs, block[1], None)}
    if scheme.strategy == "channel" and groups is None:
        kept = {"codes": signed, "scales": scales.to(torch.float32)}
        return {torch.float8_e4m3fn: ("fp8", kept), torch.int8: ("int8", kept)}.get(signed.dtype)
    return None


def _bytes(words: Tensor) -> Tensor:
    """Words of four codes, 128 more than whole numbers, as these."""
    return (words.contiguous().view(torch.uint8) ^ 0x80).view(torch.int8)
