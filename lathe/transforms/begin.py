"""Settings become an adapter that has learned nothing yet: on any decoder, it changes nothing before it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.model.attention import Attention
from lathe.model.decoder import Decoder, Embedding
from lathe.model.layers import Linear
from lathe.model.mlps import Stacked
from lathe.transforms.adapted import Adapted, kind_of, shape_of
from lathe.transforms.lowrank import LowRank
from lathe.transforms.prefix import Tokens
from lathe.transforms.standing import Part
from lathe.transforms.terms import Lora, Prefix, Scale, named
from lathe.transforms.whole import Scaled, Whole

Made = dict[str, list[Part]]


def sites(decoder: Decoder) -> dict[str, nn.Module]:
    """The base's modules by the names they have without adapters."""
    found: dict[str, nn.Module] = {}
    for name, module in decoder.named_modules():
        inside = name.replace(".base_layer", "")
        if not isinstance(module, Adapted) and inside not in found and _of_base(decoder, name):
            found[inside] = module
    return found


def _of_base(decoder: Decoder, name: str) -> bool:
    """Whether no module above this one holds it as part of an adapter."""
    above: nn.Module = decoder
    for part in name.split(".") if name else ():
        if isinstance(above, Adapted) and part != "base_layer":
            return False
        above = above.get_submodule(part)
    return not isinstance(above, nn.ModuleDict | nn.ParameterDict)


def values(parameter: Tensor) -> Tensor:
    """A copy of a parameter's numbers; of one in shards, of all of them, for which all processes must ask."""
    gather: Callable[[], Tensor] | None = getattr(parameter.detach(), "full_tensor", None)
    return parameter.detach().clone() if gather is None else gather()


def lora(decoder: Decoder, settings: Lora, device: torch.device | None = None) -> Made:
    """Parts for `adapt.put`: A random, B zero (of an embedding the other way round, as its authors and PEFT have it).

    device: where they are made, if not where the decoder is.

    Raises UsageError where the settings fit no module.
    """
    made: Made = {}
    for name, module in sites(decoder).items():
        if isinstance(module, Linear | Embedding | Stacked) and _wanted(settings, name, module):
            made[name] = [_low_rank(settings, name, module, device)]
        if named(settings.whole, name):
            made.setdefault(name, []).append(Whole({key: values(p) for key, p in module.named_parameters()}))
        elif settings.bias == "all" or (settings.bias == "lora_only" and name in made):
            bias = module._parameters.get("bias")
            if bias is not None:
                made.setdefault(name, []).append(Whole({"bias": values(bias)}))
    if not any(isinstance(part, LowRank) for parts in made.values() for part in parts):
        known = sorted({name.rpartition(".")[2] for name, m in sites(decoder).items() if isinstance(m, Linear)})
        raise UsageError(f"No module is called {settings.targets}.", f"There are {', '.join(known)}.")
    return made


def _wanted(settings: Lora, name: str, module: nn.Module) -> bool:
    if settings.targets == "all-linear":
        every = Lora(targets=".*", excluded=settings.excluded, layers=settings.layers)
        return isinstance(module, Linear) and name != "lm_head" and every.wants(name)
    return settings.wants(name)


def _low_rank(settings: Lora, name: str, module: Linear | Embedding | Stacked, device: torch.device | None) -> LowRank:
    rank = settings.rank_of(name)
    own, dtype = kind_of(module)
    like: Any = {"device": device or own, "dtype": dtype}
    scaling = settings.scaling(name, rank)
    if isinstance(module, Embedding):
        if settings.dora:
            raise UsageError(f"{name} is an embedding.", "DoRA is for matrices.", "Leave it out of the targets.")
        rows, width = shape_of(module)
        return LowRank(torch.zeros(rank, rows, **like), torch.randn(width, rank, **like), scaling, table=True)
    *experts, outputs, inputs = shape_of(module)
    a = torch.empty(*experts, rank, inputs, **like)
    for matrix in a if experts else [a]:
        nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
    b = torch.zeros(*experts, outputs, rank, **like)
    if settings.dora and experts:
        raise UsageError(f"{name} holds the matrices of experts.", "DoRA is for single ones.", "Leave it out.")
    magnitude = values(module.weight).float().norm(dim=1) if settings.dora else None
    bias = torch.zeros(outputs, **like) if settings.own_bias else None
    return LowRank(a, b, scaling, settings.dropout, magnitude, bias)


def prefix(decoder: Decoder, settings: Prefix) -> Made:
    """Random tokens behind closed gates, in every attention from layer `start` on."""
    found = [(name, m) for name, m in sites(decoder).items() if isinstance(m, Attention)]
    if len(found) < len(decoder.spec.layers):
        raise UsageError("Not every layer has heads with keys and values of their own.", "A prefix needs them.")
    return {name: [_tokens(m, decoder.spec.width, settings)] for name, m in found[settings.start :]}


def _tokens(module: Attention, width: int, settings: Prefix) -> Tokens:
    like: Any = dict(zip(("device", "dtype"), kind_of(module.k_proj), strict=True))
    return Tokens(torch.randn(settings.length, width, **like), torch.zeros(module.part.heads, **like))


def scale(decoder: Decoder, settings: Scale) -> Made:
    """A scale of one and a bias of zero for every matrix, the norms between layers, and a prefix."""
    made = prefix(decoder, settings.prefix)
    for name, module in sites(decoder).items():
        if isinstance(module, Linear):
            rows = torch.zeros(shape_of(module)[0], device=kind_of(module)[0])
            made.setdefault(name, []).append(Scaled(rows + 1, rows))
        elif name.endswith("layernorm") or name == "model.norm":
            made[name] = [Whole({key: values(p) for key, p in module.named_parameters()})]
    return made
