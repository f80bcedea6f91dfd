"""A decoder gets adapters by name: put on, switched, summed, merged, taken off. What one is, other files here say.

The decoder is changed in place, module by module, and goes on being called as before. Any number of adapters may be
there; the results of those that are active add up. Whatever learns is called what PEFT calls it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from lathe.errors import UsageError, did_you_mean
from lathe.model.decoder import Decoder
from lathe.model.layers import Linear
from lathe.transforms.adapted import Adapted
from lathe.transforms.lora import LoraLinear
from lathe.transforms.lowrank import LowRank
from lathe.transforms.panels import same
from lathe.transforms.prefix import Prefixed
from lathe.transforms.standing import Part, Parts, place
from lathe.transforms.whole import Replaced, Whole


def put(decoder: Decoder, name: str, parts: Parts) -> None:
    """Put an adapter on, active beside those that are active already. Nothing of it asks for gradients.

    parts: what it does to each module, by the modules' names, as `begin.lora` makes them.

    Raises:
        UsageError: the decoder has one of that name, or has adapters merged; the name is none that a module can have.
    """
    check(decoder, name)
    held: dict[int, Linear] = {}  # modules by the tensors they hold, of which several parts may share one
    for module in sorted(parts):
        for part in sorted(parts[module], key=lambda part: not isinstance(part, Whole)):
            taker = place(decoder, module, part)
            if isinstance(taker, LoraLinear) and isinstance(part, LowRank):
                taker.put(name, part, held.get(id(part.a)))
                held[id(part.a)] = cast("Linear", taker.lora_A[name])
            else:
                taker.put(name, part)
    for parameter in own(decoder, name).values():
        parameter.requires_grad_(False)
    activate(decoder, [*active(decoder), name])


def check(decoder: Decoder, name: str) -> None:
    """Raise UsageError where no adapter of this name can be put on."""
    if not name or "." in name or hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        raise UsageError(f'"{name}" cannot be the name of an adapter.', "It is part of parameters' names.")
    if name in names(decoder):
        raise UsageError(f'There is an adapter called "{name}" already.', "", "Give it another name, as in NAME=PATH.")
    _unmerged(decoder)


# ---- what is there ---------------------------------------------------------------------------------------------------
def adapted(decoder: Decoder) -> Iterator[tuple[str, Adapted | Prefixed]]:
    """The modules that have adapters, outer ones first."""
    for name, module in decoder.named_modules():
        if isinstance(module, Adapted | Prefixed):
            yield name, module


def names(decoder: Decoder) -> list[str]:
    """All adapters of a decoder."""
    return list(dict.fromkeys(name for _, module in adapted(decoder) for name in module.names))


def active(decoder: Decoder) -> list[str]:
    """Those that count."""
    return list(dict.fromkeys(name for _, module in adapted(decoder) for name in module.active))


def own(decoder: Decoder, name: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter by their names in the decoder, shared ones once."""
    found: dict[str, nn.Parameter] = {}
    for where, module in adapted(decoder):
        base = {id(p) for p in module.base_layer.parameters()} if isinstance(module, Adapted) else set()
        for key, held in module.named_children():
            if isinstance(held, nn.ModuleDict | nn.ParameterDict) and name in held:
                item = held[name]
                many = item.named_parameters() if isinstance(item, nn.Module) else [("", item)]
                found |= {
                    ".".join(filter(None, (where, key, name, end))): p
                    for end, p in many
                    if id(p) not in base and id(p) not in map(id, found.values())
                }
    return found


def parts(decoder: Decoder, name: str) -> dict[str, list[Part]]:
    """An adapter's parts as they are now, by the names of modules, as `put` takes them."""
    found: dict[str, list[Part]] = {}
    for where, module in adapted(decoder):
        if name in module.names:
            part = cast("Any", module).part_of(name)
            found.setdefault(where.replace(".base_layer", ""), []).append(part)
    return found


# ---- which count -----------------------------------------------------------------------------------------------------
def activate(decoder: Decoder, wanted: Iterable[str]) -> None:
    """Let these adapters count and no others; what they add to the same module is summed.

    Raises UsageError for a name that is not there, two that replace the same module, or while adapters are merged.
    """
    wanted = list(dict.fromkeys(wanted))
    known = names(decoder)
    for name in wanted:
        if name not in known:
            there = f"There are {', '.join(known)}." if known else "There is none."
            raise UsageError(f'There is no adapter called "{name}".', there, did_you_mean(name, known))
    _unmerged(decoder)
    for where, module in adapted(decoder):
        those = [name for name in wanted if name in module.names]
        if isinstance(module, Replaced) and len(those) > 1:
            found = f"The adapters {' and '.join(those)} both replace {where}."
            raise UsageError(found, "A module can be replaced by one.", "Let one of them be active.")
    for _, module in adapted(decoder):
        module.active = tuple(name for name in wanted if name in module.names)


@contextmanager
def disabled(decoder: Decoder) -> Iterator[None]:
    """The decoder without any adapter, for as long as the block runs."""
    before, merged = active(decoder), _merged(decoder)
    if merged:
        unmerge(decoder)
    activate(decoder, ())
    try:
        yield
    finally:
        activate(decoder, before)
        if merged:
            merge(decoder)


def remove(decoder: Decoder, name: str) -> None:
    """Take an adapter off; a module that has no other is the base's again. Raises UsageError as `activate`."""
    if name not in names(decoder):
        activate(decoder, [name])  # which says so
    _unmerged(decoder)
    activate(decoder, [other for other in active(decoder) if other != name])
    for where, module in reversed(list(adapted(decoder))):
        if name in module.names:
            module.drop(name)
        if not module.names:
            decoder.set_submodule(where, module.base_layer if isinstance(module, Adapted) else module.plain())


def trainable(decoder: Decoder, wanted: Collection[str] | None = None) -> dict[str, nn.Parameter]:
    """Let gradients reach the parameters of these adapters, by default of all active ones, and no others.

    Returns them by name. An adapter that learns must be active.
    """
    decoder.requires_grad_(False)
    found: dict[str, nn.Parameter] = {}
    for name in active(decoder) if wanted is None else wanted:
        found |= own(decoder, name)
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


# ---- into the weights ------------------------------------------------------------------------------------------------
def merge(decoder: Decoder) -> None:
    """Put what the active adapters do into the weights, computed in float32 and rounded once. The base's own are kept
    for `unmerge`. A head that is tied to an embedding that changes is not tied to it any more.

    Raises UsageError where an adapter cannot be put into weights.
    """
    mergeable(decoder)
    for _, module in adapted(decoder):
        if isinstance(module, Adapted):
            module.merge()


def mergeable(decoder: Decoder) -> None:
    """Raise UsageError where an active adapter cannot be put into weights."""
    for where, module in adapted(decoder):
        if isinstance(module, Prefixed) and module.active:
            found = f"The adapter {module.active[0]} lets {where} look at a learned prefix."
            raise UsageError(found, "That cannot be put into the model's weights.", "Use it beside its base.")


def unmerge(decoder: Decoder) -> None:
    """The base's own weights again, bit for bit."""
    for _, module in adapted(decoder):
        if isinstance(module, Adapted):
            module.unmerge()


def fold(decoder: Decoder) -> Decoder:
    """Merge for good: a plain decoder that knows of no adapter, and costs what its base costs."""
    merge(decoder)
    for where, module in reversed(list(adapted(decoder))):
        decoder.set_submodule(where, module.own if isinstance(module, Adapted) else module.plain())
    if decoder.spec.tied and not same(decoder.lm_head, decoder.model.embed_tokens):
        decoder.spec = replace(decoder.spec, tied=False)
    return decoder


def combine(decoder: Decoder, name: str, weights: Mapping[str, float]) -> None:
    """A new LoRA that does what others do together, each with a factor: their matrices side by side, exactly. It is put
    on and made the only one that is active.

    Raises UsageError for adapters that are no plain LoRAs.
    """
    together: dict[str, list[tuple[LowRank, float]]] = {}
    for old, factor in weights.items():
        for module, some in parts(decoder, old).items():
            for part in some:
                if not isinstance(part, LowRank) or part.magnitude is not None or part.bias is not None:
                    found = f"{module} of the adapter {old} is not a plain low-rank term."
                    raise UsageError(found, "Only those add up.")
                together.setdefault(module, []).append((part, factor))
    made = {
        module: [
            LowRank(
                torch.cat([part.a.detach() for part, _ in found], dim=-2),
                torch.cat([factor * part.scaling * part.b.detach() for part, factor in found], dim=-1),
                1.0,
                table=found[0][0].table,
            )
        ]
        for module, found in together.items()
    }
    put(decoder, name, made)
    activate(decoder, [name])


def _merged(decoder: Decoder) -> bool:
    return any(isinstance(module, Adapted) and module.kept is not None for _, module in adapted(decoder))


def _unmerged(decoder: Decoder) -> None:
    if _merged(decoder):
        raise UsageError("The adapters are merged into the weights.", "", "Unmerge them first.")
