"""A block of a decoder becomes what the kernels are told of it: addresses of its parameters, sizes, kinds of its parts.

What they do not know, mixer or MLP, is left to the modules. Nothing is computed here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from operator import eq, is_
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lathe.model import attention, layers, mlps, native, rope, spec
from lathe.model.decoder import Block, Parallel, PostNorm, PreNorm, Sandwich, Sequential, Shared
from lathe.model.kernels import Cache
from lathe.model.layout import Layout
from lathe.model.native import structures
from lathe.transforms.adapted import shape_of
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


def hooked(module: nn.Module) -> bool:
    """Whether something is done before or after it that a kernel would not do."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


class Unknown(Exception):
    """A part that the kernels do not know."""


class Plan:
    """A block as the kernels are told of it, and the parameters that it was made of.

    mixes, feeds: whether the kernels do the mixer, and the MLP. type: of all numbers, as in native.TYPES. adapted:
    matrices with terms of low rank beside them.
    """

    def __init__(self, block: Block) -> None:
        self.holders: list[dict[str, Any]] = []  # where something was found, by which name, and what
        self.names: list[str] = []
        self.ones: list[Any] = []
        self.parameters: list[Tensor] = []
        self.places: list[int] = []
        self.types: set[torch.dtype] = set()
        self.told = structures.Block(residual=block.residual, parallel=not isinstance(block, Sequential))
        self.address = ctypes.addressof(self.told)
        self.adapted: list[tuple[LoraLinear, Any]] = []  # modules, and what is told of their matrices
        self.rope: spec.Rope | None = None
        self.heat: spec.Temperature | None = None
        self.cache: Cache | None = None
        stands = NORMS[type(block)]
        self.mixes = self._known(lambda: self._mixer(block, stands))
        self.feeds = self._known(lambda: self._mlp(block, stands))
        self.type = native.TYPES.get(next(iter(self.types))) if len(self.types) == 1 else None
        if not isinstance(block, Sequential) and not (self.mixes and self.feeds):
            self.mixes = self.feeds = False
        self.told.mixer.there, self.told.mlp.there = self.mixes, self.feeds
        self.whole = self.mixes and self.feeds
        self.turns = "native", id(self.rope), id(self.heat)

    def stands(self) -> bool:
        """Whether the block still has the modules and parameters that this was made of."""
        found = map(dict.get, self.holders, self.names)  # without a step of Python for each: it is asked every time
        return all(map(is_, found, self.ones)) and all(map(eq, map(Tensor.data_ptr, self.parameters), self.places))

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

    def layer(self, layout: Layout, cache: Cache) -> tuple[int, ...]:
        """What lathe_layers is told of the layer in this pass."""
        return (self.address, *self._room(cache), *layout.once(self.turns, lambda: self._turn(layout)))

    def _room(self, cache: Cache) -> tuple[int, ...]:
        """Addresses of keys, values and of the steps between their numbers."""
        keys, values = cache
        if self.cache is None or self.cache[0] is not keys or self.cache[1] is not values:
            self.cache = cache
            assert keys.stride(-1) == values.stride(-1) == 1
            self.steps = structures.Steps(keys.stride(0), keys.stride(1), values.stride(0), values.stride(1))
            self.kept = (keys.data_ptr(), values.data_ptr(), ctypes.addressof(self.steps))
        return self.kept

    def _turn(self, layout: Layout) -> tuple[int, ...]:
        """Addresses of cosines, sines and temperatures of the pass's tokens, which the layout keeps."""
        cos, sin = (None, None) if self.rope is None else rope.angles(self.rope, layout)
        warm = None if self.heat is None else attention.heat(self.heat, layout)
        return tuple(0 if x is None else x.data_ptr() for x in (cos, sin, warm))

    def _known(self, tell: Callable[[], None]) -> bool:
        try:
            tell()
        except Unknown:
            return False
        return True

    def _mixer(self, block: Block, stands: dict[str, str]) -> None:
        told, one = self.told.mixer, self._module(block, "self_attn", attention.Attention)
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
                self._norm(one, name, getattr(told, name))
            told.own = part.qk_norm.over == "own head"
        told.normed = NORMED[one.normed]
        told.look = structures.Look(
            part.heads, part.kv_heads, part.channels, part.window or 0, part.chunk or 0, part.scale, part.softcap or 0
        )
        told.rope_channels, told.interleaved = turned, bool(part.rope and part.rope.interleaved)
        told.clip = part.clip or 0
        told.sinks = self._parameter(one, "sinks")
        for place, name in stands.items():
            if place.endswith("mixer"):
                self._norm(block, name, getattr(self.told, place))
        self.told.width, self.rope, self.heat = shape_of(one.q_proj)[1], part.rope, part.temperature

    def _mlp(self, block: Block, stands: dict[str, str]) -> None:
        told, one = self.told.mlp, self._module(block, "mlp", mlps.Gated, mlps.Plain)
        for name in ("gate", "up", "down") if isinstance(one, mlps.Gated) else ("up", "down"):
            self._matrix(one, f"{name}_proj", getattr(told, name))
        if isinstance(one, mlps.Gated) and told.gate.kind != told.up.kind:  # whose rows pass side by side
            raise Unknown
        found = [name for name in get_args(spec.Activation) if mlps.ACTIVATIONS[name] is one.act]
        if not found:
            raise Unknown
        told.act = get_args(spec.Activation).index(found[0])
        told.width, self.told.width = shape_of(one.up_proj)
        for place, name in stands.items():
            if place.endswith("mlp"):
                self._norm(block, name, getattr(self.told, place))

    def _note(self, holder: dict[str, Any], name: str, one: Any) -> None:
        self.holders.append(holder)
        self.names.append(name)
        self.ones.append(one)

    def _module(self, holder: nn.Module, name: str, *kinds: type[nn.Module]) -> Any:
        one: Any = holder._modules.get(name)
        self._note(holder._modules, name, one)
        if type(one) not in kinds or hooked(one):
            raise Unknown
        return one

    def _parameter(self, holder: nn.Module, name: str, code: bool = False) -> int | None:
        one = holder._parameters.get(name)
        self._note(holder._parameters, name, one)
        if one is None:
            return None
        if not one.is_contiguous() or one.device.type != "cpu":
            raise Unknown
        self.parameters.append(one)
        self.places.append(one.data_ptr())
        if not code:
            self.types.add(one.dtype)
        return one.data_ptr()

    def _matrix(self, holder: nn.Module, name: str, told: Any) -> None:
        one = self._module(holder, name, layers.Linear, QuickLinear, QuickPacked, LoraLinear)
        if isinstance(one, LoraLinear):
            self.adapted.append((one, told))
            one = self._module(one, "base_layer", layers.Linear, QuickLinear, QuickPacked)
        if isinstance(one, QuickPacked):
            told.weight, told.kind = self._parameter(one, "panels", True), CODES[one.how]
        else:
            told.weight = self._parameter(one, "weight")
        told.bias, told.rows = self._parameter(one, "bias"), shape_of(one)[0]

    def _norm(self, holder: nn.Module, name: str, told: Any) -> None:
        kinds = (layers.RMSNorm, layers.OffsetRMSNorm, layers.LayerNorm, layers.OffsetLayerNorm, layers.OwnLayerNorm)
        one = self._module(holder, name, *kinds)
        told.kind = 1 if isinstance(one, layers.RMSNorm) else 2
        told.weight, told.bias = self._parameter(one, "weight"), self._parameter(one, "bias")
        told.eps, told.offset = one.eps, getattr(one, "offset", 0.0)
