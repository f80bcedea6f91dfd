"""Layers that follow each other become one call of the kernels: what these are told is made once, and only the tokens
and their places are new in a pass.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from itertools import chain
from operator import is_

import torch
from torch import Tensor, nn

from lathe.model import attention, native, rope, spec
from lathe.model.kernels import Cache
from lathe.model.layout import Layout
from lathe.model.native import structures
from lathe.transforms.found import Found
from lathe.transforms.plan import Plan

Turn = tuple[spec.Rope | None, spec.Temperature | None]


class Last(Found):
    """The norm behind the last layer. Raises Unknown where the kernels do not know it."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.told = structures.Norm()
        self.norm(trunk, "norm", self.told)
        self.address = ctypes.addressof(self.told)


class Flight:
    """Some layers, with the keys and values of each, which are all of one kind; and the norm behind them, if any."""

    def __init__(
        self, kernels: ctypes.CDLL, plans: Sequence[Plan], caches: Sequence[Cache], last: Last | None = None
    ) -> None:
        self.kernels, self.plans, self.caches, self.last = kernels, [*plans], [*caches], last
        self.coded = caches[0][0].dtype == torch.int8
        self.turns: list[Turn] = [*dict.fromkeys((plan.rope, plan.heat) for plan in plans)]
        ropes = {turned for turned, _ in self.turns if turned and not rope.by_extent(turned)}
        self.speeds = {turned: rope.frequencies(turned, 0) for turned in ropes}  # alike in every pass
        self.steps = [structures.Steps(*keys.stride()[:2], *values.stride()[:2]) for keys, values in caches]
        self.told = array("q")
        for plan, (keys, values), steps in zip(plans, caches, self.steps, strict=True):
            assert keys.stride(-1) == values.stride(-1) == 1
            turn = self.turns.index((plan.rope, plan.heat))
            self.told.extend((plan.address, keys.data_ptr(), values.data_ptr(), ctypes.addressof(steps), turn))

    def of(self, plans: Sequence[Plan], caches: Sequence[Cache]) -> bool:
        """Whether it is of the same."""
        return all(map(is_, plans, self.plans)) and all(map(is_, caches, self.caches))

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """The stream behind them. T D"""
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        x = x.contiguous()
        seats = layout.once("native", lambda: Seats(layout))
        turns = array("q", chain.from_iterable(self._turn(*turn, layout) for turn in self.turns))
        last = self.last.address if self.last else None
        told = self.told.buffer_info()[0], len(self.plans), last, turns.buffer_info()[0], seats.address
        self.kernels.lathe_layers(*told, x.data_ptr(), y.data_ptr(), native.TYPES[x.dtype], self.coded)
        return y

    def _turn(self, turned: spec.Rope | None, heat: spec.Temperature | None, layout: Layout) -> tuple[int, ...]:
        """Addresses of cosines, sines and temperatures of a pass's tokens, which the layout keeps."""
        cos, sin = (None, None) if turned is None else rope.angles(turned, layout, self.speeds.get(turned))
        warm = None if heat is None else attention.heat(heat, layout)
        return tuple(0 if x is None else x.data_ptr() for x in (cos, sin, warm))


class Seats:
    """Where the tokens of a pass sit in a cache, as the kernels want it."""

    def __init__(self, layout: Layout) -> None:
        assert layout.write is not None and layout.read is not None
        starts, tables, lengths = array("q"), array("q"), array("q")
        for read, n in zip(layout.read, layout.lengths, strict=True):
            if isinstance(read, slice):
                m, start, table = read.stop - read.start, read.start, 0
            else:
                assert read.dtype == torch.int64 and read.is_contiguous()
                m, start, table = len(read), -1, read.data_ptr()
            starts.extend([start] * n)
            tables.extend([table] * n)
            lengths.extend(range(m - n + 1, m + 1))
        self.kept = layout.write.contiguous(), layout.read, (starts, tables, lengths)
        rows = [row.buffer_info()[0] for row in self.kept[2]]
        self.told = structures.Pass(len(starts), torch.get_num_threads(), self.kept[0].data_ptr(), *rows)
        self.address = ctypes.addressof(self.told)
