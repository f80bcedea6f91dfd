"""What the ranks that compute together tell each other: sums, columns side by side, what the first one has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The ranks that compute together. Without torch.distributed there is one, and nothing to tell."""

    rank: int = 0
    count: int = 1
    processes: dist.ProcessGroup | None = None  # None: all there are

    @staticmethod
    def joined() -> Group:
        """The processes that torch.distributed has brought together."""
        return Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Group()

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, in place."""
        if self.count > 1:
            dist.all_reduce(x, group=self.processes)
        return x

    def shared(self, x: Tensor) -> Tensor:
        """The same sum, of which each rank makes its own use: its gradient, too, is the sum of theirs."""
        return self.sum(x)

    def enter(self, x: Tensor) -> Tensor:
        """The stream, which is whole, where ranks begin to compute different parts: a place to add their gradients."""
        return x

    def side_by_side(self, x: Tensor, columns: int) -> Tensor:
        """All ranks' columns of N rows. x: N (this rank's of `columns`). Returns N columns."""
        if self.count == 1:
            return x
        spans = (span(columns, rank, self.count) for rank in range(self.count))
        return torch.cat(self.gathered(x, [end - start for start, end in spans]), dim=-1)

    def gathered(self, x: Tensor, columns: Sequence[int]) -> list[Tensor]:
        """Every rank's x, of which each has so many columns."""
        mine = F.pad(x, (0, max(columns) - x.shape[-1])).contiguous()
        parts = [torch.empty_like(mine) for _ in columns]
        dist.all_gather(parts, mine, group=self.processes)
        return [part[..., :count] for part, count in zip(parts, columns, strict=True)]

    def firsts(self, x: Tensor) -> Tensor:
        """What the first rank has in the place of x, in place."""
        if self.count > 1:
            dist.broadcast(x, group=self.processes, group_src=0)
        return x


def span(size: int, rank: int, count: int) -> tuple[int, int]:
    """The part of `size` things that a rank has: they differ by one at most."""
    return rank * size // count, (rank + 1) * size // count
