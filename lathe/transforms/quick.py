"""Blocks and trunks whose layers go through kernels of our own, without coming back to Python between them; the plain
way wherever no kernel fits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from operator import is_

import torch
from torch import Tensor, nn

from lathe.model.decoder import Block, Sequential, Trunk
from lathe.model.kernels import Cache
from lathe.model.layout import Layout
from lathe.transforms.flight import Flight, Last
from lathe.transforms.found import Found, Unknown
from lathe.transforms.plan import Plan
from lathe.transforms.products import most

Part = Callable[[Tensor, Layout], Tensor]


def _taken(x: Tensor, most: dict[torch.dtype, int]) -> bool:
    """Whether the kernels are for such a stream. most: rows of each type."""
    return not torch.is_grad_enabled() and x.device.type == "cpu" and len(x) <= most.get(x.dtype, 0)


class Quick(Block):
    """A block with the modules of another, which it asks wherever it has no quick way."""

    plain: Block

    def __init__(self, plain: Block, kernels: ctypes.CDLL) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {"_modules": plain._modules, "plain": plain, "training": plain.training}
        self.residual, self.kernels, self.most = plain.residual, kernels, most(kernels)
        self.made: Plan | None = None
        self.flight: Flight | None = None

    def plan(self) -> Plan:
        """The block as the kernels are told of it."""
        if self.made is None or not self.made.stands():
            self.made = Plan(self.plain)
        return self.made

    def forward(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        if cache is None or not _taken(x, self.most):
            return self.plain(x, layout, cache)
        plan = self.plan()
        if not plan.fits(x.dtype, cache) or not plan.adapt(x.dtype):
            return self.plain(x, layout, cache)
        if self.flight is None or not self.flight.of([plan], [cache]):
            self.flight = Flight(self.kernels, [plan], [cache])
        if not plan.mixes:
            assert isinstance(self.plain, Sequential)
            x = self.plain.mix(x, layout, cache)
        y = self.flight(x, layout)
        if not plan.feeds:
            assert isinstance(self.plain, Sequential)
            return self.plain.feed(y)
        return y


class QuickTrunk(Trunk):
    """A trunk with the modules of another, whose quick layers follow each other without coming back to Python."""

    plain: Trunk

    def __init__(self, plain: Trunk, kernels: ctypes.CDLL) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {"_modules": plain._modules, "plain": plain, "training": plain.training}
        self.kernels, self.most = kernels, most(kernels)
        self.course: Course | None = None

    def forward(self, x: Tensor, layout: Layout, cache: Sequence[Cache] | None) -> Tensor:
        if cache is None or not _taken(x, self.most):
            return super().forward(x, layout, cache)
        course = self.course
        if course is None or not course.stands_for(x.dtype, cache):
            course = self.course = Course(self, x.dtype, cache)
        if not all(plan.adapt(x.dtype) for plan in course.adapted):
            return super().forward(x, layout, cache)
        for part in course.parts:
            x = part(x, layout)
        return x


class Course(Found):
    """The way through a trunk, for numbers of one type and these keys and values: flights of layers that the kernels
    know, the last norm among them, and the other modules by themselves.

    adapted: layers that have adapters, of which must be told in each pass.
    """

    def __init__(self, trunk: QuickTrunk, dtype: torch.dtype, cache: Sequence[Cache]) -> None:
        super().__init__()
        self.dtype, self.caches, self.layers = dtype, [*cache], self.note(trunk._modules, "layers")._modules
        self.parts: list[Part] = []
        self.adapted: list[Plan] = []
        plans: list[Plan] = []
        for number, (name, kept) in enumerate(zip(self.layers, cache, strict=True)):
            plan = self._plan(trunk, name)
            if plan is not None and plan.whole and plan.fits(dtype, kept):
                plans.append(plan)
                continue
            self._fly(trunk, plans, number)
            self.parts.append(_alone(self.layers[name], kept))
            plans = []
        last = self._last(trunk) if plans else None
        self._fly(trunk, plans, len(self.caches), last)
        if last is None:
            norm = self.note(trunk._modules, "norm")
            self.parts.append(lambda x, layout: norm(x))

    def stands_for(self, dtype: torch.dtype, cache: Sequence[Cache]) -> bool:
        """Whether it is still the way, for these."""
        same = dtype == self.dtype and len(cache) == len(self.caches) == len(self.layers)
        return same and all(map(is_, cache, self.caches)) and self.stands()

    def _plan(self, trunk: QuickTrunk, name: str) -> Plan | None:
        try:
            plan = self.module(trunk.layers, name, Quick).plan()
        except Unknown:
            return None
        self.join(plan)
        return plan

    def _last(self, trunk: QuickTrunk) -> Last | None:
        try:
            last = Last(trunk)
        except Unknown:
            return None
        if last.types - {self.dtype}:
            return None
        self.join(last)
        return last

    def _fly(self, trunk: QuickTrunk, plans: list[Plan], end: int, last: Last | None = None) -> None:
        """Go through these layers, of which the last has the number before `end`."""
        if plans:
            self.parts.append(Flight(trunk.kernels, plans, self.caches[end - len(plans) : end], last))
            self.adapted += [plan for plan in plans if plan.adapted]


def _alone(layer: nn.Module, kept: Cache) -> Part:
    """A layer that is asked by itself."""
    return lambda x, layout: layer(x, layout, kept)
