"""Matrices of codes as kernels of our own want them: in panels of 16 rows, all in memory of large pages (codes.h).

A matrix is there once: what is put into panels is taken from where it was. Knows no decoder.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from itertools import starmap

import torch
from torch import Tensor, nn

from lathe.model import native
from lathe.transforms.kinds import KINDS
from lathe.transforms.quantize import Packed, PackedLinear, PackedTable

# Ways to quantize that the kernels know, as in codes.h.
CODES = {
    "int8": 1, "nf4": 2, "int4": 3, "int8-32": 4, "int4-zp": 5, "q4_1": 6, "q5_1": 7, "q4_k": 8, "q5_k": 9, "q6_k": 10,
}  # fmt: skip
ABREAST = 16  # rows of a panel
CHUNK = 1 << 19  # numbers that are made into codes at once

Matrices = Sequence[tuple[str, torch.Size]]  # a kind and a shape each
Memory = Callable[[Matrices, int], tuple[Tensor, bool]]  # bytes for them, and whether their panels are there already


def fresh(matrices: Matrices, size: int) -> tuple[Tensor, bool]:
    """Memory with nothing in it."""
    return torch.empty(size, dtype=torch.uint8), False


class Room:
    """Memory for matrices of these kinds and shapes, one behind the other, so that it comes in large pages."""

    def __init__(self, kernels: ctypes.CDLL, matrices: Matrices, memory: Memory = fresh) -> None:
        self.kernels = kernels
        size = sum(rows * bytes for rows, bytes in starmap(self._size, matrices))
        self.left, self.filled = memory(matrices, size)
        kernels.lathe_large_pages(self.left.data_ptr(), size)

    def panels(self, how: str, shape: torch.Size) -> Panels:
        """Room for the next matrix."""
        rows, bytes = self._size(how, shape)
        found, self.left = self.left.split([rows * bytes, len(self.left) - rows * bytes])
        return Panels(self.kernels, how, shape, found.view(rows, bytes), self.filled)

    def _size(self, how: str, shape: torch.Size) -> tuple[int, int]:
        """How many panels it has, and how many bytes each."""
        size = torch.empty(1, dtype=torch.int64)
        self.kernels.lathe_panel_bytes(size.data_ptr(), shape[1], CODES[how])
        return -(-shape[0] // ABREAST), int(size)


class Panels:
    """One matrix. all: its bytes, a row for each panel. filled: they are there before anything is put into them."""

    def __init__(self, kernels: ctypes.CDLL, how: str, shape: torch.Size, panels: Tensor, filled: bool = False) -> None:
        self.kernels, self.how, self.shape, self.all, self.filled = kernels, how, shape, panels, filled

    def put(self, parts: Sequence[Tensor], start: int = 0) -> None:
        """Rows from `start` on, which begins a panel, from their codes, scales and what else the kind has."""
        self._move(parts, start, len(parts[0]), False)

    def step(self) -> int:
        """How many rows are made into codes at once: whole panels, few enough for a processor's caches."""
        return max(CHUNK // self.shape[1] // ABREAST, 1) * ABREAST

    def rounded(self, pieces: Iterable[Tensor]) -> Panels:
        """These, after a matrix of numbers was put into them, which comes `step` rows at a time."""
        start, codes = 0, KINDS[self.how].rows
        assert codes
        for rows in pieces:
            self.put([part.contiguous() for part in codes(rows)], start)
            start += len(rows)
        return self

    def parts(self) -> list[Tensor]:
        """Codes, scales and what else the kind has, of all rows."""
        blank = [*KINDS[self.how].blank(self.shape).values()]
        self._move(blank, 0, self.shape[0], True)
        return blank

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x times the matrix. x: ... D, on the CPU, in one of native.TYPES."""
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        rows, (n, k) = x.contiguous(), self.shape
        y = x.new_empty(*x.shape[:-1], n)
        places = [None if part is None else part.data_ptr() for part in (rows, self.all, bias, y)]
        sizes = x.numel() // k, n, k, CODES[self.how], native.TYPES[x.dtype], torch.get_num_threads()
        self.kernels.lathe_coded_product(*places, *sizes)
        return y

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a matrix in codes of any kind but nf4, as numbers. index: ... of int64, on the CPU. dtype: one of
        native.TYPES. Returns ... D. Raises IndexError where there is no row of such a number."""
        index, (n, k) = index.contiguous(), self.shape
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= n):
            raise IndexError(f"Rows {int(index.min())} to {int(index.max())} are asked for, of {n}.")
        y = torch.empty(*index.shape, k, dtype=dtype)
        places = [part.data_ptr() for part in (self.all, index, y)]
        sizes = index.numel(), k, CODES[self.how], native.TYPES[dtype], torch.get_num_threads()
        self.kernels.lathe_panel_rows(*places, *sizes)
        return y

    def _move(self, parts: Sequence[Tensor], start: int, rows: int, back: bool) -> None:
        given = [part.data_ptr() for part in parts]
        others = given[2] if len(given) > 2 else None
        places = given[0], given[1], others, self.all[start // ABREAST :].data_ptr()
        self.kernels.lathe_panels(*places, rows, self.shape[1], CODES[self.how], back, torch.get_num_threads())


class InPanels(Packed):
    """A matrix whose codes are in panels. The one in whose place it stands has none until it is asked `back`."""

    panels: nn.Parameter

    def __init__(self, plain: Packed, panels: Panels) -> None:
        nn.Module.__init__(self)
        self.how, self.shape, self.dtype, self.parts = plain.how, plain.shape, plain.dtype, plain.parts
        self.emptied, self.kernels = [plain], panels.kernels  # in a list, as it is no part of this one
        self.register_parameter("panels", nn.Parameter(panels.all, requires_grad=False))
        self.register_parameter("bias", plain._parameters["bias"])
        plain._parameters.update(dict.fromkeys(self.parts))
        self.train(plain.training)

    def back(self) -> Packed:
        """What was there before."""
        [plain] = self.emptied
        plain.bias = self.bias
        plain.take(dict(zip(self.parts, self._all(), strict=True)))
        return plain

    @property
    def device(self) -> torch.device:
        return self.panels.device

    def _panels(self) -> Panels:
        return Panels(self.kernels, self.how, self.shape, self.panels.cpu())

    def _all(self) -> list[Tensor]:
        return [part.to(self.device) for part in self._panels().parts()]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have one matrix, in numbers or in panels."""
    mine, theirs = (module.panels if isinstance(module, InPanels) else module.weight for module in (one, other))
    return mine is theirs


class QuickPacked(InPanels, PackedLinear):  # type: ignore[misc]
    """A linear map."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16 and x.device.type == "cpu":  # as what GPTQ and AWQ made is computed in
            return self.forward(x.float()).half()
        if torch.is_grad_enabled() or x.dtype not in native.TYPES or x.device.type != "cpu":
            return super().forward(x)
        return self._panels().product(x, self.bias)


class QuickPackedTable(InPanels, PackedTable):  # type: ignore[misc]
    """A table."""

    def forward(self, index: Tensor) -> Tensor:
        if self.device.type != "cpu":
            return super().forward(index)
        if self.dtype not in native.TYPES:
            return self._panels().rows(index, torch.float32).to(self.dtype)
        return self._panels().rows(index, self.dtype)
