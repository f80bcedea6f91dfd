"""Matrices as bitsandbytes stores them, and as Lathe does in nf4, which is the same bit for bit.

4 bits   weight, all codes in one column of bytes, the first of two in the upper half   weight.absmax, for 64 of them
         weight.quant_map 16   weight.quant_state.bitsandbytes__nf4, or __fp4: a JSON object, as bytes
         with the sizes of blocks quantized too: these in 8 bits, weight.nested_absmax, weight.nested_quant_map 256
8 bits   weight N K, int8   SCB, the largest size in each row (arXiv:2208.07339)

https://github.com/bitsandbytes-foundation/bitsandbytes
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lathe.checkpoint.quantized.matrices import FLOATS, Matrices, Parts, needed, shaped, typed
from lathe.errors import CheckpointError
from lathe.families.keys import Keys
from lathe.transforms.grids import BLOCK, NF4
from lathe.weights.coded import Coded, by_rows, flat, folded, scaled
from lathe.weights.rules import Drop, Rule
from lathe.weights.tensors import Box, Ref, possible

METHOD = "bitsandbytes"
STATE = "weight.quant_state.bitsandbytes__"
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
PARTS = ("weight", "weight.quant_map", *NESTED, f"{STATE}nf4", f"{STATE}fp4")


def bitsandbytes(keys: Keys, dtype: torch.dtype) -> list[Rule]:
    for name in ("load_in_4bit", "load_in_8bit"):
        keys.ignore(name, f"_{name}")
    for name in ("compute_dtype", "quant_storage", "quant_type", "use_double_quant", "target_parameters"):
        keys.ignore(f"bnb_4bit_{name}")
    for name in ("enable_fp32_cpu_offload", "has_fp16_weight", "skip_modules", "threshold"):
        keys.ignore(f"llm_int8_{name}")
    keys.ignore("quant_method")

    def four(module: str, parts: Parts) -> Ref:
        return _four(module, parts, dtype)

    def eight(module: str, parts: Parts) -> Ref:
        codes, largest = needed(module, parts, "weight", "SCB")
        rows = typed(codes, torch.int8).shape[0]
        shaped(codes, rows, codes.shape[-1])
        sizes = folded(shaped(typed(largest, *FLOATS), rows), (rows, 1))
        scales = by_rows((rows, 1), torch.float32, lambda *box: sizes.fetch(box).float() / 127, largest.source)
        numbers = scaled(codes, scales, dtype, (1, codes.shape[1]))
        parts = {"codes": codes, "scales": scales}
        return Coded(numbers.shape, dtype, numbers.fetch, numbers.source, kind="int8", parts=parts)

    return [
        Drop("*.weight_format"),  # of rows and columns; files have them as they are
        Matrices("weight.absmax", PARTS, four, {"nf4": _pack}),
        Matrices("SCB", ("weight",), eight, {}),
    ]


@dataclass(frozen=True)
class State:
    """What a matrix's JSON object says of it."""

    kind: str
    block: int
    shape: tuple[int, int]
    nested: int
    offset: float

    @staticmethod
    def of(ref: Ref) -> State:
        """Raises CheckpointError."""
        try:
            match json.loads(bytes(ref.read().tolist())):
                case {"quant_type": "nf4" | "fp4" as kind, "blocksize": int(block), "shape": [int(n), int(k)], **more}:
                    nested, offset = more.get("nested_blocksize", 1), more.get("nested_offset", 0.0)
                    sound = possible((n, k)) and n and k and block > 0
                    if sound and isinstance(nested, int) and nested > 0 and isinstance(offset, float | int):
                        return State(kind, block, (n, k), nested, offset)
        except (ValueError, TypeError, RecursionError):
            pass
        found = f"{ref.source} does not say how a matrix was quantized."
        raise CheckpointError(found, 'It should be JSON with "quant_type", "blocksize" and "shape".')


def _four(module: str, parts: Parts, dtype: torch.dtype) -> Ref:
    codes, sizes, values = needed(module, parts, "weight", "weight.absmax", "weight.quant_map")
    name = next((name for name in (f"{STATE}nf4", f"{STATE}fp4") if name in parts), f"{STATE}nf4")
    state = State.of(*needed(module, parts, name))
    rows, inputs = state.shape
    count = rows * inputs
    if codes.dtype == torch.uint8:
        shaped(codes, -(-count // 2), 1)
    else:  # bytes in the place of other numbers, for a program that deals with these only
        shaped(codes, -(-count // (2 * codes.dtype.itemsize)), 1)
        codes = _bytes(codes)
    shaped(typed(sizes, torch.uint8, *FLOATS), -(-count // state.block))
    shaped(typed(values, *FLOATS), 16)
    if sizes.dtype == torch.uint8:
        coarse, table = needed(module, parts, *NESTED)
        sizes = _nested(sizes, coarse, table, state)

    def some(rows: slice, columns: slice) -> Tensor:
        low, high = rows.start * inputs, rows.stop * inputs
        raw = codes.fetch((slice(low // 2, -(-high // 2)), slice(0, 1))).flatten()
        both = torch.stack((raw >> 4, raw & 15), 1).flatten()[low % 2 :][: high - low]
        blocks = torch.arange(low, high) // state.block
        known = sizes.fetch((slice(int(blocks[0]), int(blocks[-1]) + 1),)).float()
        numbers = values.read().float()[both.int()] * known[blocks - blocks[0]]
        return numbers.view(-1, inputs)[:, columns]

    numbers = by_rows(state.shape, dtype, some, codes.source)
    if state.block != BLOCK or inputs % BLOCK:
        return numbers
    kept = {
        "codes": folded(codes, (rows, inputs // 2)),
        "scales": folded(sizes, (rows, inputs // BLOCK)).to(torch.float32),
    }
    return Coded(numbers.shape, dtype, numbers.fetch, numbers.source, kind=state.kind, parts=kept)


def _bytes(codes: Ref) -> Ref:
    size = codes.dtype.itemsize

    def fetch(box: Box) -> Tensor:
        low, high = box[0].start // size, -(-box[0].stop // size)
        raw = codes.fetch((slice(low, high), slice(0, 1))).contiguous().view(torch.uint8).view(-1, 1)
        return raw[box[0].start - low * size : box[0].stop - low * size]

    return Ref((codes.shape[0] * size, 1), torch.uint8, fetch, codes.source)


def _nested(codes: Ref, coarse: Ref, values: Ref, state: State) -> Ref:
    """The largest sizes of blocks, which are codes themselves, about their mean."""
    shaped(coarse, -(-codes.shape[0] // state.nested))
    shaped(values, 256)

    def fetch(box: Box) -> Tensor:
        blocks = torch.arange(box[0].start, box[0].stop) // state.nested
        return values.read()[codes.fetch(box).int()] * coarse.read()[blocks] + state.offset

    return Ref(codes.shape, torch.float32, fetch, codes.source)


# ---- back ------------------------------------------------------------------------------------------------------------
def _pack(ref: Coded) -> Parts:
    state = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": str(ref.dtype).removeprefix("torch."),
        "shape": list(ref.shape),
    }
    return {
        "weight": flat(ref.parts["codes"], ones=1),
        "weight.absmax": flat(ref.parts["scales"]),
        "weight.quant_map": Ref.of(torch.tensor(NF4)),
        f"{STATE}nf4": Ref.of(torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8)),
    }


def told(matrices: Mapping[str, Coded], ignored: Iterable[str]) -> dict[str, Any]:
    """What quantization_config says of matrices that are written by these rules. ignored: modules that transformers
    would take for quantized too."""
    dtype = str(next(iter(matrices.values())).dtype).removeprefix("torch.")
    return {
        "quant_method": METHOD,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_compute_dtype": dtype,
        "llm_int8_skip_modules": sorted(ignored),
    }
