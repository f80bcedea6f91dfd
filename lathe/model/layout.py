"""Where each token of a ribbon sits: its position, the seams between sequences, and its place in a cache.

Any number of sequences lie end to end on one flat ribbon of T tokens, without padding: whole documents in training, a
chunk of a prompt beside single new tokens in generation. The decoder sees nothing else of the world.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Table:
    """Slots of S sequences, each with one new token, in a shape that stays while they grow.

    slots: S M int64, those of a sequence's tokens in order, then its last again. lengths: (S,) int64, tokens of each,
        the new one included.
    """

    slots: Tensor
    lengths: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """S sequences on a ribbon of T tokens.

    positions: (T,) int64, each token's position in its own sequence.
    seams: S + 1 offsets; sequence s is tokens seams[s] to seams[s + 1].
    extents: per sequence, how long it may become. Rope scalings that change with length (dynamic NTK, LongRoPE) go by
        it, so that a token gets the same angles in a first chunk, in a later one and without a cache.
    write: (T,) int64, the cache slot each token's keys and values go to; None without a cache.
    read: per sequence, the slots of all its tokens so far, in order, those of this ribbon included: a slice where they
        lie together, else indices. A sequence attends to nothing else.
    table: the same instead of `read`, where each sequence has one token on the ribbon and shapes must stay.
    """

    positions: Tensor
    seams: tuple[int, ...]
    extents: tuple[int, ...]
    write: Tensor | None = None
    read: tuple[slice | Tensor, ...] | None = None
    table: Table | None = None
    made: dict[Hashable, object] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device | str = "cpu") -> Layout:
        """Whole sequences of these lengths, each from position 0, without a cache."""
        positions = torch.cat([torch.arange(n, device=device) for n in lengths])
        return Layout(positions, tuple(accumulate(lengths, initial=0)), tuple(lengths))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence on this ribbon."""
        return tuple(b - a for a, b in pairwise(self.seams))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What all layers need alike (angles, masks) is made by the first and kept as long as the layout."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]  # type: ignore[return-value]
