"""A block of a decoder becomes what the kernels are told of it: addresses of its parameters, sizes, kinds of its parts.

What they do not know, mixer or MLP, is left to the modules. Nothing is computed here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import nn

from lathe.model import attention, layers, mlps, native, spec
from lathe.model.decoder import Block, Parallel, PostNorm, PreNorm, Sandwich, Sequential, Shared
from lathe.model.kernels import Cache
from lathe.model.native import structures
from lathe.transforms.adapted import shape_of
from lathe.transforms.found import Found, Unknown
from lathe.transforms.lora import LoraLinear
from lathe.transforms.lowrank import Terms
from lathe.transforms.panels import CODES, QuickPacked
from lathe.transforms.products import QuickLinear

WIDEST = 512  # channels of a head, as in attention.h
NORMS = {  # where a block's norms stand
    PreNorm: {"before_mixer": "input_layernorm", "before_mlp": "post_attention_layernorm"},
    PostNorm: {"after_mixer": "post_attention_layernorm", "after_mlp": "post_feedforward_layernorm"},
    Sandwich: {
        "before_mixer": "input_layernorm",
        "after_mixer": "post_attention_layernorm",
        "before_mlp": "pre_feedforward_layernorm",
        "after_mlp": "post_feedforward_layernorm",
    },
    Parallel: {"before_mixer": "input_layernorm", "before_mlp": "post_attention_layernorm"},
    Shared: {"before_mixer": "input_layernorm", "before_mlp": "input_layernorm"},
}
NORMED = {None: 0, "rows": 1, "heads": 2, "turned heads": 3}


class Plan(Found):
    """A block as the kernels are told of it, and what it was made of.

    mixes, feeds: whether the kernels do the mixer, and the MLP. whole: both. type: of all numbers, as in native.TYPES.
    adapted: matrices with terms of low rank beside them. rope, heat: what turns and warms its queries.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.told = structures.Block(residual=block.residual, parallel=not isinstance(block, Sequential))
        self.address = ctypes.addressof(self.told)
        self.adapted: list[tuple[LoraLinear, Any]] = []  # modules, and what is told of their matrices
        self.rope: spec.Rope | None = None
        self.heat: spec.Temperature | None = None
        stands = NORMS[type(block)]
        self.mixes = self._known(lambda: self._mixer(block, stands))
        self.feeds = self._known(lambda: self._mlp(block, stands))
        self.type = native.TYPES.get(next(iter(self.types))) if len(self.types) == 1 else None
        if not isinstance(block, Sequential) and not (self.mixes and self.feeds):
            self.mixes = self.feeds = False
        self.told.mixer.there, self.told.mlp.there = self.mixes, self.feeds
        self.whole = self.mixes and self.feeds

    def fits(self, dtype: torch.dtype, cache: Cache) -> bool:
        """Whether the kernels do some of it with numbers of this type."""
        known = self.type == native.TYPES[dtype] and cache[0].dtype in (dtype, torch.int8)
        return known and (self.mixes or self.feeds)

    def adapt(self, kind: torch.dtype) -> bool:
        """Tell of the adapters that count in this pass. False where the kernels do not know one."""
        self.terms: list[Terms] = []  # kept, as it is addresses that are told
        for module, told in self.adapted:
            names = module.counting
            if not names:
                told.rank = 0
                continue
            if module.training or not all(module.plain[name] for name in names):
                return False
            a, b, others = terms = module.together(names, kind)
            self.terms.append(terms)
            told.a, told.b, told.others = a.data_ptr(), b.data_ptr(), 0 if others is None else others.data_ptr()
            told.rank = len(a)
        return True

    def _known(self, tell: Callable[[], None]) -> bool:
        try:
            tell()
        except Unknown:
            return False
        return True

    def _mixer(self, block: Block, stands: dict[str, str]) -> None:
        told, one = self.told.mixer, self.module(block, "self_attn", attention.Attention)
        part = one.part
        turned = part.rope.channels if part.rope else 0
        if part.channels > WIDEST or turned % 2 or one.__dict__.get("look"):
            raise Unknown
        for name in ("q", "k", "v", "o"):
            self._matrix(one, f"{name}_proj", getattr(told, name))
        if len({bool(matrix.kind) for matrix in (told.q, told.k, told.v)}) > 1:
            raise Unknown  # what is given to them is made into codes once, or for none
        if part.qk_norm is not None:
            for name in ("q_norm", "k_norm"):
                self.norm(one, name, getattr(told, name))
            told.own = part.qk_norm.over == "own head"
        told.normed = NORMED[one.normed]
        told.look = structures.Look(
            part.heads, part.kv_heads, part.channels, part.window or 0, part.chunk or 0, part.scale, part.softcap or 0
        )
        told.rope_channels, told.interleaved = turned, bool(part.rope and part.rope.interleaved)
        told.clip = part.clip or 0
        told.sinks = self.parameter(one, "sinks")
        for place, name in stands.items():
            if place.endswith("mixer"):
                self.norm(block, name, getattr(self.told, place))
        self.told.width, self.rope, self.heat = shape_of(one.q_proj)[1], part.rope, part.temperature

    def _mlp(self, block: Block, stands: dict[str, str]) -> None:
        told, one = self.told.mlp, self.module(block, "mlp", mlps.Gated, mlps.Plain)
        for name in ("gate", "up", "down") if isinstance(one, mlps.Gated) else ("up", "down"):
            self._matrix(one, f"{name}_proj", getattr(told, name))
        if isinstance(one, mlps.Gated) and told.gate.kind != told.up.kind:  # whose rows pass side by side
            raise Unknown
        told.act = get_args(spec.Activation).index(one.act)
        told.width, self.told.width = shape_of(one.up_proj)
        for place, name in stands.items():
            if place.endswith("mlp"):
                self.norm(block, name, getattr(self.told, place))

    def _matrix(self, holder: nn.Module, name: str, told: Any) -> None:
        one = self.module(holder, name, layers.Linear, QuickLinear, QuickPacked, LoraLinear)
        if isinstance(one, LoraLinear):
            self.adapted.append((one, told))
            one = self.module(one, "base_layer", layers.Linear, QuickLinear, QuickPacked)
        if isinstance(one, QuickPacked):
            told.weight, told.kind = self.parameter(one, "panels", True), CODES[one.how]
        else:
            told.weight = self.parameter(one, "weight")
        told.bias, told.rows = self.parameter(one, "bias"), shape_of(one)[0]
