"""A Spec becomes a Decoder, and a ribbon of tokens becomes hidden states; one decoder for every family.

    tokens T ─ embed ─┬─────────────┬───────────┬─ ... ─ norm ─ hidden T D ─ logits(rows) N V
                      └ norm, mixer ┴ norm, mlp ┘  per layer

Dimensions, everywhere in Lathe: T tokens on the ribbon, S sequences, D width, H heads, K kv heads, C head channels,
F MLP width, E experts, V vocabulary. Parameters have the names that the Llama lineage gives them on disk. There is no
cache, mask, length or device on the model: they come with each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import repeat
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.model import attention, layers, mlps
from lathe.model.kernels import Cache
from lathe.model.layout import Layout
from lathe.model.spec import Layer, Order, Spec


class Embedding(nn.Module):
    """Rows of a table, by token or by position."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight)


class Block(nn.Module):
    """One residual layer. Where its norms stand is a subclass, chosen by `Layer.order` when the decoder is built."""

    norms: ClassVar[tuple[str, ...]] = ("input_layernorm", "post_attention_layernorm")
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    pre_feedforward_layernorm: nn.Module
    post_feedforward_layernorm: nn.Module

    def __init__(self, part: Layer, width: int) -> None:
        super().__init__()
        self.self_attn = attention.mixer(part.mixer, width)
        self.mlp = mlps.mlp(part.mlp, width)
        self.residual = part.residual
        for name in self.norms:
            self.add_module(name, layers.norm(part.norm, width))

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream with `y` added to it, in one pass, whatever the factor."""
        return torch.add(x, y, alpha=self.residual)


class Sequential(Block):
    """The MLP sees what the mixer has added."""

    def forward(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        return self.feed(self.mix(x, layout, cache))

    def mix(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        raise NotImplementedError

    def feed(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class PreNorm(Sequential):
    def mix(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        return self.add(x, self.self_attn(self.input_layernorm(x), layout, cache))

    def feed(self, x: Tensor) -> Tensor:
        return self.add(x, self.mlp(self.post_attention_layernorm(x)))


class PostNorm(Sequential):
    norms = ("post_attention_layernorm", "post_feedforward_layernorm")

    def mix(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        return self.add(x, self.post_attention_layernorm(self.self_attn(x, layout, cache)))

    def feed(self, x: Tensor) -> Tensor:
        return self.add(x, self.post_feedforward_layernorm(self.mlp(x)))


class Sandwich(Sequential):
    norms = (*Block.norms, "pre_feedforward_layernorm", "post_feedforward_layernorm")

    def mix(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        return self.add(x, self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), layout, cache)))

    def feed(self, x: Tensor) -> Tensor:
        return self.add(x, self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x))))


class Parallel(Block):
    def forward(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), layout, cache)
        return self.add(x, mixed + self.mlp(self.post_attention_layernorm(x)))


class Shared(Block):
    norms = ("input_layernorm",)

    def forward(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        normed = self.input_layernorm(x)
        return self.add(x, self.self_attn(normed, layout, cache) + self.mlp(normed))


BLOCKS: dict[Order, type[Block]] = {
    "pre": PreNorm,
    "post": PostNorm,
    "sandwich": Sandwich,
    "parallel": Parallel,
    "shared": Shared,
}


class Trunk(nn.Module):
    """Everything below the head: the part that checkpoints call `model`."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.embed_tokens = Embedding(spec.vocab, spec.width)
        if spec.learned_positions is not None:
            self.embed_positions = Embedding(spec.learned_positions, spec.width)
        self.layers = nn.ModuleList(BLOCKS[part.order](part, spec.width) for part in spec.layers)
        self.norm = layers.norm(spec.norm, spec.width)

    def forward(self, x: Tensor, layout: Layout, cache: Sequence[Cache] | None) -> Tensor:
        """The stream behind the last norm. T D"""
        for layer, kept in zip(self.layers, cache or repeat(None), strict=cache is not None):
            x = layer(x, layout, kept)
        return self.norm(x)


class Decoder(nn.Module):
    """A language model built from a spec. Under `torch.device("meta")` building it costs no memory."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.model = Trunk(spec)
        self.lm_head = layers.Linear(spec.width, spec.vocab, spec.head_bias)
        if spec.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def like(self) -> Tensor:
        """A parameter of the type that is computed in, on the device where it begins: the first that is no codes."""
        return next(one for one in self.parameters() if one.is_floating_point())

    def forward(self, tokens: Tensor, layout: Layout, cache: Sequence[Cache] | None = None) -> Tensor:
        """Hidden states of a ribbon. tokens: (T,) int64. cache: keys and values of each layer, written in place.

        Returns T D, after the last norm.
        """
        return self.model(self.embed(tokens, layout), layout, cache)

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        x = self.model.embed_tokens(tokens)
        if self.spec.embed_scale != 1.0:
            # Rounded to the model's dtype before it multiplies, as the checkpoints were trained (Gemma).
            x = x * rounded(self.spec.embed_scale, x.dtype)
        if self.spec.learned_positions is not None:
            x = x + self.model.embed_positions(layout.positions)
        return x

    def logits(self, rows: Tensor) -> Tensor:
        """Scores of every next token. rows: N D, the hidden states somebody wants. Returns N V."""
        y = self.lm_head(rows)
        if self.spec.logit_scale != 1.0:
            y = y * self.spec.logit_scale
        cap = self.spec.logit_softcap
        return y if cap is None else cap * torch.tanh(y / cap)


@cache
def rounded(number: float, dtype: torch.dtype) -> float:
    """The number of this type that is nearest: as a tensor it would have to be brought to the device each time."""
    return cast("float", torch.tensor(number, dtype=dtype, device="cpu").tolist())
