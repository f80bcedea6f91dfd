"""Groups of numbers become codes of 4 bits with a scale and a zero point each, chosen by the numbers alone.

Half-quadratic quantization (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023):
the zero point is sought with which the sum of the errors' sizes, to a power below 1, is least, so that a few numbers
far from all others do not decide. That is done in turns: what of each error to leave as it is, which has a closed
form, and the zero point that fits the rest best. Here zero points end as whole numbers, as files have them; so some
widths of the grid are tried, each scale is fitted to its codes (least squares), and that is taken which errs least.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOP = 15  # the largest code
WIDTHS = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the grid, in shares of what a group spans
TURNS, FITS = 5, 2
POWER = 0.7  # of errors
STIFF, STIFFER = 10.0, 1.01  # how far what is left of an error goes towards it, and by what that grows with every turn


def fitted(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of numbers, float32: ... n. Returns their codes, uint8: ... n; and of each group the scale, float16, and
    the zero point, uint8: (code - zero) * scale is near to the number."""
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    least, scales, zeros = (torch.full_like(low, value) for value in (float("inf"), 0, 0))
    for width in WIDTHS:
        steps = nonzero((high - low) * width / TOP)
        about = _zeros(groups / steps, TOP / 2 - (low + high) / (2 * steps))
        for _ in range(FITS):
            whole = _codes(groups, steps, about) - about
            steps = (groups * whole).sum(-1, keepdim=True) / nonzero(whole.square().sum(-1, keepdim=True))
            steps = nonzero(steps.half().float())
        error = ((_codes(groups, steps, about) - about) * steps - groups).square().sum(-1, keepdim=True)
        better = error < least
        least, scales, zeros = (torch.where(better, *two) for two in ((error, least), (steps, scales), (about, zeros)))
    return _codes(groups, scales, zeros).to(torch.uint8), scales[..., 0].half(), zeros[..., 0].to(torch.uint8)


def _zeros(x: Tensor, zeros: Tensor) -> Tensor:
    """The zero points, whole numbers, of groups of numbers that are told in steps of the grid."""
    stiff = STIFF
    for _ in range(TURNS):
        codes = (x + zeros).round().clamp(0, TOP)
        errors = x + zeros - codes
        sizes = errors.abs()
        left = errors.sign() * (sizes - sizes.clamp(min=1e-6).pow(POWER - 1) / stiff).clamp(min=0)  # Chartrand, 2007
        zeros = (codes - x + left).mean(-1, keepdim=True)
        stiff *= STIFFER
    return zeros.round().clamp(0, TOP)


def _codes(groups: Tensor, steps: Tensor, zeros: Tensor) -> Tensor:
    return (groups / steps + zeros).round().clamp(0, TOP)


def nonzero(steps: Tensor) -> Tensor:
    """Steps to divide by: 1 where they are 0, as they are of groups that are all zeros."""
    return torch.where(steps == 0, 1, steps)
