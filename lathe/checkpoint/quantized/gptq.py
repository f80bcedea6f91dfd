"""Matrices as GPTQ's and AWQ's programs store them: words of 32 bits along one dimension, zero points, float16 scales.

GPTQ (AutoGPTQ, GPTQModel; arXiv:2210.17323)   qweight K/w N   qzeros G N/w   scales G N   g_idx K   w numbers in a word
AWQ, version gemm (AutoAWQ; arXiv:2306.00978)   qweight K N/w   qzeros G N/w   scales G N

GPTQ's first format keeps zero points less one; `gptq_v2` keeps them as they are. AWQ's numbers lie in a word in an
order that suited a kernel.
"""

from __future__ import annotations

import torch

from lathe.checkpoint.quantized.matrices import (
    FLOATS,
    Matrices,
    Parts,
    bounded,
    eights,
    exact,
    fours,
    in_order,
    needed,
    shaped,
    typed,
)
from lathe.families.keys import Keys
from lathe.transforms.grids import GROUP
from lathe.weights.coded import Coded, scaled, unpacked
from lathe.weights.rules import Rule
from lathe.weights.tensors import Ref

BITS = (2, 3, 4, 8)
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word of AWQ's its first, second, ... number lies
# How a checkpoint was made, and which kernel its maker had in mind.
HISTORY = """
    damp_percent damp_auto_increment static_groups true_sequential model_name_or_path model_file_base_name meta dataset
    tokenizer batch_size cache_block_outputs exllama_config use_exllama disable_exllama use_cuda_fp16 max_input_length
    module_name_preceding_first_block modules_in_block_to_quantize block_name_to_quantize model_seqlen pad_token_id
    backend lm_head act_group_aware offload_to_disk use_triton mse hyb_act quant_method is_marlin_format
    modules_to_not_convert do_fuse fuse_max_seq_len modules_to_fuse adapter desc_act rotation
""".split()


def gptq(keys: Keys, dtype: torch.dtype) -> list[Rule]:
    keys.ignore(*HISTORY)
    bits = keys.size("bits", most=8)
    if bits not in BITS:
        raise keys.wrong("bits", bits, f"one of {', '.join(map(str, BITS))}")
    group = keys.size("group_size", -1, least=-1)
    form = keys.take("checkpoint_format", None) or keys.take("format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise keys.wrong("checkpoint_format", form, "gptq or gptq_v2")
    keys.ignore("format")
    keys.expect("pack_dtype", "int32")
    symmetric = keys.take("sym", False) is True
    told = None if keys.take("dynamic", None) else bits  # else some modules have others, as their shapes say
    off = 1 if form == "gptq" else 0

    def read(module: str, parts: Parts) -> Ref:
        words, points, scales = needed(module, parts, "qweight", "qzeros", "scales")
        groups = parts.get("g_idx")
        some = told or (words.shape[0] * 32 // groups.shape[0] if groups else bits)
        inputs = words.shape[0] * 32 // some
        words = shaped(words, inputs * some // 32, scales.shape[-1])
        return _matrix(words, points, scales, groups, group, some, dtype, off, symmetric)

    return [Matrices("qweight", ("qzeros", "scales", "g_idx"), read, {})]


def _matrix(
    words: Ref,
    points: Ref,
    scales: Ref,
    groups: Ref | None,
    group: int,
    bits: int,
    dtype: torch.dtype,
    off: int,
    symmetric: bool,
) -> Ref:
    count, rows = typed(scales, *FLOATS).shape
    inputs = typed(words, torch.int32).shape[0] * 32 // bits
    size = group if group > 0 else inputs
    shaped(scales, -(-inputs // size), rows)
    shaped(typed(points, torch.int32), count, rows * bits // 32)
    if groups is not None:
        shaped(groups, inputs)
    codes = unpacked(words, bits, inputs, 0).transposed()
    zeros = unpacked(points, bits, rows, 1).plus(off).transposed()
    return _coded(codes, zeros, scales.transposed(), groups, size, bits, dtype, symmetric)


def awq(keys: Keys, dtype: torch.dtype) -> list[Rule]:
    keys.ignore(*HISTORY, "zero_point", "sym")
    for name in ("bits", "w_bit"):
        keys.expect(name, 4)
    version = keys.take("version", None) or keys.take("format", "gemm")
    keys.ignore("format")
    if str(version).lower() != "gemm":
        raise keys.wrong("version", version, "gemm")
    group = keys.size("group_size", keys.size("q_group_size", 128, least=-1), least=-1)

    def read(module: str, parts: Parts) -> Ref:
        words, points, scales = needed(module, parts, "qweight", "qzeros", "scales")
        inputs, rows = typed(words, torch.int32).shape[0], typed(scales, *FLOATS).shape[-1]
        size = group if group > 0 else inputs
        shaped(words, inputs, rows // 8)
        shaped(scales, -(-inputs // size), rows)
        shaped(typed(points, torch.int32), scales.shape[0], rows // 8)
        codes, zeros = (unpacked(some, 4, rows, 1, PLACES).transposed() for some in (words, points))
        return _coded(codes, zeros, scales.transposed(), None, size, 4, dtype)

    return [Matrices("qweight", ("qzeros", "scales"), read, {})]


def _coded(
    codes: Ref,
    zeros: Ref,
    scales: Ref,
    groups: Ref | None,
    size: int,
    bits: int,
    dtype: torch.dtype,
    symmetric: bool = False,
) -> Ref:
    """Numbers that know their codes: those of int4 or int8-32, if they are said to be symmetric, or of int4-zp."""
    numbers = scaled(codes, scales, dtype, (1, size), zeros, groups and bounded(groups, scales.shape[1]))
    if bits not in ((4, 8) if symmetric else (4,)) or size % GROUP or codes.shape[1] % GROUP:
        return numbers

    def sure() -> bool:
        middle = not symmetric or bool((zeros.read() == 1 << bits - 1).all())
        return middle and in_order(groups, size) and exact(scales)

    if bits == 8:
        kind, parts = "int8-32", eights(codes, scales, size)
    else:
        kind, parts = "int4" if symmetric else "int4-zp", fours(codes, scales, size, None if symmetric else zeros)
    return Coded(numbers.shape, dtype, numbers.fetch, numbers.source, kind=kind, parts=parts, sure=sure)
