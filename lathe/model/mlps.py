"""The MLPs: dense ones, and mixtures of experts that each token visits a few of, built from their specs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.model import gradients, kernels, layers, spec
from lathe.model.layers import Linear


class Gated(nn.Module):
    def __init__(self, part: spec.Gated, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, part.width, part.bias)
        self.up_proj = Linear(width, part.width, part.bias)
        self.down_proj = Linear(part.width, width, part.bias)
        self.act = part.act

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(layers.gated(x, self.act, self.gate_proj, self.up_proj))


class Plain(nn.Module):
    def __init__(self, part: spec.Plain, width: int) -> None:
        super().__init__()
        self.up_proj = Linear(width, part.width, part.bias)
        self.down_proj = Linear(part.width, width, part.bias)
        self.act = part.act

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gradients.ACTIVATIONS[self.act](self.up_proj(x)))


class Router(nn.Module):
    """Each token's chosen experts and their weights, both T k. Scores are computed in float32."""

    bias: nn.Parameter | None
    e_score_correction_bias: Tensor | None

    def __init__(self, part: spec.Router, width: int) -> None:
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.empty(part.count, width))
        self.register_parameter("bias", nn.Parameter(torch.empty(part.count)) if part.bias else None)
        # A buffer, not a parameter: it is moved by counting tokens, never by a gradient, and stays in float32.
        self.register_buffer("e_score_correction_bias", torch.empty(part.count) if part.correction else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        part = self.part
        logits = F.linear(x.float(), self.weight.float(), None if self.bias is None else self.bias.float())  # T E
        scores = logits.sigmoid() if part.score == "sigmoid" else logits.softmax(-1)
        judged = scores if self.e_score_correction_bias is None else scores + self.e_score_correction_bias
        if part.groups > 1:
            grouped = judged.unflatten(-1, (part.groups, -1))  # T G E/G
            best = grouped.topk(part.judges, dim=-1).values.sum(-1).topk(part.top_groups, dim=-1).indices
            out = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=x.device).scatter(-1, best, False)
            judged = grouped.masked_fill(out[..., None], float("-inf")).flatten(-2)
        chosen = judged.topk(part.chosen, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if part.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * part.scale


class SparseMixer(nn.Module):
    """Each token's chosen experts and their weights, both T k, in float32."""

    def __init__(self, part: spec.SparseMixer, width: int) -> None:
        super().__init__()
        self.part = part
        self.weight = nn.Parameter(torch.empty(part.count, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(x.float(), self.weight.float())  # T E
        left, chosen, weights = logits, [], []
        for _ in range(self.part.chosen):
            best, index = left.max(-1, keepdim=True)  # T 1
            behind = (best - logits) / logits.abs().clamp(min=best)
            near = left.masked_fill(behind > 2 * self.part.jitter, float("-inf"))
            chosen.append(index)
            weights.append(near.softmax(-1).gather(-1, index))
            left = left.scatter(-1, index, float("-inf"))
        return torch.cat(chosen, dim=-1), torch.cat(weights, dim=-1)


def router(part: spec.Router | spec.SparseMixer, width: int) -> nn.Module:
    return Router(part, width) if isinstance(part, spec.Router) else SparseMixer(part, width)


class Stacked(nn.Module):
    """One matrix per expert, E F D, and with `bias` one row, E F."""

    bias: nn.Parameter | None

    def __init__(self, count: int, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))
        self.register_parameter("bias", nn.Parameter(torch.empty(count, outputs)) if bias else None)

    def forward(self, x: Tensor, groups: kernels.Groups) -> Tensor:
        return kernels.expert_products(x, self.weight, self.bias, groups)


def joined(part: spec.Gated | spec.Clamped) -> Callable[[Tensor, Tensor], Tensor]:
    """What becomes of gate(x) and up(x)."""
    if isinstance(part, spec.Gated):
        return partial(gradients.gate, part.act)

    def clamped(gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=part.limit), up.clamp(-part.limit, part.limit)
        return (up + 1) * (gate * torch.sigmoid(part.alpha * gate))

    return clamped


class ExpertMlps(nn.Module):
    def __init__(self, part: spec.Gated | spec.Clamped, count: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Stacked(count, width, part.width, part.bias)
        self.up_proj = Stacked(count, width, part.width, part.bias)
        self.down_proj = Stacked(count, part.width, width, part.bias)
        self.join = joined(part)

    def forward(self, x: Tensor, groups: kernels.Groups) -> Tensor:
        """x: N D, sorted by expert."""
        return self.down_proj(self.join(self.gate_proj(x, groups), self.up_proj(x, groups)), groups)


class Experts(nn.Module):
    """Every token visits its chosen experts only: copies of tokens are sorted by expert, computed, summed back."""

    def __init__(self, part: spec.Experts, width: int) -> None:
        super().__init__()
        self.part = part
        self.gate = router(part.router, width)
        self.experts = ExpertMlps(part.each, part.router.count, width)
        if part.shared is not None:
            self.shared_experts = Gated(part.shared, width)
            if part.shared_gate:
                self.shared_expert_gate = Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        chosen, weights = self.gate(x)  # T k
        order = chosen.flatten().argsort(stable=True)
        token, weight = order // chosen.shape[-1], weights.flatten()[order, None]
        # Not bincount, for which the host would wait.
        sizes = torch.zeros(self.part.router.count, dtype=torch.int64, device=x.device)
        groups = kernels.Groups(sizes.index_add_(0, chosen.flatten(), torch.ones_like(order)))
        if self.part.weighs == "output":
            y = self.experts(x[token], groups) * weight
        else:
            y = self.experts((x[token] * weight).type_as(x), groups)
        out = torch.zeros_like(x).index_add(0, token, y.type_as(x))
        return out if self.part.shared is None else out + self._shared(x)

    def _shared(self, x: Tensor) -> Tensor:
        y = self.shared_experts(x)
        return y * self.shared_expert_gate(x).sigmoid() if self.part.shared_gate else y


def mlp(part: spec.Mlp, width: int) -> nn.Module:
    match part:
        case spec.Gated():
            return Gated(part, width)
        case spec.Plain():
            return Plain(part, width)
        case spec.Experts():
            return Experts(part, width)
