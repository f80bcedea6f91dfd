"""Tensors to the kernels of learning.cpp and back. Each function gives None where the kernel cannot be had for these
tensors: whoever calls it then goes the plain way."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lathe.model.native import TYPES, library

PARTS = 16  # of the rows whose sums a norm's weight learns from; not the number of threads, so that any gives the same


def kernels(*tensors: Tensor | None) -> ctypes.CDLL | None:
    """The library, if it takes all these tensors: on a CPU, of types that it knows, not in what is being compiled."""
    known = all(x is None or (x.device.type == "cpu" and x.dtype in TYPES) for x in tensors)
    return library() if known and not torch.compiler.is_compiling() else None


def norm(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """x / rms(x) * weight over the last dimension, in `dtype`, and one over the root mean square of each row."""
    made = kernels(x, weight)
    if made is None or dtype not in TYPES:
        return None
    x = x.contiguous()
    y, inverse = torch.empty_like(x, dtype=dtype), x.new_empty(x.shape[:-1], dtype=torch.float32)
    types = (TYPES[x.dtype], 0 if weight is None else TYPES[weight.dtype], TYPES[dtype])
    made.lathe_norm(
        *addresses(x, weight, y, inverse), inverse.numel(), x.shape[-1], eps, *types, torch.get_num_threads()
    )
    return y, inverse


def norm_back(
    x: Tensor, weight: Tensor | None, inverse: Tensor, outer: Tensor, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients by x and, if it learns, by the weight; after `norm` gave an answer."""
    made = library()
    assert made is not None
    x, outer = x.contiguous(), outer.contiguous()
    by_x = torch.empty_like(x)
    sums = x.new_empty((PARTS, x.shape[-1]), dtype=torch.float32) if learns else None
    types = (TYPES[x.dtype], 0 if weight is None else TYPES[weight.dtype], TYPES[outer.dtype])
    made.lathe_norm_back(
        *addresses(x, weight, inverse, outer, by_x, sums),
        inverse.numel(),
        x.shape[-1],
        PARTS,
        *types,
        torch.get_num_threads(),
    )
    return by_x, None if sums is None or weight is None else sums.sum(0).to(weight.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, back: bool = False) -> Tensor | None:
    """gradients.turn; `back` turns by minus the angles. x: T H C."""
    made = kernels(x)
    if made is None or x.ndim != 3:
        return None
    x, cos, sin = x if x.stride(-1) == 1 else x.contiguous(), cos.contiguous(), sin.contiguous()
    y = x.new_empty(x.shape)
    made.lathe_turn(
        *addresses(x, cos, sin, y),
        *x.shape,
        x.stride(0),
        x.stride(1),
        -1.0 if back else 1.0,
        interleaved,
        TYPES[x.dtype],
        torch.get_num_threads(),
    )
    return y


def gate(x: Tensor, up: Tensor) -> Tensor | None:
    """silu(x) * up, rounded once."""
    made = kernels(x, up)
    if made is None or x.dtype != up.dtype or x.shape != up.shape:
        return None
    x, up = x.contiguous(), up.contiguous()
    y = torch.empty_like(x)
    made.lathe_gate(*addresses(x, up, y), x.numel(), TYPES[x.dtype], torch.get_num_threads())
    return y


def gate_back(x: Tensor, up: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by x and by up; after `gate` gave an answer."""
    made = library()
    assert made is not None
    x, up, outer = x.contiguous(), up.contiguous(), outer.contiguous()
    by_x, by_up = torch.empty_like(x), torch.empty_like(x)
    made.lathe_gate_back(*addresses(x, up, outer, by_x, by_up), x.numel(), TYPES[x.dtype], torch.get_num_threads())
    return by_x, by_up


def judge(scores: Tensor, targets: Tensor, z: float) -> Tensor | None:
    """Each row's loss; the scores, N V, become its gradient by them in place."""
    made = kernels(scores)
    if made is None or not scores.is_contiguous():
        return None
    targets, losses = targets.contiguous(), scores.new_empty(len(scores), dtype=torch.float32)
    threads = torch.get_num_threads()
    made.lathe_judge(*addresses(scores, targets, losses), *scores.shape, z, TYPES[scores.dtype], threads)
    return losses


def add(total: Tensor, part: Tensor) -> None:
    """total += part, of which torch makes a slow loop where the one is float32 and the other bfloat16."""
    made = kernels(total, part)
    alike = total.shape == part.shape and total.is_contiguous() and part.is_contiguous()
    if made and alike and (total.dtype, part.dtype) == (torch.float32, torch.bfloat16):
        made.lathe_add(*addresses(total, part), total.numel(), torch.get_num_threads())
    else:
        total += part


def adamw(kept: Sequence[Tensor], slope: Tensor, step: float, lr: float, by: Sequence[float]) -> bool:
    """A step of training.bfloat16's AdamW. kept: upper and lower halves, means, means of squares. by: beta1, beta2,
    eps, decay. False: it was not made."""
    made = kernels(slope, kept[0], kept[2], kept[3])
    if made is None or not all(x.is_contiguous() for x in (slope, *kept)):
        return False
    beta1, beta2, eps, decay = by
    made.lathe_adamw(
        *addresses(*kept, slope),
        slope.numel(),
        1 - lr * decay,
        lr / (1 - beta1**step),
        1 - beta1,
        1 - beta2,
        (1 - beta2**step) ** -0.5,
        eps,
        TYPES[slope.dtype],
        torch.get_num_threads(),
    )
    return True


def addresses(*tensors: Tensor | None) -> tuple[int | None, ...]:
    return tuple(None if x is None else x.data_ptr() for x in tensors)
