"""Modules and parameters of a decoder become addresses that kernels are told; and it is known whether they still are
where they were found. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor, nn

from lathe.model import layers


class Unknown(Exception):
    """A part that the kernels do not know."""


def hooked(module: nn.Module) -> bool:
    """Whether something is done before or after it that a kernel would not do."""
    return any(_hooks(module))


def _hooks(module: nn.Module) -> tuple[Mapping[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks


class Found:
    """What was found, by name, in the mappings that modules keep theirs in. types: of all numbers that are no codes."""

    def __init__(self) -> None:
        self.holders: list[Mapping[str, Any]] = []  # where something was found, by which name, and what
        self.names: list[str] = []
        self.ones: list[Any] = []
        self.parameters: list[Tensor] = []
        self.places: list[int] = []
        self.hooks: list[Mapping[int, Any]] = []  # of modules that had none
        self.types: set[torch.dtype] = set()

    def join(self, other: Found) -> None:
        """What another found was found here."""
        self.holders += other.holders
        self.names += other.names
        self.ones += other.ones
        self.parameters += other.parameters
        self.places += other.places
        self.hooks += other.hooks

    def stands(self) -> bool:
        """Whether all is where it was, and nothing was hooked to it."""
        found = map(dict.get, cast("list[dict[str, Any]]", self.holders), self.names)
        # Without a step of Python for each: it is asked in every pass.
        same = all(map(is_, found, self.ones)) and [*map(Tensor.data_ptr, self.parameters)] == self.places
        return same and not any(self.hooks)

    def note(self, holder: Mapping[str, Any], name: str) -> Any:
        """What is there by this name, if it is anything."""
        one = holder.get(name)
        self.holders.append(holder)
        self.names.append(name)
        self.ones.append(one)
        return one

    def module(self, holder: nn.Module, name: str, *kinds: type[nn.Module]) -> Any:
        """A module's part. Raises Unknown where it is none of these kinds, or something is hooked to it."""
        one: Any = self.note(holder._modules, name)
        if type(one) not in kinds or hooked(one):
            raise Unknown
        self.hooks += _hooks(one)
        return one

    def parameter(self, holder: nn.Module, name: str, code: bool = False) -> int | None:
        """The address of a module's parameter, None where it has none. Raises Unknown where it is not in order in the
        memory. code: whether it is no numbers but codes."""
        one = self.note(holder._parameters, name)
        if one is None:
            return None
        if not one.is_contiguous() or one.device.type != "cpu":
            raise Unknown
        place: int = one.data_ptr()
        self.parameters.append(one)
        self.places.append(place)
        if not code:
            self.types.add(one.dtype)
        return place

    def norm(self, holder: nn.Module, name: str, told: Any) -> None:
        """Tell of a norm. Raises Unknown for what is none."""
        kinds = (layers.RMSNorm, layers.OffsetRMSNorm, layers.LayerNorm, layers.OffsetLayerNorm, layers.OwnLayerNorm)
        one = self.module(holder, name, *kinds)
        told.kind = 1 if isinstance(one, layers.RMSNorm) else 2
        told.weight, told.bias = self.parameter(one, "weight"), self.parameter(one, "bias")
        told.eps, told.offset = one.eps, getattr(one, "offset", 0.0)
