"""A module becomes one with any number of adapters, by name, of which those that are active count; knows no method."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.transforms.quantize import Packed


class Adapted(nn.Module):
    """Stands where `base_layer` stood, whose parameters stay as they are.

    `weight` and `bias` are what the base would need to do the same by itself, whoever reads them: attention folds one
    of its matrices into another. `merge` puts them there.
    """

    base_layer: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.active: tuple[str, ...] = ()
        self.kept: tuple[nn.Parameter, nn.Parameter | None] | None = None  # the base's own, while others are merged
        self.train(base.training)

    @property
    def names(self) -> list[str]:
        """The adapters that have something here."""
        raise NotImplementedError

    def put(self, name: str, part: Any) -> None:
        """Take an adapter's part."""
        raise NotImplementedError

    def drop(self, name: str) -> None:
        """Forget an adapter's part."""
        raise NotImplementedError

    def rows(self, which: slice) -> Tensor:
        """Rows of the weight with all active adapters, computed in float32 and rounded once."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        return self.rows(slice(None))

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.base_layer, "bias", None)

    @property
    def own(self) -> nn.Module:
        """The module whose parameters count, below all that stands in its place."""
        base = self.base_layer
        return base.own if isinstance(base, Adapted) else base

    @torch.no_grad()
    def merge(self) -> None:
        if isinstance(self.own, Packed):
            found = "The model's matrices are quantized."
            raise UsageError(found, "What an adapter does to them would be lost.", "Load it without quantize.")
        if self.kept is None and self.active:
            own, weight, bias = self.own, self.weight, self.bias
            before: Any = (own.weight, getattr(own, "bias", None))
            own.weight = nn.Parameter(weight, requires_grad=False)
            if bias is not None:
                own.bias = nn.Parameter(bias, requires_grad=False)
            self.kept = before

    def unmerge(self) -> None:
        """The base's own parameters again, bit for bit."""
        if self.kept is not None:
            own: Any = self.own
            own.weight, bias = self.kept
            if bias is not None:
                own.bias = bias
            self.kept = None


def kind_of(base: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where an adapter's numbers go, and as what: beside a half-precision model they are float32, which are few and
    learn in small steps."""
    own: Any = base.own if isinstance(base, Adapted) else base
    like: Any = own if isinstance(own, Packed) else own.weight
    return like.device, torch.promote_types(like.dtype, torch.float32)


def shape_of(base: nn.Module) -> torch.Size:
    """The shape of its weight, which is not unpacked for that."""
    own: Any = base.own if isinstance(base, Adapted) else base
    return cast("torch.Size", own.shape if isinstance(own, Packed) else own.weight.shape)
