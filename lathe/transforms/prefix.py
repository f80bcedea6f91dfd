"""Attention becomes attention that also looks at learned tokens, through a gate per head: LLaMA-Adapter.

Zhang et al., arXiv:2303.16199. Keys and values of the prefix are made by the layer's own projections in every pass, so
that it learns, and keys are not turned: the prefix stands at no position.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lathe.model.attention import Attention
from lathe.model.kernels import Cache
from lathe.model.layout import Layout
from lathe.transforms.adapted import Counting, joined, kind_of


@dataclass(frozen=True, eq=False)
class Tokens:
    """A layer's prefix: P D, and what each head's share is multiplied by: H.

    as_litgpt: keys and values are cut from the projections as LitGPT cuts them: as if q, k and v of one group lay
    together, which they have not since its files changed. An adapter that learned so gives its answers only so.
    """

    tokens: Tensor
    gates: Tensor
    as_litgpt: bool = False


class Prefixed(Counting, Attention):
    """An attention with prefixes. Its other modules are those of the attention that it replaces, by the same names."""

    def __init__(self, base: Attention) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(base.__dict__)
        self._modules = dict(base._modules)
        self.adapter_wte, self.gating_factor = nn.ParameterDict(), nn.ParameterDict()
        self.as_litgpt: set[str] = set()

    @property
    def names(self) -> list[str]:
        return list(self.adapter_wte)

    def put(self, name: str, part: Tokens) -> None:
        device, dtype = kind_of(self.k_proj)
        self.adapter_wte[name] = nn.Parameter(part.tokens.to(device, dtype))
        self.gating_factor[name] = nn.Parameter(part.gates.to(device, dtype))
        if part.as_litgpt:
            self.as_litgpt.add(name)

    def drop(self, name: str) -> None:
        del self.adapter_wte[name], self.gating_factor[name]
        self.as_litgpt.discard(name)

    def part_of(self, name: str) -> Tokens:
        return Tokens(self.adapter_wte[name], self.gating_factor[name], name in self.as_litgpt)

    def plain(self) -> Attention:
        """The attention without its prefixes."""
        base = Attention.__new__(Attention)
        mine = ("as_litgpt", "active", "ribbon")
        base.__dict__.update({k: v for k, v in self.__dict__.items() if k not in mine})
        base._modules = {k: v for k, v in self._modules.items() if k not in ("adapter_wte", "gating_factor")}
        return base

    def look(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        y = super().look(q, k, v, layout, cache)  # T H C
        return joined([self._with(names, q[rows], y[rows]) for names, rows in self.spans])

    def _with(self, names: tuple[str, ...], q: Tensor, y: Tensor) -> Tensor:
        for name in names:
            with nullcontext() if self.ribbon is None or not self.mixed else self.ribbon.over((name, slice(None))):
                keys, values = self._learned(name, q.dtype)
            y = y + (self.gating_factor[name][:, None] * self._mixed(q, keys, values)).type_as(y)
        return y

    def _learned(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of a prefix, both P K C."""
        part, tokens = self.part, self.adapter_wte[name].to(dtype)
        if name in self.as_litgpt:
            rows = torch.cat([cast("Tensor", f(tokens)) for f in (self.q_proj, self.k_proj, self.v_proj)], dim=-1)
            cut = rows.unflatten(-1, (part.kv_heads, -1, part.channels))  # P K H/K+2 C
            return cut[:, :, -2], cut[:, :, -1]
        k, v = self.k_proj(tokens), self.v_proj(tokens)
        if self.normed == "rows":
            k = self.k_norm(k)
        if part.clip is not None:
            k, v = k.clamp(-part.clip, part.clip), v.clamp(-part.clip, part.clip)
        k, v = (y.unflatten(-1, (-1, part.channels)) for y in (k, v))
        return (self.k_norm(k) if self.normed in ("heads", "turned heads") else k), v

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each token's mixture of the prefix, which all of them see whole. q: T H C; k, v: P K C. Returns T H C."""
        part = self.part
        scores = torch.einsum("tkgc,pkc->tkgp", q.unflatten(1, (k.shape[1], -1)), k) * part.scale
        if part.softcap is not None:
            scores = part.softcap * torch.tanh(scores / part.softcap)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        return torch.einsum("tkgp,pkc->tkgc", weights, v).flatten(1, 2)
