"""Room for keys and values: one pool of slots for all layers, lent to sequences in pages; knows no token and no model.

A slot keeps what one token leaves in every layer; a page is a fixed number of slots. Free pages and lent pages are
always all pages. A sequence's pages lie together wherever possible, so that attention reads them as one slice, without
a copy.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lathe.model.kernels import Cache
from lathe.model.spec import CacheShape

AHEAD = 256  # tokens that a sequence reserves beyond what it needs now, so that it grows in place


class Lease:
    """The pages that one sequence holds, in order. `slots`: (pages x size,) int64, where its tokens' keys lie."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.slots = torch.empty(0, dtype=torch.int64)
        self.start: int | None = None  # the first slot, where all of them lie together

    def read(self, tokens: int) -> slice | Tensor:
        """The slots of the first `tokens` tokens, as `Layout.read` wants them."""
        return self.slots[:tokens] if self.start is None else slice(self.start, self.start + tokens)


class Pages:
    """A pool of `tokens` slots, or one that grows as it is needed (`tokens` None).

    device: where the slots' numbers are, and the layers' cache too unless `places` says another device for each.
    cache: keys (N, K, C) and values (N, K, Cv) of each layer, N slots; replaced when the pool grows.
    """

    def __init__(
        self,
        shapes: Iterable[CacheShape],
        tokens: int | None = None,
        *,
        size: int = 16,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        places: Iterable[torch.device] = (),
    ) -> None:
        self.shapes, self.size, self.device, self.dtype = tuple(shapes), size, torch.device(device), dtype
        self.grows = tokens is None
        self.places = tuple(places) or (self.device,) * len(self.shapes)
        self.holders = bytearray()  # of each page: 0 free, 1 lent
        self.cache: list[Cache] = [self._empty(layer, 0) for layer in range(len(self.shapes))]
        if tokens is not None:
            self._grow(self._count(tokens))

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return self.holders.count(0)

    def reserve(self, lease: Lease, tokens: int, extent: int) -> bool:
        """Make a lease hold at least `tokens` slots, and some ahead, of the `extent` that it may come to need.

        False, and nothing changed, where the pool has no room.
        """
        need = self._count(tokens) - len(lease.pages)
        if need <= 0:
            return True
        want = self._count(min(extent, tokens + AHEAD)) - len(lease.pages)
        pages = self._together(lease, want)
        if not pages and self.grows:
            self._grow(max(2 * len(self.holders), len(self.holders) + want))
            pages = self._together(lease, want)
        pages = pages or self._together(lease, need) or self._anywhere(need)
        if not pages:
            return False
        for page in pages:
            self.holders[page] = 1
        lease.pages += pages
        first = lease.pages[0]
        lease.start = first * self.size if lease.pages[-1] - first == len(lease.pages) - 1 else None
        starts = torch.tensor(lease.pages, device=self.device) * self.size
        lease.slots = (starts[:, None] + torch.arange(self.size, device=self.device)).flatten()
        return True

    def give_back(self, lease: Lease) -> None:
        """Free all pages of a lease, which is empty then."""
        for page in lease.pages:
            self.holders[page] = 0
        lease.pages, lease.slots, lease.start = [], lease.slots[:0], None

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def _together(self, lease: Lease, count: int) -> list[int]:
        """`count` free pages in a row: right behind the lease's own if they are free, else the first such run."""
        behind = lease.pages[-1] + 1 if lease.pages else 0
        run = bytes(count)
        at = behind if self.holders[behind : behind + count] == run else self.holders.find(run)
        return list(range(at, at + count)) if at >= 0 else []

    def _anywhere(self, count: int) -> list[int]:
        free = [page for page, holders in enumerate(self.holders) if not holders]
        return free[:count] if len(free) >= count else []

    def _grow(self, count: int) -> None:
        slots, more = len(self.holders) * self.size, count * self.size
        for i in range(len(self.shapes)):
            bigger = self._empty(i, more)
            for old, new in zip(self.cache[i], bigger, strict=True):
                new[:slots] = old
            self.cache[i] = bigger
        self.holders.extend(bytes(count - len(self.holders)))

    def _empty(self, layer: int, slots: int) -> Cache:
        shape, device = self.shapes[layer], self.places[layer]
        keys = torch.empty(slots, shape.heads, shape.key_channels, device=device, dtype=self.dtype)
        if shape.values_in_keys:
            return keys, keys[..., : shape.value_channels]
        return keys, torch.empty(slots, shape.heads, shape.value_channels, device=device, dtype=self.dtype)
