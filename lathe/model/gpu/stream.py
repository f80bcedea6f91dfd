"""What lies between products, one launch each: norms, gates, turned heads, and keys and values put into the cache."""

from __future__ import annotations

from typing import get_args

import torch
import triton
import triton.language as tl
from torch import Tensor

from lathe.model.gpu import power
from lathe.model.spec import Activation

ACTS = get_args(Activation)


@triton.jit
def act(x, kind: tl.constexpr):
    """The activation of ACTS[kind], of float32."""
    if kind == 0:
        return x / (1 + tl.exp(-x))
    if kind == 1:
        return 0.5 * x * (1 + tl.math.erf(x * 0.7071067811865476))
    if kind == 2:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        return x / (1 + tl.exp(-2 * inner))  # 0.5 x (1 + tanh(inner))
    kept = tl.maximum(x, 0.0)
    return kept if kind == 3 else kept * kept


@triton.jit
def _gate(y, x, up, width, x_row, up_row, kind: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(x + row * x_row + column, inside, 0).to(tl.float32)
    value = tl.load(up + row * up_row + column, inside, 0).to(tl.float32)
    tl.store(y + row * width + column, (act(gate, kind) * value).to(y.dtype.element_ty), inside)


def gate(kind: str, x: Tensor, up: Tensor) -> Tensor:
    """act(x) * up, computed in float32 and rounded once. x, up: ... F, the last dimension in one piece."""
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    x_rows, up_rows = x.reshape(rows, width), up.reshape(rows, width)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    block = min(power(width), 1024)
    grid = (rows, triton.cdiv(width, block))
    _gate[grid](y, x_rows, up_rows, width, x_rows.stride(0), up_rows.stride(0), ACTS.index(kind), block)
    return y


@triton.jit
def _norm(y, x, weight, width, eps, x_row, x_head, heads, weighted: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    at = row // heads * x_row + row % heads * x_head
    given = tl.load(x + at + column, inside, 0).to(tl.float32)
    scaled = given * tl.rsqrt(tl.sum(given * given) / width + eps)
    if weighted:
        scaled *= tl.load(weight + column, inside, 0).to(tl.float32)
    tl.store(y + row * width + column, scaled.to(y.dtype.element_ty), inside)


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in float32 and rounded once to x's type. x: ... D."""
    *_, heads, width = x.shape if x.ndim == 3 else (1, x.shape[-1])
    rows = x if x.ndim == 3 else x.reshape(-1, 1, width)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = power(width)
    warps = min(max(block // 512, 1), 16)
    weighted = weight is not None
    _norm[(rows.shape[0] * heads,)](
        y, rows, weight if weighted else rows, width, eps, rows.stride(0), rows.stride(1), heads, weighted, block,
        num_warps=power(warps),
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["heads", "heads2"])
def _turn(
    y, x, y2, x2, cos, sin, heads, heads2, channels, turned, x_token, x_head, x2_token, x2_head,
    interleaved: tl.constexpr, rest: tl.constexpr, some: tl.constexpr, pairs: tl.constexpr, others: tl.constexpr,
):  # fmt: skip
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    before = tl.cdiv(heads, some)
    if block >= before:
        y, x, heads, x_token, x_head = y2, x2, heads2, x2_token, x2_head
        block -= before
    head = block * some + tl.arange(0, some)[:, None]
    pair = tl.arange(0, pairs)[None, :]
    one, other = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + turned // 2)
    known = pair < turned // 2
    inside = (head < heads) & known
    from_, to = token * x_token + head * x_head, (token * heads + head) * channels
    a = tl.load(x + from_ + one, inside, 0).to(tl.float32)
    b = tl.load(x + from_ + other, inside, 0).to(tl.float32)
    angle = token * turned
    a_cos, a_sin = tl.load(cos + angle + one, known, 0), tl.load(sin + angle + one, known, 0)
    b_cos, b_sin = tl.load(cos + angle + other, known, 0), tl.load(sin + angle + other, known, 0)
    tl.store(y + to + one, (a * a_cos + b * a_sin).to(y.dtype.element_ty), inside)
    tl.store(y + to + other, (b * b_cos + a * b_sin).to(y.dtype.element_ty), inside)
    if rest:
        left = turned + tl.arange(0, others)[None, :]
        inside = (head < heads) & (left < channels)
        tl.store(y + to + left, tl.load(x + from_ + left, inside, 0), inside)


def turn(cos: Tensor, sin: Tensor, interleaved: bool, *xs: Tensor) -> list[Tensor]:
    """Every pair of the first channels of one or two x turned by its angle, as `gradients.turn` says; the others stay.

    x: T H C, each with heads of its own. cos, sin: T 1 c, float32.
    """
    xs = tuple(x if x.stride(-1) == 1 else x.contiguous() for x in xs)
    ys = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in xs]
    x, y, x2, y2 = xs[0], ys[0], xs[-1], ys[-1]
    tokens, heads, channels = x.shape
    turned = cos.shape[-1]
    pairs, rest = power(turned // 2), channels - turned
    some = min(power(heads), max(2048 // pairs, 1))
    blocks = sum(triton.cdiv(x.shape[1], some) for x in xs)
    _turn[tokens, blocks](
        y, x, y2, x2, cos.contiguous(), sin.contiguous(), heads, x2.shape[1], channels, turned,
        x.stride(0), x.stride(1), x2.stride(0), x2.stride(1),
        interleaved, rest > 0, some, pairs, power(max(rest, 1)),
    )  # fmt: skip
    return ys


@triton.jit
def _keep(keys, values, slots, k, v, width, v_width, k_token, v_token, block: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    slot = tl.load(slots + token)
    inside = column < width
    tl.store(keys + slot * width + column, tl.load(k + token * k_token + column, inside, 0), inside)
    inside = column < v_width
    tl.store(values + slot * v_width + column, tl.load(v + token * v_token + column, inside, 0), inside)


def keep(keys: Tensor, values: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Keys and values of new tokens into their slots. keys: N K C, values: N K Cv, slots: T, k: T K C, v: T K Cv."""
    (width, k_rows), (v_width, v_rows) = ((x[0].numel(), x.flatten(1)) for x in (k, v))
    block = min(power(max(width, v_width)), 1024)
    grid = (len(slots), triton.cdiv(max(width, v_width), block))
    _keep[grid](keys, values, slots, k_rows, v_rows, width, v_width, k_rows.stride(0), v_rows.stride(0), block)
