"""Matrices of floats of 8 bits with scales for blocks, rows or all of them, as DeepSeek, Qwen and others publish them.

fp8          weight N K   weight_scale_inv, for each block of weight_block_size (DeepSeek-V3, arXiv:2412.19437), or one
fbgemm_fp8   weight N K   weight_scale N 1

Despite its name, weight_scale_inv is what weights are multiplied by.
"""

from __future__ import annotations

import torch

from lathe.checkpoint.quantized.matrices import FLOATS, FLOATS8, Matrices, Parts, needed, shaped, typed
from lathe.families.keys import Keys
from lathe.weights.coded import Coded, folded, scaled
from lathe.weights.rules import Drop, Rule
from lathe.weights.tensors import Ref

SCALES = ("weight_scale_inv", "weight_scale")
NOISE = """
    quant_method activation_scheme fmt scale_fmt modules_to_not_convert modules_to_convert ignored_layers
    activation_scale_ub dequantize kv_cache_scheme expert_dtype
""".split()


def fp8(keys: Keys, dtype: torch.dtype) -> list[Rule]:
    keys.ignore(*NOISE)
    keys.expect("expert_dtype", "fp8")
    block = keys.take("weight_block_size", None)
    if block is not None and not (isinstance(block, list) and len(block) == 2 and all(_count(n) for n in block)):
        raise keys.wrong("weight_block_size", block, "two sizes, as in [128, 128]")

    def read(module: str, parts: Parts) -> Ref:
        (codes,) = needed(module, parts, "weight")
        scales = next(parts[name] for name in SCALES if name in parts)
        rows, inputs = typed(codes, *FLOATS8).shape[0], codes.shape[-1]
        shaped(codes, rows, inputs)
        typed(scales, *FLOATS, torch.float8_e8m0fnu)
        size = torch.Size(scales.shape).numel()
        if size == 1:
            one = folded(scales, (1, 1)) if len(scales.shape) < 2 else scales
            return scaled(codes, one, dtype, (rows, inputs))
        if size == rows and block is None:
            each = folded(scales, (rows, 1)) if len(scales.shape) < 2 else scales
            numbers = scaled(codes, shaped(each, rows, 1), dtype, (1, inputs))
            if codes.dtype != torch.float8_e4m3fn:
                return numbers
            kept = {"codes": codes, "scales": each.to(torch.float32)}
            return Coded(numbers.shape, dtype, numbers.fetch, numbers.source, kind="fp8", parts=kept)
        high, wide = block or (128, 128)
        return scaled(codes, shaped(scales, -(-rows // high), -(-inputs // wide)), dtype, (high, wide))

    dropped = [Drop(f"*.{name}") for name in ("activation_scale", "input_scale", "input_scale_ub")]
    return [*dropped, *(Matrices(name, ("weight",), read, {}) for name in SCALES)]


def _count(n: object) -> bool:
    return type(n) is int and n > 0
