"""Products of hidden states and matrices become products of 8-bit floats, on GPUs that compute them twice as fast.

What is multiplied is scaled so that its largest number is the largest that 8 bits hold (Micikevicius et al.,
arXiv:2209.05433): hidden states and weights with 3 bits of fraction, gradients with 2 and a wider range. Weights,
gradients and everything else stay what they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.model.layers import Linear

EVEN = 16  # what the lengths of a product's rows are multiples of


def put(decoder: Decoder) -> Decoder:
    """Let the layers' linear maps compute in 8 bits; the head, routers, experts and adapters stay as they are. Before
    compiling.

    Raises:
        UsageError: the model is not on a GPU that has such products.
    """
    device = decoder.model.embed_tokens.weight.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        found = "Products of 8-bit floats are computed by NVIDIA's GPUs from Ada and Hopper on."
        raise UsageError(found, f"The model is on {device}.", "Leave out --float8.")
    for name, module in decoder.model.layers.named_modules():
        fits = isinstance(module, Linear) and not any(size % EVEN for size in module.weight.shape)
        if fits and "lora_" not in name:
            module.forward = partial(linear, module)
    return decoder


def linear(module: Linear, x: Tensor) -> Tensor:
    """x @ weight.T + bias. x: T D."""
    kind = x.device.type
    like = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    rows = F.pad(x, (0, 0, 0, -len(x) % EVEN))
    y: Tensor = Product.apply(rows, module.weight, like)
    y = y[: len(x)]
    return y if module.bias is None else y + module.bias.to(like)


class Product(torch.autograd.Function):
    """x: T D. weight: F D. Gives T F in the dtype `like`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, like: torch.dtype) -> Tensor:
        x8, w8 = narrow(x, torch.float8_e4m3fn), narrow(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(*x8, *w8)
        ctx.dtypes = x.dtype, weight.dtype
        return times(x8, transposed(w8), like)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, x_scale, w, w_scale = ctx.saved_tensors
        slope, by_x, by_weight = narrow(outer[0], torch.float8_e5m2), None, None
        if ctx.needs_input_grad[0]:
            by_x = times(slope, (upright(w), w_scale), outer[0].dtype).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            across = slope[0].t().contiguous(), slope[1]
            by_weight = times(across, (upright(x), x_scale), outer[0].dtype).to(ctx.dtypes[1])
        return by_x, by_weight, None


Scaled = tuple[Tensor, Tensor]  # numbers of 8 bits, and what each of them is to be multiplied by


def narrow(x: Tensor, dtype: torch.dtype) -> Scaled:
    """x in 8 bits, its largest number the largest there is."""
    most = torch.finfo(dtype).max
    scale = x.abs().amax().float().clamp(min=1e-12) / most
    return (x.float() / scale).clamp(-most, most).to(dtype).contiguous(), scale


def times(a: Scaled, b: Scaled, like: torch.dtype) -> Tensor:
    """a @ b, where b lies column by column."""
    return torch._scaled_mm(a[0], b[0], scale_a=a[1], scale_b=b[1], out_dtype=like)


def transposed(x: Scaled) -> Scaled:
    return x[0].t(), x[1]


def upright(x: Tensor) -> Tensor:
    """The same matrix, lying column by column."""
    return x.t().contiguous().t()
