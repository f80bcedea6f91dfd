"""The parts that work on each token alone: linear maps, norms, MLPs and mixtures of experts, built from their specs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.model import kernels, spec


class Linear(nn.Module):
    """x @ weight.T + bias: the single seam for matrix products. Transforms put other modules in its place by name."""

    bias: nn.Parameter | None

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.register_parameter("bias", nn.Parameter(torch.empty(outputs)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    def __init__(self, part: spec.RMSNorm, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = part.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class OffsetRMSNorm(RMSNorm):
    """Gemma's: the stored weight is what is added to `offset`, and the product is rounded once, not twice."""

    def __init__(self, part: spec.RMSNorm, width: int) -> None:
        super().__init__(part, width)
        self.offset = part.offset

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.offset + self.weight.float(), self.eps).type_as(x)


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


def norm(part: spec.Norm, width: int) -> nn.Module:
    if isinstance(part, spec.LayerNorm):
        return LayerNorm(part, width)
    return OffsetRMSNorm(part, width) if part.offset else RMSNorm(part, width)


ACTIVATIONS: dict[spec.Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


class Gated(nn.Module):
    def __init__(self, part: spec.Gated, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, part.width, part.bias)
        self.up_proj = Linear(width, part.width, part.bias)
        self.down_proj = Linear(part.width, width, part.bias)
        self.act = ACTIVATIONS[part.act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Plain(nn.Module):
    def __init__(self, part: spec.Plain, width: int) -> None:
        super().__init__()
        self.up_proj = Linear(width, part.width, part.bias)
        self.down_proj = Linear(part.width, width, part.bias)
        self.act = ACTIVATIONS[part.act]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.up_proj(x)))


class Router(nn.Module):
    """Each token's chosen experts and their weights, both T k. Scores are computed in float32."""

    e_score_correction_bias: Tensor | None

    def __init__(self, part: spec.Router, width: int) -> None:
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.empty(part.count, width))
        # A buffer, not a parameter: it is moved by counting tokens, never by a gradient, and stays in float32.
        self.register_buffer("e_score_correction_bias", torch.empty(part.count) if part.correction else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        part = self.part
        logits = F.linear(x.float(), self.weight.float())  # T E
        scores = logits.sigmoid() if part.score == "sigmoid" else logits.softmax(-1)
        judged = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias
        if part.groups > 1:
            grouped = judged.unflatten(-1, (part.groups, -1))  # T G E/G
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(part.top_groups, dim=-1).indices
            out = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=x.device).scatter(-1, best, False)
            judged = grouped.masked_fill(out[..., None], float("-inf")).flatten(-2)
        chosen = judged.topk(part.chosen, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if part.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * part.scale


class Stacked(nn.Module):
    """One matrix per expert, E F D."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        return kernels.expert_products(x, self.weight, counts)


class ExpertMlps(nn.Module):
    def __init__(self, part: spec.Gated, count: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Stacked(count, width, part.width)
        self.up_proj = Stacked(count, width, part.width)
        self.down_proj = Stacked(count, part.width, width)
        self.act = ACTIVATIONS[part.act]

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """x: N D, sorted by expert; counts: rows for each expert."""
        return self.down_proj(self.act(self.gate_proj(x, counts)) * self.up_proj(x, counts), counts)


class Experts(nn.Module):
    """Every token visits its chosen experts only: copies of tokens are sorted by expert, computed, summed back."""

    def __init__(self, part: spec.Experts, width: int) -> None:
        super().__init__()
        self.gate = Router(part.router, width)
        self.experts = ExpertMlps(part.each, part.router.count, width)
        self.count = part.router.count
        self.shared_experts = Gated(part.shared, width) if part.shared else None

    def forward(self, x: Tensor) -> Tensor:
        chosen, weights = self.gate(x)  # T k
        order = chosen.flatten().argsort(stable=True)
        token = order // chosen.shape[-1]
        counts = chosen.flatten().bincount(minlength=self.count).tolist()
        y = self.experts(x[token], counts) * weights.flatten()[order, None]
        out = torch.zeros_like(x).index_add(0, token, y.type_as(x))
        return out if self.shared_experts is None else out + self.shared_experts(x)


def mlp(part: spec.Mlp, width: int) -> nn.Module:
    match part:
        case spec.Gated():
            return Gated(part, width)
        case spec.Plain():
            return Plain(part, width)
        case spec.Experts():
            return Experts(part, width)
