"""A matrix and what it is given become int4 codes whose product errs least: each column makes up for those before it.

GPTQ (Frantar et al., arXiv:2210.17323). Columns are rounded one after the other, and what rounding one changes in the
product is taken out of those that are still to come, as well as these can: the inverse of the inputs' second moments
says how. A group's scales are chosen when its first column is reached, for the numbers that it has by then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lathe.transforms.grids import GROUP, halves, int4_codes, int4_scales

COLUMNS = 128  # rounded before those after them are told
DAMPING = 0.01  # of the mean second moment, added to all: no input is known so well
ENDS = (-9.0, -8.5, -8.0, -7.6, -7.3, -7.0, -6.6, -6.2, -5.8)  # more than where time counts


def quantize(weight: Tensor, moments: Tensor) -> dict[str, Tensor]:
    """The parts of int4 (`kinds`) for a matrix. weight: N K, K in whole groups. moments: K K, the sum of
    x.T @ x over inputs x."""
    rows, inputs = weight.shape
    weight, factor = weight.float().clone(), _factor(moments.float())
    codes = torch.empty(rows, inputs, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(rows, inputs // GROUP, dtype=torch.float16, device=weight.device)
    for start in range(0, inputs, COLUMNS):
        end = min(start + COLUMNS, inputs)
        block, off = weight[:, start:end], torch.empty(rows, end - start, device=weight.device)
        for n in range(end - start):
            at, column = start + n, block[:, n]
            if n % GROUP == 0:
                scales[:, at // GROUP] = int4_scales(block[:, n : n + GROUP], ENDS)
            scale = scales[:, at // GROUP]
            codes[:, at] = int4_codes(column, scale)
            off[:, n] = (column - (codes[:, at].float() - 8) * scale.float()) / factor[at, at]
            block[:, n + 1 :] -= off[:, n, None] * factor[at, at + 1 : end]
        weight[:, end:] -= off @ factor[start:end, end:]
    return {"codes": halves(codes), "scales": scales}


def _factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, with as much damping as makes there be one."""
    moments = moments + torch.diag((moments.diagonal() == 0).float())  # inputs that were never there
    damping = moments.diagonal().mean() * DAMPING
    while True:
        moments = moments + damping * torch.eye(len(moments), device=moments.device)
        lower, fault = torch.linalg.cholesky_ex(moments)
        if not fault:
            upper, fault = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not fault:
                return upper
        damping = damping * 10
