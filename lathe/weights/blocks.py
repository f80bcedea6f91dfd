"""The blocks of ggml's quantized types become float32 values, exactly (packing.py: back); knows no file and no shape.

Each function takes N blocks as raw bytes and gives the N x 32 (or N x 256, the K types) values they stand for. A block
holds small integers q and one or a few half-precision scales: value = d * q, or d * q - m with a minimum.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the packing is that of ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lathe.weights import packing


@dataclass(frozen=True)
class Packing:
    """One quantized type: `expand` turns N x `nbytes` raw bytes into N x `values` float32, and `pack`, where a type can
    be written, back into the bytes that stand for something near."""

    name: str
    values: int
    nbytes: int
    expand: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor], Tensor] | None = None


def _half(raw: Tensor) -> Tensor:  # N 2 -> N 1
    return raw.view(torch.float16).float()


def bits(raw: Tensor, shifts: Sequence[int], mask: int, run: int) -> Tensor:
    """Of each run of `run` bytes: the bits at the first shift of all of them, then at the next (N B -> N B*shifts)."""
    by = torch.tensor(shifts, dtype=torch.uint8)[:, None]
    return ((raw.unflatten(1, (-1, 1, run)) >> by) & mask).flatten(1)


def _signed(q: Tensor, zero: int) -> Tensor:
    return q.to(torch.int8) - zero


def _scaled(d: Tensor, q: Tensor) -> Tensor:
    """Each of the S scales times its own run of values: N S, N B -> N B."""
    return (d[..., None] * q.unflatten(1, (d.shape[1], -1)).float()).flatten(1)


def _less(d: Tensor, q: Tensor, m: Tensor) -> Tensor:
    """The same, less a minimum for each run: N S, N B, N S -> N B."""
    return (d[..., None] * q.unflatten(1, (d.shape[1], -1)).float() - m[..., None]).flatten(1)


def fifth(raw: Tensor) -> Tensor:
    """32 single bits in 4 bytes, lowest first, each worth 16: N 4 -> N 32."""
    return bits(raw, range(8), 1, 1) << 4


def _q4_0(raw: Tensor) -> Tensor:  # d 2 | q 16
    return _scaled(_half(raw[:, :2]), _signed(bits(raw[:, 2:], (0, 4), 15, 16), 8))


def _q4_1(raw: Tensor) -> Tensor:  # d 2 | m 2 | q 16
    return _less(_half(raw[:, :2]), bits(raw[:, 4:], (0, 4), 15, 16), -_half(raw[:, 2:4]))


def _q5_0(raw: Tensor) -> Tensor:  # d 2 | fifth bits 4 | q 16
    q = bits(raw[:, 6:], (0, 4), 15, 16) | fifth(raw[:, 2:6])
    return _scaled(_half(raw[:, :2]), _signed(q, 16))


def _q5_1(raw: Tensor) -> Tensor:  # d 2 | m 2 | fifth bits 4 | q 16
    q = bits(raw[:, 8:], (0, 4), 15, 16) | fifth(raw[:, 4:8])
    return _less(_half(raw[:, :2]), q, -_half(raw[:, 2:4]))


def _q8_0(raw: Tensor) -> Tensor:  # d 2 | q 32
    return _scaled(_half(raw[:, :2]), raw[:, 2:].view(torch.int8))


def _q2_k(raw: Tensor) -> Tensor:  # scales and minima 16 | q 64 | d 2 | m 2
    scales = raw[:, :16]
    d, m = _half(raw[:, 80:82]) * (scales & 15), _half(raw[:, 82:84]) * (scales >> 4)
    return _less(d, bits(raw[:, 16:80], (0, 2, 4, 6), 3, 32), m)


def _q3_k(raw: Tensor) -> Tensor:  # third bits 32 | q 64 | scales 12 | d 2
    low, high = bits(raw[:, 96:104], (0, 4), 15, 8), bits(raw[:, 104:108], (0, 2, 4, 6), 3, 4)
    d = _half(raw[:, 108:]) * _signed(low | high << 4, 32)
    q = bits(raw[:, 32:96], (0, 2, 4, 6), 3, 32) | bits(raw[:, :32], range(8), 1, 32) << 2
    return _scaled(d, _signed(q, 4))


def scales_and_minima(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes: N 12 -> N 8, N 8.

    The first four of each are the low bits of bytes 0-3 and 4-7; the last four have their low halves in bytes 8-11 and
    their two high bits above the first four.
    """
    scale, minimum, halves = raw.split(4, dim=1)
    scales = torch.cat((scale & 63, halves & 15 | scale >> 6 << 4), dim=1)
    return scales, torch.cat((minimum & 63, halves >> 4 | minimum >> 6 << 4), dim=1)


def _q4_k(raw: Tensor) -> Tensor:  # d 2 | m 2 | scales and minima 12 | q 128
    scales, minima = scales_and_minima(raw[:, 4:16])
    q = bits(raw[:, 16:], (0, 4), 15, 32)
    return _less(_half(raw[:, :2]) * scales, q, _half(raw[:, 2:4]) * minima)


def _q5_k(raw: Tensor) -> Tensor:  # d 2 | m 2 | scales and minima 12 | fifth bits 32 | q 128
    scales, minima = scales_and_minima(raw[:, 4:16])
    q = bits(raw[:, 48:], (0, 4), 15, 32) | bits(raw[:, 16:48], range(8), 1, 32) << 4
    return _less(_half(raw[:, :2]) * scales, q, _half(raw[:, 2:4]) * minima)


def _q6_k(raw: Tensor) -> Tensor:  # low halves 128 | high bits 64 | scales 16 | d 2
    q = bits(raw[:, :128], (0, 4), 15, 64) | bits(raw[:, 128:192], (0, 2, 4, 6), 3, 32) << 4
    return _scaled(_half(raw[:, 208:]) * raw[:, 192:208].view(torch.int8), _signed(q, 32))


def _mxfp4(raw: Tensor) -> Tensor:  # exponent 1 | q 16
    """OCP microscaling: a power of two for 32 values, each one of sixteen 4-bit floats.

    The floats are doubled here, to be whole numbers, and the power halved: 2^(exponent - 128).
    """
    powers = torch.tensor([2.0 ** (exponent - 128) for exponent in range(256)])
    floats = torch.tensor([0.0, 1, 2, 3, 4, 6, 8, 12, 0.0, -1, -2, -3, -4, -6, -8, -12])
    return _scaled(powers[raw[:, :1].int()], floats[bits(raw[:, 1:], (0, 4), 15, 16).int()])


# Sixteen numbers, closer together near zero, as weights are.
BELL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _bell(raw: Tensor, run: int) -> Tensor:
    return torch.tensor(BELL, dtype=torch.int8)[bits(raw, (0, 4), 15, run).int()]


def _iq4_nl(raw: Tensor) -> Tensor:  # d 2 | q 16
    return _scaled(_half(raw[:, :2]), _bell(raw[:, 2:], 16))


def _iq4_xs(raw: Tensor) -> Tensor:  # d 2 | high bits of scales 2 | low halves of scales 4 | q 128
    scales = bits(raw[:, 4:8], (0, 4), 15, 1) | bits(raw[:, 2:4], (0, 2, 4, 6), 3, 1) << 4
    return _scaled(_half(raw[:, :2]) * _signed(scales, 32), _bell(raw[:, 8:], 16))


PACKINGS = {  # by ggml's type number
    2: Packing("Q4_0", 32, 18, _q4_0, packing.q4_0),
    3: Packing("Q4_1", 32, 20, _q4_1, packing.q4_1),
    6: Packing("Q5_0", 32, 22, _q5_0, packing.q5_0),
    7: Packing("Q5_1", 32, 24, _q5_1, packing.q5_1),
    8: Packing("Q8_0", 32, 34, _q8_0, packing.q8_0),
    10: Packing("Q2_K", 256, 84, _q2_k),
    11: Packing("Q3_K", 256, 110, _q3_k),
    12: Packing("Q4_K", 256, 144, _q4_k, packing.q4_k),
    13: Packing("Q5_K", 256, 176, _q5_k, packing.q5_k),
    14: Packing("Q6_K", 256, 210, _q6_k, packing.q6_k),
    20: Packing("IQ4_NL", 32, 18, _iq4_nl),
    23: Packing("IQ4_XS", 256, 136, _iq4_xs),
    39: Packing("MXFP4", 32, 17, _mxfp4),
}
