"""Turns an adapter that lies on a model into facts about it, and those into words; knows no page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from lathe.checkpoint import Adapted, Adapter
    from lathe.transforms.standing import Part


def facts(model: Adapted) -> dict[str, Any]:
    """What the adapter of a model is that was opened by its adapter: how large, and where it is put. A tensor that
    parts share counts once."""
    from lathe.transforms.lowrank import LowRank
    from lathe.transforms.whole import Whole

    [adapter] = model.adapters.values()
    every = [(module, part) for module, parts in adapter.parts.items() for part in parts]
    terms = [part for _, part in every if isinstance(part, LowRank)]
    own = {id(tensor): tensor for _, part in every for tensor in tensors(part)}.values()
    return {
        "path": str(adapter.path),
        "form": adapter.form,
        "method": method(adapter),
        "rank": sorted({term.rank for term in terms}),
        "scaling": sorted({term.scaling for term in terms}),
        "targets": named(module for module, part in every if not isinstance(part, Whole)),
        "whole": named(module for module, part in every if isinstance(part, Whole)),
        "parameters": sum(tensor.numel() for tensor in own),
        "bytes": sum(tensor.nbytes for tensor in own),
    }


def method(adapter: Adapter) -> str:
    """The name of what it does to the model."""
    from lathe.transforms.lowrank import LowRank
    from lathe.transforms.prefix import Tokens
    from lathe.transforms.whole import Scaled

    every = [part for parts in adapter.parts.values() for part in parts]
    if any(isinstance(part, Scaled) for part in every):
        return "LLaMA-Adapter V2"
    if any(isinstance(part, Tokens) for part in every):
        return "LLaMA-Adapter"
    terms = [part for part in every if isinstance(part, LowRank)]
    if not terms:
        return "modules learned whole"
    stabilised = adapter.settings is not None and adapter.settings.stabilised
    name = "DoRA" if any(term.magnitude is not None for term in terms) else "LoRA"
    return f"{name}, rank-stabilised" if stabilised else name


def tensors(part: Part) -> Iterator[Tensor]:
    """What a part learned."""
    from torch import Tensor

    for value in vars(part).values():
        yield from (t for t in (value.values() if isinstance(value, dict) else [value]) if isinstance(t, Tensor))


def named(modules: Iterator[str]) -> list[str]:
    """The last words of their names, each once."""
    return list(dict.fromkeys(module.rpartition(".")[2] for module in modules))


def words(found: dict[str, Any]) -> str:
    """The facts in one line, its size apart."""
    said = [found["method"]]
    if found["rank"]:
        said.append(f"rank {' and '.join(map(str, found['rank']))}")
        said.append(f"times {' and '.join(f'{scaling:g}' for scaling in found['scaling'])}")
    if found["targets"]:
        said.append(f"on {' '.join(found['targets'])}")
    if found["whole"]:
        said.append(f"whole {' '.join(found['whole'])}")
    return f"{', '.join(said)}; {found['parameters']:,} parameters"
