"""A part of an adapter finds the module that takes it, which stands in another's place in the decoder.

Where there is none yet it is made and put there. What a part does to a module is said in `lora`, `whole` and `prefix`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lathe.errors import UsageError
from lathe.model.attention import Attention, LatentAttention
from lathe.model.decoder import Decoder, Embedding
from lathe.model.layers import Linear
from lathe.model.mlps import Router, SparseMixer, Stacked
from lathe.transforms.adapted import Adapted
from lathe.transforms.lora import LoraLinear, LoraRouter
from lathe.transforms.lora_tables import LoraEmbedding, LoraStacked
from lathe.transforms.lowrank import LowRank
from lathe.transforms.prefix import Prefixed, Tokens
from lathe.transforms.whole import Replaced, Scaled, ScaledLinear, Whole

Part = LowRank | Whole | Scaled | Tokens
Parts = Mapping[str, Sequence[Part]]  # by the names of modules in memory

# What stands in a module's place for a part of each kind.
KINDS: dict[type, dict[type, type]] = {
    LowRank: {
        Linear: LoraLinear,
        Embedding: LoraEmbedding,
        Stacked: LoraStacked,
        Router: LoraRouter,
        SparseMixer: LoraRouter,
    },
    Scaled: {Linear: ScaledLinear},
    Tokens: {Attention: Prefixed},
}


def place(decoder: Decoder, name: str, part: Part) -> Any:
    """The module that takes a part for the module `name`, put into its place where there is none yet.

    Raises UsageError where a part of this kind cannot be put on the module.
    """
    module = decoder.get_submodule(name)
    above = decoder.get_submodule(name.rpartition(".")[0])
    wanted = Replaced if isinstance(part, Whole) else _wanted(module, name, part, above)
    inside = module
    while isinstance(inside, Adapted | Prefixed):
        if isinstance(inside, wanted):
            return inside
        inside = inside.base_layer if isinstance(inside, Adapted) else inside.plain()
    if isinstance(module, LoraLinear | LoraEmbedding) and wanted is Replaced:  # terms stay terms of the new whole
        module.base_layer = Replaced(module.base_layer)
        return module.base_layer
    if isinstance(module, Adapted) and not isinstance(module, Replaced):
        raise UsageError(f"{name} has adapters of another kind already.", "", "Remove those first.")
    made = wanted(module)
    decoder.set_submodule(name, made)
    return made


def _wanted(module: nn.Module, name: str, part: Part, above: nn.Module) -> type:
    base = module
    while isinstance(base, Adapted):
        base = base.base_layer
    kind = next((made for of, made in KINDS[type(part)].items() if isinstance(base, of)), None)
    if kind is None:
        raise UsageError(f"{name} is a {type(base).__name__}.", f"A {type(part).__name__} cannot be put on it.")
    if isinstance(above, LatentAttention) and name.endswith("kv_b_proj") and getattr(part, "bias", None) is not None:
        # It is folded into the queries where there is a cache, and what is folded has no place for a bias.
        raise UsageError(f"{name} unfolds keys and values.", "An adapter cannot give it a bias.")
    return kind
