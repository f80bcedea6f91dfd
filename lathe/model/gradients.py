"""Gradients by hand of the parts between matrix products: they keep less and compute less than autograd's own.

Each stands beside the plain formula that it is equal to: on a CPU, torch makes those of many small operations, whose
every result it would keep. Where a device has a kernel of its own for the whole part, that is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.model import gpu
from lathe.model.native import learning
from lathe.model.spec import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def product_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product makes of x: x's own dtype, or that of mixed precision where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def by_hand(*tensors: Tensor | None) -> bool:
    """Whether something is to be learned here, on a CPU."""
    known = [x for x in tensors if x is not None]
    return torch.is_grad_enabled() and known[0].device.type == "cpu" and any(x.requires_grad for x in known)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, in the dtype that products of it have.

    Where the weight is float32 it is computed in float32 and rounded once.
    """
    if gpu.able(x, weight) and product_dtype(x) == x.dtype:
        from lathe.model.gpu import stream

        return stream.norm(x, weight, eps)
    return RmsNorm.apply(x, weight, eps) if by_hand(x, weight) else _rms_norm(x, weight, eps)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x if weight is None else x.to(torch.promote_types(x.dtype, weight.dtype))
    return F.rms_norm(wide, (x.shape[-1],), weight, eps).to(product_dtype(x))


class RmsNorm(torch.autograd.Function):
    """Keeps x alone, and a number for each row. With h = g weight, g being the gradient by y, that by x is
    h / rms - x mean(h x) / rms^3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        y, inverse = learning.norm(x, weight, eps, product_dtype(x)) or (_rms_norm(x, weight, eps), None)
        ctx.save_for_backward(x, weight, inverse)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        if scales is not None:
            return *learning.norm_back(x, weight, scales, outer[0], ctx.needs_input_grad[1]), None
        wide = torch.promote_types(x.dtype, torch.float32)
        n, x32, g = x.shape[-1], x.to(wide), outer[0].to(wide, copy=True)
        gx = g * x32
        inverse = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(n).add_(ctx.eps).rsqrt_()
        by_weight = None
        if weight is None:
            along = gx.sum(-1, keepdim=True)
        else:
            if ctx.needs_input_grad[1]:
                by_weight = (inverse.flatten() @ gx.flatten(0, -2)).to(weight.dtype)
            along = (gx @ weight.to(wide))[..., None]
            g.mul_(weight)
        g.mul_(inverse).addcmul_(x32, along.mul_(inverse.pow(3)).div_(n), value=-1)
        return g.to(x.dtype), by_weight, None


def gate(act: Activation, x: Tensor, up: Tensor) -> Tensor:
    """act(x) * up."""
    if gpu.able(x, up):
        from lathe.model.gpu import stream

        return stream.gate(act, x, up)
    return Gate.apply(act, x, up) if by_hand(x, up) else ACTIVATIONS[act](x) * up


class Gate(torch.autograd.Function):
    """Keeps its two arguments, and computes act(x) again."""

    @staticmethod
    def forward(ctx: Any, act: Activation, x: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(x, up)
        ctx.act = act
        y = learning.gate(x, up) if act == "silu" else None
        ctx.native = y is not None
        return ACTIVATIONS[act](x).mul_(up) if y is None else y

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, up = ctx.saved_tensors
        if ctx.native:
            return None, *learning.gate_back(x, up, outer[0])
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ACTIVATIONS[ctx.act](x)
        (by_x,) = torch.autograd.grad(y, x, outer[0] * up)
        return None, by_x, outer[0] * y.detach()


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Every pair of channels turned by its angle: x cos + other sin, where `other` is the pair's other channel.

    x: T H C. cos, sin: T 1 C, float32, the sine of a pair's first channel negative. In float32, rounded once.
    """
    return Turn.apply(x, cos, sin, interleaved) if by_hand(x) else _turn(x, cos, sin, interleaved)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if interleaved:
        other = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        other = torch.cat(wide.chunk(2, dim=-1)[::-1], dim=-1)
    return torch.addcmul(wide * cos, other, sin).to(x.dtype)


class Turn(torch.autograd.Function):
    """Gradients are turned back. Keeps the angles, which all layers share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        y = learning.turn(x, cos, sin, interleaved)
        return _turn(x, cos, sin, interleaved) if y is None else y

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        y = learning.turn(outer[0], cos, sin, ctx.interleaved, back=True)
        return (_turn(outer[0], cos, -sin, ctx.interleaved) if y is None else y), None, None, None
