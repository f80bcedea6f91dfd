"""The ways in which a matrix becomes codes of 4 or 8 bits with scales: what parts there are, and how they come and go.

nf4      sixteen values at the quantiles of a normal distribution, times the largest of each 64 numbers of a row
         (Dettmers et al., arXiv:2305.14314): 4.5 bits a weight
nf4-dq   the same, with those largest numbers in 8 bits, in blocks of 256 about their mean: 4.13 bits
int8     whole numbers, times a 127th of the largest of each row (arXiv:2208.07339, without its outliers): 8 bits
int8-32  whole numbers, times a 127th of the largest of each 32 numbers of a row (GGUF's Q8_0): 8.5 bits
int4     whole numbers from -8 to 7, times a scale for each 32 numbers of a row, chosen for the least error: 4.5 bits
int4-zp  whole numbers from 0 to 15, less a zero point, times a scale, for each 32 numbers of a row (hqq): 4.75 bits
fp4      as nf4, with the sixteen values that floats of 4 bits have; fp4-dq as nf4-dq
fp8      floats of 8 bits (4 of exponent, 3 of mantissa), times a 448th of the largest of each row: 8 bits

As GGUF has them, and nothing is made here:

q4_1     whole numbers from 0 to 15, times a scale, less a minimum, for each 32 numbers of a row: 5 bits
q4_k     the same, whose scales and minima are whole numbers times one scale for each 256: 4.63 bits
q5_1, q5_k  as these, from 0 to 31, in 8 bits: 9 and 8.63 bits
q6_k     whole numbers from -32 to 31 in 8 bits, times a whole number for each 16, times a scale for each 256: 8.56 bits

Knows no file and no module: `Kind.pack` takes the pieces of a matrix as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.errors import UsageError, did_you_mean
from lathe.transforms import grids, minima
from lathe.transforms.grids import BLOCK, FP4, GROUP, NF4, Table
from lathe.transforms.hqq import nonzero

COARSE = 256  # scales that are packed about one size
CHUNK, LARGE = 1 << 18, 1 << 24  # numbers quantized at once, and where they are not by a CPU, which has caches


@dataclass(frozen=True)
class Kind:
    """One way. code: the type of codes. width, scales: how many codes a row of so many inputs has, and how many numbers
    that they are multiplied by. rows: n D to both, unless it is for files alone; back: both to ... D. double: the
    scales are packed too. others: what else there is, its name, how many of a row, and their type. values: what codes
    of 4 bits stand for, where they are places in a table."""

    code: torch.dtype
    width: Callable[[int], int]
    scales: Callable[[int], int]
    rows: Callable[[Tensor], tuple[Tensor, ...]] | None
    back: Callable[..., Tensor]
    double: bool = False
    scale: torch.dtype = torch.float32
    others: tuple[str, Callable[[int], int], torch.dtype] | None = None
    values: Table | None = None

    def blank(self, shape: torch.Size) -> dict[str, Tensor]:
        """Parts without values for a matrix, or a stack of them, of this shape."""
        *lead, inputs = shape
        count = self.scales(inputs)
        found = {"codes": torch.empty(*lead, self.width(inputs), dtype=self.code)}
        if not self.double:
            found["scales"] = torch.empty(*lead, count, dtype=self.scale)
            if self.others is not None:
                name, many, dtype = self.others
                found[name] = torch.empty(*lead, many(inputs), dtype=dtype)
            return found
        coarse = -(-torch.Size(lead).numel() * count // COARSE)
        return found | {
            "scales": torch.empty(*lead, count, dtype=torch.int8),
            "coarse": torch.empty(coarse),
            "mean": torch.empty(1),
        }

    def pack(self, pieces: Iterable[Tensor], shape: torch.Size, device: torch.device) -> dict[str, Tensor]:
        """Parts of a matrix that comes some rows at a time (of a stack: some matrices), in any floating-point type."""
        assert self.rows, "no matrix is made into codes that only files have"
        with device:
            found = self.blank(shape)
            if self.double:  # numbers, until all are known
                found["scales"] = torch.empty(*shape[:-1], self.scales(shape[-1]))
        parts, start = [part.flatten(0, -2) for part in [*found.values()][: 2 if self.double else 3]], 0
        step = max((CHUNK if device.type == "cpu" else LARGE) // shape[-1], 1)
        for piece in pieces:
            for rows in piece.flatten(0, -2).split(step):
                end = start + len(rows)
                for part, some in zip(parts, self.rows(rows.to(device)), strict=True):
                    part[start:end] = some
                start = end
        return found | _doubled(found["scales"]) if self.double else found

    def unpack(
        self, parts: Sequence[Tensor], inputs: int, dtype: torch.dtype, which: slice | int | Tensor = slice(None)
    ) -> Tensor:
        """Rows (of a stack: matrices) of the matrix, computed in float32 and rounded once. parts: the values of what
        `pack` gives; inputs: columns of the matrix; which: unless it is double, also the numbers of rows."""
        return self.back(*self.single(parts, which), inputs).to(dtype)

    def single(self, parts: Sequence[Tensor], which: slice | int | Tensor = slice(None)) -> list[Tensor]:
        """The same parts of some rows or matrices, with the scales as numbers."""
        codes, scales, *rest = parts
        if self.double:
            assert not isinstance(which, Tensor)
            return [codes[which], _single(which, scales, *rest)]
        return [part[which] for part in parts]


def _doubled(scales: Tensor) -> dict[str, Tensor]:
    mean = scales.mean().view(1)
    blocks = F.pad((scales - mean).flatten(), (0, -scales.numel() % COARSE)).view(-1, COARSE)
    coarse = blocks.abs().amax(1)
    codes = (blocks / nonzero(coarse)[:, None] * 127).round().to(torch.int8)
    return {"scales": codes.flatten()[: scales.numel()].view(scales.shape), "coarse": coarse, "mean": mean}


def _single(which: slice | int, codes: Tensor, coarse: Tensor, mean: Tensor) -> Tensor:
    first = which if isinstance(which, int) else which.indices(len(codes))[0]
    start, some = first * codes[0].numel(), codes[which]
    blocks = torch.arange(start, start + some.numel(), device=codes.device) // COARSE
    return some.float() / 127 * coarse[blocks].view(some.shape) + mean


def _half(inputs: int) -> int:
    return -(-inputs // BLOCK) * BLOCK // 2


def _groups(inputs: int) -> int:
    return -(-inputs // GROUP)


def _table(values: Table, double: bool = False) -> Kind:
    to, back = partial(grids.to_table, values), partial(grids.from_table, values)
    return Kind(torch.uint8, _half, lambda inputs: -(-inputs // BLOCK), to, back, double, values=values)


def _same(inputs: int) -> int:
    return inputs


def _nibbles(inputs: int) -> int:
    return _groups(inputs) * GROUP // 2


def _levels(inputs: int) -> int:
    return 2 * _groups(inputs)


def _tops(inputs: int) -> int:
    return -(-inputs // minima.COARSE)


def _four(to: Callable[[Tensor], tuple[Tensor, ...]], back: Callable[..., Tensor], zeros: bool = False) -> Kind:
    others = ("zeros", _groups, torch.uint8) if zeros else None
    return Kind(torch.uint8, _nibbles, _groups, to, back, scale=torch.float16, others=others)


def _stored(eight: bool, levels: bool) -> Kind:
    """Codes with minima."""
    code, width = (torch.int8, _same) if eight else (torch.uint8, _nibbles)
    if levels:
        others, back = ("levels", _levels, torch.int8), minima.from_levels
        return Kind(code, width, lambda n: 2 * _tops(n), None, back, scale=torch.float16, others=others)
    others = ("minima", _groups, torch.float16)
    return Kind(code, width, _groups, None, minima.from_minima, scale=torch.float16, others=others)


KINDS = {
    "nf4": _table(NF4),
    "nf4-dq": _table(NF4, double=True),
    "fp4": _table(FP4),
    "fp4-dq": _table(FP4, double=True),
    "int8": Kind(torch.int8, _same, lambda inputs: 1, grids.to_int8, grids.from_int8),
    "int8-32": Kind(
        torch.int8,
        _same,
        _groups,
        grids.to_int8_groups,
        grids.from_int8_groups,
        scale=torch.float16,
    ),
    "fp8": Kind(torch.float8_e4m3fn, _same, lambda inputs: 1, grids.to_fp8, grids.from_fp8),
    "int4": _four(grids.to_int4, grids.from_int4),
    "int4-zp": _four(grids.to_int4_with_zeros, grids.from_int4_with_zeros, zeros=True),
    "q4_1": _stored(eight=False, levels=False),
    "q5_1": _stored(eight=True, levels=False),
    "q4_k": _stored(eight=False, levels=True),
    "q5_k": _stored(eight=True, levels=True),
    "q6_k": Kind(
        torch.int8,
        _same,
        _tops,
        None,
        minima.from_fine_levels,
        scale=torch.float16,
        others=("levels", lambda inputs: -(-inputs // minima.FINE), torch.int8),
    ),
}
MADE = [name for name, kind in KINDS.items() if kind.rows]  # of any matrix; others only files have
STORED = [name for name in KINDS if name not in MADE]
FOURS = ("int4", "int4-zp")  # whole numbers of 4 bits
# These stay in codes where a checkpoint has them: they are also multiplied so.
KEPT = ("int8", "int8-32", *FOURS, "nf4", *STORED)
LITGPT = {
    **{f"bnb.{name}": name for name in ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8")},
    "bnb.int8-training": "int8",
}


def known(name: str) -> str:
    """One of MADE by its name, or by LitGPT's.

    Raises:
        UsageError: there is none of that name.
    """
    found = LITGPT.get(name, name)
    if found not in MADE:
        every = f"Known are {', '.join(MADE)}."
        raise UsageError(f'"{name}" is no way to quantize that is known.', every, did_you_mean(name, [*MADE, *LITGPT]))
    return found
