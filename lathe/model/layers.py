"""The smallest parts, which work on each token alone: linear maps and norms, built from their specs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.model import gpu, gradients, spec
from lathe.model.gpu.matrix import Matrix


class Linear(nn.Module):
    """x @ weight.T + bias: the single seam for matrix products. Transforms put other modules in its place by name."""

    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        made = few(x, None, self)
        return F.linear(x, self.weight, self.bias) if made is None else made[0]

    @property
    def matrix(self) -> Matrix | None:
        """What kernels on a GPU multiply with, if they know it."""
        return Matrix(self.weight, self.bias)


def together(x: Tensor, *maps: nn.Module) -> list[Tensor]:
    """What each map makes of the same rows, in one launch where a GPU can."""
    made = few(x, None, *maps)
    return [one(x) for one in maps] if made is None else made


def gated(x: Tensor, act: spec.Activation, gate: nn.Module, up: nn.Module) -> Tensor:
    """act(gate(x)) * up(x), in one launch where a GPU can."""
    made = few(x, act, gate, up)
    return gradients.gate(act, gate(x), up(x)) if made is None else made[0]


def few(x: Tensor, act: spec.Activation | None, *maps: nn.Module) -> list[Tensor] | None:
    """The same of few rows on a GPU; None where no kernel does that. One map alone may have hooks: they are called
    where it is."""
    if x.numel() > gpu.FEW * x.shape[-1] or not gpu.able(x):
        return None
    from lathe.model.gpu import products

    matrices: list[Matrix] = []
    for one in maps:
        hooked = len(maps) > 1 and (one._forward_hooks or one._forward_pre_hooks)
        if not isinstance(one, Linear) or hooked or not (matrix := one.matrix):
            return None
        matrices.append(matrix)
    return products.product(x, matrices, act) if products.fits(x, matrices) else None


class RMSNorm(nn.Module):
    weight: nn.Parameter | None

    def __init__(self, part: spec.RMSNorm, width: int) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.empty(width)) if part.affine else None)
        self.eps = part.eps

    def forward(self, x: Tensor) -> Tensor:
        return gradients.rms_norm(x, self.weight, self.eps)


class OffsetRMSNorm(RMSNorm):
    """Gemma's: the stored weight is what is added to `offset`, and the product is rounded once, not twice."""

    weight: nn.Parameter

    def __init__(self, part: spec.RMSNorm, width: int) -> None:
        super().__init__(part, width)
        self.offset = part.offset

    def forward(self, x: Tensor) -> Tensor:
        return gradients.rms_norm(x, self.offset + self.weight.float(), self.eps)


class LayerNorm(nn.Module):
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, part: spec.LayerNorm, width: int) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.empty(width)) if part.affine else None)
        self.register_parameter("bias", nn.Parameter(torch.empty(width)) if part.affine and part.bias else None)
        self.eps = part.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


class OffsetLayerNorm(LayerNorm):
    """Nemotron's: the stored weight is what is added to `offset`, and the product is rounded once, not twice."""

    def __init__(self, part: spec.LayerNorm, width: int) -> None:
        super().__init__(part, width)
        self.offset = part.offset

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        weight, bias = self.offset + self.weight.float(), None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), (x.shape[-1],), weight, bias, self.eps).type_as(x)


class OwnLayerNorm(nn.Module):
    """Every head has weights of its own, H C. x: T H C; each head is normed by itself."""

    def __init__(self, part: spec.LayerNorm, heads: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, channels))
        self.eps = part.eps

    def forward(self, x: Tensor) -> Tensor:
        return (F.layer_norm(x.float(), (x.shape[-1],), eps=self.eps) * self.weight.float()).type_as(x)


NORMS = (RMSNorm, LayerNorm, OwnLayerNorm)


def norm(part: spec.Norm, width: int) -> nn.Module:
    if isinstance(part, spec.LayerNorm):
        return OffsetLayerNorm(part, width) if part.offset else LayerNorm(part, width)
    return OffsetRMSNorm(part, width) if part.offset else RMSNorm(part, width)
