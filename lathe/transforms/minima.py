"""Codes of ggml's types become numbers: those with minima, which are taken away behind scales, and those whose scales
and minima are small codes themselves, levels of one scale for 256 numbers of a row.

Each function takes codes, scales and minima or levels as `kinds` has them, and D, and gives ... D, float32: the very
numbers, computed in ggml's own order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lathe.transforms.grids import GROUP

COARSE, FINE = 256, 16  # numbers of a row below one scale of levels; below one level of Q6_K


def from_minima(codes: Tensor, scales: Tensor, minima: Tensor, inputs: int) -> Tensor:
    """scales, minima: ... D/32."""
    return _less(codes, scales.float(), minima.float(), inputs)


def from_levels(codes: Tensor, scales: Tensor, levels: Tensor, inputs: int) -> Tensor:
    """scales: for each 256, of scales and of minima, ... 2 D/256. levels: for each 32 the same, ... 2 D/32."""
    few = levels.unflatten(-1, (-1, 2)).float()
    tops = scales.float().unflatten(-1, (-1, 2)).repeat_interleave(COARSE // GROUP, -2)
    scales, minima = (tops[..., : few.shape[-2], :] * few).unbind(-1)
    return _less(codes, scales, minima, inputs)


def from_fine_levels(codes: Tensor, scales: Tensor, levels: Tensor, inputs: int) -> Tensor:
    """scales: ... D/256. levels: ... D/16."""
    tops = scales.float().repeat_interleave(COARSE // FINE, -1)[..., : levels.shape[-1]]
    return codes.float() * (tops * levels).repeat_interleave(FINE, -1)[..., :inputs]


def _less(codes: Tensor, scales: Tensor, minima: Tensor, inputs: int) -> Tensor:
    """codes: of 8 bits; or of 4, two in a byte, the first in its upper half."""
    whole = codes if codes.dtype == torch.int8 else torch.stack((codes >> 4, codes & 15), dim=-1).flatten(-2)
    spread = [one.repeat_interleave(GROUP, -1)[..., :inputs] for one in (scales, minima)]
    return whole[..., :inputs].float() * spread[0] - spread[1]
