"""A module becomes one with any number of adapters, by name, of which those that are active count; knows no method.

While several requests share a pass, a `Ribbon` says which adapter counts for which rows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.transforms.quantize import Packed

Made = TypeVar("Made")
Spans = Sequence[tuple[tuple[str, ...], slice]]  # the adapters that count, and for which rows


class Ribbon:
    """Which adapter counts for which rows, the same for all modules of a decoder.

    spans: the rows of each adapter, one after the other; None stands for those that are active. Without any, those that
    are active count for all rows.
    """

    def __init__(self) -> None:
        self.spans: tuple[tuple[str | None, slice], ...] = ()
        self.made: dict[Hashable, object] = {}

    @contextmanager
    def over(self, *spans: tuple[str | None, slice]) -> Iterator[None]:
        """These spans, for as long as the block runs."""
        before, self.spans, self.made = (self.spans, self.made), spans, {}
        try:
            yield
        finally:
            self.spans, self.made = before

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What many modules need alike is made by the first."""
        if key not in self.made:
            self.made[key] = make()
        return cast("Made", self.made[key])


class Counting:
    """What a module knows of adapters: which are active, and for which rows each of them counts."""

    active: tuple[str, ...] = ()
    ribbon: Ribbon | None = None

    @property
    def names(self) -> list[str]:
        """The adapters that have something here."""
        raise NotImplementedError

    @property
    def spans(self) -> Spans:
        """All rows, and the adapters that count for them here."""
        if self.ribbon is None or not self.ribbon.spans:
            return ((self.active, slice(None)),)
        there = self.names
        return [
            (self.active if name is None else (name,) if name in there else (), rows)
            for name, rows in self.ribbon.spans
        ]

    @property
    def mixed(self) -> bool:
        """Whether requests share the pass that have adapters of their own."""
        return self.ribbon is not None and bool(self.ribbon.spans)


def joined(made: Sequence[Any]) -> Any:
    """What came of some rows after another: tensors, or tuples of them."""
    if len(made) == 1:
        return made[0]
    if isinstance(made[0], Tensor):
        return torch.cat(list(made))
    return tuple(torch.cat(each) for each in zip(*made, strict=True))


class Adapted(Counting, nn.Module):
    """Stands where `base_layer` stood, whose parameters stay as they are.

    `weight` and `bias` are what the base would need to do the same by itself, whoever reads them: attention folds one
    of its matrices into another. `merge` puts them there.
    """

    base_layer: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.kept: tuple[nn.Parameter, nn.Parameter | None] | None = None  # the base's own, while others are merged
        self.train(base.training)

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
