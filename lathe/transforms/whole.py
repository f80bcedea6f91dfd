"""A module becomes one that an adapter replaces, or whose results it scales and shifts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.transforms.adapted import Adapted, joined, kind_of


@dataclass(frozen=True, eq=False)
class Whole:
    """A module learned whole, or some of its parameters: those by their own names; the others stay the model's."""

    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Scaled:
    """What comes out of a matrix, out numbers, becomes scale * (it + bias)."""

    scale: Tensor
    bias: Tensor


class Replaced(Adapted):
    """The module itself, or that of the adapter that is active: modules_to_save.NAME.weight, as PEFT calls them."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.modules_to_save = nn.ModuleDict()

    @property
    def names(self) -> list[str]:
        return list(self.modules_to_save)

    def put(self, name: str, part: Whole) -> None:
        made = copy.copy(self.base_layer)
        made._parameters = dict(made._parameters)
        for key, tensor in part.tensors.items():
            like = cast("Tensor", made._parameters[key])
            made._parameters[key] = nn.Parameter(tensor.to(like.device, like.dtype))
        self.modules_to_save[name] = made

    def drop(self, name: str) -> None:
        del self.modules_to_save[name]

    def part_of(self, name: str) -> Whole:
        base = dict(self.base_layer.named_parameters())
        own = {key: value for key, value in self.modules_to_save[name].named_parameters() if value is not base[key]}
        return Whole(own)

    @property
    def own(self) -> nn.Module:
        if len(self.active) > 1:
            found = f"The adapters {' and '.join(self.active)} replace the same module, of which there can be one."
            raise UsageError(found, "", "Make one of them active at a time.")
        return self._of(self.active)

    def _of(self, names: tuple[str, ...]) -> nn.Module:
        return self.modules_to_save[names[0]] if names else super().own

    def forward(self, x: Tensor, *given: Any) -> Any:
        if not self.mixed:
            return self.own(x, *given)
        return joined([self._of(names)(x[rows], *given) for names, rows in self.spans])

    def rows(self, which: slice) -> Tensor:
        return cast("Tensor", self.own.weight)[which]

    @property
    def weight(self) -> Tensor:
        return cast("Tensor", self.own.weight)

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.own, "bias", None)

    def merge(self) -> None:
        """It is one module already."""

    def unmerge(self) -> None:
        """It was not merged."""


class ScaledLinear(Adapted):
    """scale * (base(x) + bias) for each active adapter, one after the other."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.adapter_scale, self.adapter_bias = nn.ParameterDict(), nn.ParameterDict()

    @property
    def names(self) -> list[str]:
        return list(self.adapter_scale)

    def put(self, name: str, part: Scaled) -> None:
        device, dtype = kind_of(self.base_layer)
        self.adapter_scale[name] = nn.Parameter(part.scale.to(device, dtype))
        self.adapter_bias[name] = nn.Parameter(part.bias.to(device, dtype))

    def drop(self, name: str) -> None:
        del self.adapter_scale[name], self.adapter_bias[name]

    def part_of(self, name: str) -> Scaled:
        return Scaled(self.adapter_scale[name], self.adapter_bias[name])

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y if self.kept is not None else joined([self._with(names, y[rows]) for names, rows in self.spans])

    def _with(self, names: tuple[str, ...], y: Tensor) -> Tensor:
        total = y
        for name in names:
            total = self.adapter_scale[name] * (total + self.adapter_bias[name])
        return total.type_as(y)

    def rows(self, which: slice) -> Tensor:
        weight = cast("Tensor", self.base_layer.weight)[which]
        if self.kept is not None or not self.active:
            return weight
        rows = weight.float()
        for name in self.active:
            rows = rows * self.adapter_scale[name][which, None].float()
        return rows.to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        bias = cast("Tensor | None", self.base_layer.bias)
        if self.kept is not None or not self.active:
            return bias
        weight = cast("Tensor", self.base_layer.weight)
        total = torch.zeros(len(weight), device=weight.device) if bias is None else bias.float()
        for name in self.active:
            total = self.adapter_scale[name].float() * (total + self.adapter_bias[name].float())
        return total.to(weight.dtype)
