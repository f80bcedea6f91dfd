"""Codes become the parts that compressed-tensors stores (compressed.py), and what its configuration says of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.checkpoint.quantized.matrices import Parts, swapped
from lathe.transforms.grids import GROUP
from lathe.transforms.kinds import FOURS
from lathe.weights.coded import Coded, made
from lathe.weights.tensors import Box, Ref

METHOD = "compressed-tensors"


def _pack4(ref: Coded) -> Parts:
    rows, inputs = ref.shape
    words = made(ref.parts["codes"], (rows, inputs // 8), torch.int32, lambda c: swapped(c).view(torch.int32))
    return {"weight_packed": words, "weight_shape": _size_of(ref), "weight_scale": ref.parts["scales"]}


def _pack4_with_zeros(ref: Coded) -> Parts:
    return {**_pack4(ref), "weight_zero_point": _words_down(ref.parts["zeros"])}


def _words_down(zeros: Ref) -> Ref:
    """Numbers of 4 bits in words of eight, down columns: N G -> N/8 G."""
    rows, columns = zeros.shape

    def fetch(box: Box) -> Tensor:
        some = zeros.fetch((slice(box[0].start * 8, min(box[0].stop * 8, rows)), box[1])).int()
        eights = F.pad(some, (0, 0, 0, -len(some) % 8)).unflatten(0, (-1, 8))
        return (eights << torch.arange(0, 32, 4, dtype=torch.int32)[:, None]).sum(1).to(torch.int32)

    return Ref((-(-rows // 8), columns), torch.int32, fetch, zeros.source)


def _pack8(ref: Coded) -> Parts:
    rows, inputs = ref.shape

    def turn(codes: Tensor) -> Tensor:
        padded = F.pad(codes, (0, -inputs % 4)).view(torch.uint8) ^ 0x80
        return padded.view(torch.int32)

    words = made(ref.parts["codes"], (rows, -(-inputs // 4)), torch.int32, turn)
    return {"weight_packed": words, "weight_shape": _size_of(ref), "weight_scale": ref.parts["scales"]}


def _floats(ref: Coded) -> Parts:
    return {"weight": ref.parts["codes"], "weight_scale": ref.parts["scales"]}


def _size_of(ref: Ref) -> Ref:
    return Ref.of(torch.tensor(ref.shape))


WRITE = {"int4": _pack4, "int4-zp": _pack4_with_zeros, "int8": _pack8, "fp8": _floats}


def told(matrices: Mapping[str, Coded], ignored: Iterable[str]) -> dict[str, Any]:
    """What quantization_config says of matrices that are written by these rules. matrices: by their modules. ignored:
    modules that other programs would take for quantized too."""
    kinds = sorted({ref.kind for ref in matrices.values()}, key=list(WRITE).index)
    groups = {}
    for number, kind in enumerate(kinds):
        few = [name for name, ref in matrices.items() if ref.kind == kind] if number else []
        groups[f"group_{number}"] = {
            "targets": few or ["Linear"],
            "weights": {
                "num_bits": 4 if kind in FOURS else 8,
                "type": "float" if kind == "fp8" else "int",
                "symmetric": kind != "int4-zp",
                "dynamic": False,
                **({"strategy": "group", "group_size": GROUP} if kind in FOURS else {"strategy": "channel"}),
            },
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": METHOD,
        "format": "float-quantized" if kinds == ["fp8"] else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(ignored),
    }
