"""Blocks and trunks whose layers go through kernels of our own, without coming back to Python between them; the plain
way wherever no kernel fits.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from lathe.model import native
from lathe.model.decoder import Block, Sequential, Trunk
from lathe.model.kernels import Cache
from lathe.model.layout import Layout
from lathe.model.native import structures
from lathe.transforms.plan import Plan, hooked
from lathe.transforms.products import most


class Quick(Block):
    """A block with the modules of another, which it asks wherever it has no quick way."""

    plain: Block

    def __init__(self, plain: Block, kernels: ctypes.CDLL) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {"_modules": plain._modules, "plain": plain, "training": plain.training}
        self.residual, self.kernels, self.most = plain.residual, kernels, most(kernels)
        self.kept: Plan | None = None

    def plan(self, x: Tensor, cache: Cache | None) -> Plan | None:
        """What the kernels are told, where they do some of it."""
        if cache is None or torch.is_grad_enabled() or x.device.type != "cpu" or len(x) > self.most.get(x.dtype, 0):
            return None
        if self.kept is None or not self.kept.stands():
            self.kept = Plan(self.plain)
        plan = self.kept
        known = plan.type == native.TYPES.get(x.dtype) and cache[0].dtype in (x.dtype, torch.int8)
        known = known and (plan.mixes or plan.feeds)
        return plan if known and (not plan.adapted or plan.adapt(x.dtype)) else None

    def forward(self, x: Tensor, layout: Layout, cache: Cache | None) -> Tensor:
        plan = self.plan(x, cache)
        if plan is None or cache is None:
            return self.plain(x, layout, cache)
        if not plan.mixes:
            assert isinstance(self.plain, Sequential)
            x = self.plain.mix(x, layout, cache)
        y = run(self.kernels, [plan.layer(layout, cache)], x, layout, cache)
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
        self.kernels = kernels

    def through(self, x: Tensor, layout: Layout, cache: Sequence[Cache] | None) -> Tensor:
        if cache is None:
            return super().through(x, layout, cache)
        together: list[tuple[int, ...]] = []
        for layer, kept in zip(self.layers, cache, strict=True):
            plan = layer.plan(x, kept) if isinstance(layer, Quick) and not hooked(layer) else None
            if plan is not None and plan.whole:
                together.append(plan.layer(layout, kept))
                continue
            x = layer(self._run(together, x, layout, kept), layout, kept)
            together = []
        return self._run(together, x, layout, cache[-1])

    def _run(self, together: list[tuple[int, ...]], x: Tensor, layout: Layout, cache: Cache) -> Tensor:
        return run(self.kernels, together, x, layout, cache) if together else x


def run(kernels: ctypes.CDLL, together: list[tuple[int, ...]], x: Tensor, layout: Layout, cache: Cache) -> Tensor:
    """The stream behind some layers, whose caches are of the kind of this one. T D"""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    x = x.contiguous()
    seats = layout.once("native", lambda: Seats(layout))
    told = array("q", chain.from_iterable(together))
    places = seats.address, x.data_ptr(), y.data_ptr()
    coded = cache[0].dtype == torch.int8
    kernels.lathe_layers(told.buffer_info()[0], len(together), *places, native.TYPES[x.dtype], coded)
    return y


class Seats:
    """Where the tokens of a pass sit in a cache, as the kernels want it."""

    def __init__(self, layout: Layout) -> None:
        assert layout.write is not None and layout.read is not None
        starts: list[int] = []
        tables: list[int] = []
        lengths: list[int] = []
        for read, n in zip(layout.read, layout.lengths, strict=True):
            if isinstance(read, slice):
                m, start, table = read.stop - read.start, read.start, 0
            else:
                assert read.dtype == torch.int64 and read.is_contiguous()
                m, start, table = len(read), -1, read.data_ptr()
            starts += [start] * n
            tables += [table] * n
            lengths += range(m - n + 1, m + 1)
        self.kept = torch.tensor([starts, tables, lengths]), layout.write.contiguous(), layout.read
        rows = [row.data_ptr() for row in self.kept[0]]
        self.told = structures.Pass(len(starts), torch.get_num_threads(), self.kept[1].data_ptr(), *rows)
        self.address = ctypes.addressof(self.told)
