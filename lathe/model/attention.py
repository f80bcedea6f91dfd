"""The mixers: tokens look at the tokens before them, in their own sequence only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lathe.model import kernels, layers, rope, spec
from lathe.model.layout import Layout


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention. Vaswani et al. 2017; Ainslie et al., arXiv:2305.13245."""

    sinks: nn.Parameter | None

    def __init__(self, part: spec.Attention, width: int) -> None:
        super().__init__()
        self.part = part
        queries, keys = part.heads * part.channels, part.kv_heads * part.channels
        self.q_proj = layers.Linear(width, queries, part.qkv_bias)
        self.k_proj = layers.Linear(width, keys, part.qkv_bias)
        self.v_proj = layers.Linear(width, keys, part.qkv_bias)
        self.o_proj = layers.Linear(queries, width, part.out_bias)
        self.normed = None if part.qk_norm is None else _normed(part.qk_norm)
        if part.qk_norm is not None:
            self.q_norm = _norm(part.qk_norm, part.heads, part.channels)
            self.k_norm = _norm(part.qk_norm, part.kv_heads, part.channels)
        self.register_parameter("sinks", nn.Parameter(torch.empty(part.heads)) if part.sinks else None)

    def forward(self, x: Tensor, layout: Layout, cache: kernels.Cache | None) -> Tensor:
        part = self.part
        turn = None if part.rope is None else rope.angles(part.rope, layout)
        warm = None if part.temperature is None else heat(part.temperature, layout)
        q, k, v = self.project(x, turn, warm)
        return self.o_proj(self.look(q, k, v, layout, cache).flatten(-2))

    def project(self, x: Tensor, turn: rope.Angles | None, warm: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, T H C, keys and values, both T K C. Knows no layout, so that it can be compiled for all of them."""
        part = self.part
        q, k, v = layers.together(x, self.q_proj, self.k_proj, self.v_proj)
        if self.normed == "rows":
            q, k = self.q_norm(q), self.k_norm(k)
        if part.clip is not None:
            q, k, v = (y.clamp(-part.clip, part.clip) for y in (q, k, v))
        q, k, v = (y.unflatten(-1, (-1, part.channels)) for y in (q, k, v))  # T H C, T K C
        if self.normed == "heads":
            q, k = self.q_norm(q), self.k_norm(k)
        if part.rope is not None and turn is not None:
            q, k = rope.rotate(turn, part.rope, q, k)
        if self.normed == "turned heads":
            q, k = self.q_norm(q), self.k_norm(k)
        if warm is not None:
            q = (q * warm).type_as(q)
        return q, k, v

    def look(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, cache: kernels.Cache | None) -> Tensor:
        """What each head gathers, T H C. The place where adapters let it look at more."""
        part = self.part
        return kernels.attend(
            q,
            k,
            v,
            layout,
            scale=part.scale,
            window=part.window,
            chunk=part.chunk,
            softcap=part.softcap,
            sinks=self.sinks,
            cache=cache,
        )


def heat(part: spec.Temperature, layout: Layout) -> Tensor:
    """What the queries of each token are multiplied by, T 1 1, float32."""

    def made() -> Tensor:
        turns = ((layout.positions + part.ahead) // part.every).float()
        return (1 + part.strength * turns.log1p())[:, None, None]

    return layout.once(part, made)


def _normed(part: spec.QKNorm) -> str:
    """What the norms are given."""
    if part.over == "row":
        return "rows"
    return "turned heads" if part.turned else "heads"


def _norm(part: spec.QKNorm, heads: int, channels: int) -> nn.Module:
    if part.over == "own head":
        assert isinstance(part.norm, spec.LayerNorm)
        return layers.OwnLayerNorm(part.norm, heads, channels)
    return layers.norm(part.norm, heads * channels if part.over == "row" else channels)


class LatentAttention(nn.Module):
    """DeepSeek's multi-head latent attention.

    Keys and values of a token unfold from one latent. Without a cache they are unfolded. With one, only the latent and
    the shared rotated key are kept, and the unfolding matrices move to the other side of the products: queries are
    folded into latent space, where all heads look at the same keys, and what they gather is unfolded once per query.
    """

    def __init__(self, part: spec.LatentAttention, width: int) -> None:
        super().__init__()
        self.part = part
        queries = part.heads * (part.plain_channels + part.rope.channels)
        if part.q_rank is None:
            self.q_proj = layers.Linear(width, queries)
        else:
            self.q_a_proj = layers.Linear(width, part.q_rank, part.bias)
            self.q_a_layernorm = layers.norm(part.norm, part.q_rank)
            self.q_b_proj = layers.Linear(part.q_rank, queries)
        self.kv_a_proj_with_mqa = layers.Linear(width, part.kv_rank + part.rope.channels, part.bias)
        self.kv_a_layernorm = layers.norm(part.norm, part.kv_rank)
        self.kv_b_proj = layers.Linear(part.kv_rank, part.heads * (part.plain_channels + part.value_channels))
        self.o_proj = layers.Linear(part.heads * part.value_channels, width, part.bias)

    def forward(self, x: Tensor, layout: Layout, cache: kernels.Cache | None) -> Tensor:
        part = self.part
        q = self.q_proj(x) if part.q_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (part.heads, -1))  # T H (plain + rope)
        q_plain, q_turned = q.split([part.plain_channels, part.rope.channels], dim=-1)
        latent, k_turned = self.kv_a_proj_with_mqa(x).split([part.kv_rank, part.rope.channels], dim=-1)
        latent = self.kv_a_layernorm(latent)[:, None]  # T 1 rank
        turn = rope.angles(part.rope, layout)
        q_turned, k_turned = rope.rotate(turn, part.rope, q_turned, k_turned[:, None])  # the latter T 1 rope
        mix = self._unfolded if cache is None else self._folded
        return self.o_proj(mix(q_plain, q_turned, latent, k_turned, layout, cache).flatten(-2))

    def _unfolded(
        self, q_plain: Tensor, q_turned: Tensor, latent: Tensor, k_turned: Tensor, layout: Layout, _: object
    ) -> Tensor:
        part = self.part
        kv = self.kv_b_proj(latent[:, 0]).unflatten(-1, (part.heads, -1))
        k_plain, v = kv.split([part.plain_channels, part.value_channels], dim=-1)  # T H .
        q = torch.cat((q_plain, q_turned), dim=-1)
        k = torch.cat((k_plain, k_turned.expand(-1, part.heads, -1)), dim=-1)
        return kernels.attend(q, k, v, layout, scale=part.scale, window=part.window, softcap=part.softcap)

    def _folded(
        self,
        q_plain: Tensor,
        q_turned: Tensor,
        latent: Tensor,
        k_turned: Tensor,
        layout: Layout,
        cache: kernels.Cache | None,
    ) -> Tensor:
        part = self.part
        unfold = self.kv_b_proj.weight.unflatten(0, (part.heads, -1))  # H (plain + value) rank
        unfold_k, unfold_v = unfold.split([part.plain_channels, part.value_channels], dim=1)
        q = torch.cat((torch.einsum("thc,hcr->thr", q_plain, unfold_k), q_turned), dim=-1)
        k = torch.cat((latent, k_turned), dim=-1)
        y = kernels.attend(
            q, k, latent, layout, scale=part.scale, window=part.window, softcap=part.softcap, cache=cache
        )  # T H rank
        return torch.einsum("thr,hcr->thc", y, unfold_v)


def mixer(part: spec.Mixer, width: int) -> nn.Module:
    return Attention(part, width) if isinstance(part, spec.Attention) else LatentAttention(part, width)
