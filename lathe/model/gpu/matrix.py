"""What the kernels are told of a matrix: numbers, or codes and what these are multiplied by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# How weights are laid out. numbers: as they are. rows: codes of 8 bits with a scale for each row. groups: with one for
# each 32. fours: two codes in a byte, the first in its upper half, less 8, with a scale for each 32. zeros: less a zero
# point for each 32. table: bytes that stand for two values each, with a scale for each 64.
LAYOUTS = ("numbers", "rows", "groups", "fours", "zeros", "table")


@dataclass(frozen=True)
class Matrix:
    """weight: n D, or the bytes of as many rows. scales: as the layout has them. others: zero points, or the table, 256
    pairs of float32 as int64."""

    weight: Tensor
    bias: Tensor | None = None
    layout: str = "numbers"
    scales: Tensor | None = None
    others: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All of it, with the weight where there is nothing."""
        return tuple(self.weight if x is None else x for x in (self.weight, self.scales, self.others, self.bias))
