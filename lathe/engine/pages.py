"""Room for keys and values: one pool of slots for all layers, lent to sequences in pages; knows no token and no model.

A slot keeps what one token leaves in every layer; a page is a fixed number of slots. A page that is full can be given a
name, which says what is in it: then it stays known when nobody holds it any more, until its room is needed, those first
that were used longest ago; and who comes with the same name has it without computing it. Pages that are held, known and
blank are always all pages.

Where attention reads slots best as one slice (everywhere but on CUDA: scattered slots double the time of attention in
every step, and copying them into place once takes a sixth of one such step), a sequence's pages lie together as far as
there is room, and what is known is copied there. On CUDA sequences share the pages themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lathe.model import kept
from lathe.model.kernels import Cache
from lathe.model.spec import CacheShape

AHEAD = 256  # tokens that a sequence reserves beyond what it needs now, so that it grows in place
GENEROUS = 2**28  # bytes up to which a pool that grows does so rather than forget what it knows
HELD = np.iinfo(np.int64).max  # in the place of the time of the last use


class Lease:
    """The pages that one sequence holds, in order, with `room` for so many tokens.

    slots: (pages x size,) int64, where its tokens' keys lie.
    """

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.room = 0
        self.slots = torch.empty(0, dtype=torch.int64)
        self.start: int | None = None  # the first slot, where all of them lie together

    def read(self, tokens: int) -> slice | Tensor:
        """The slots of the first `tokens` tokens, as `Layout.read` wants them."""
        return self.slots[:tokens] if self.start is None else slice(self.start, self.start + tokens)


class Pages:
    """A pool of `tokens` slots, or one that grows as it is needed (`tokens` None).

    device: where the slots' numbers are, and the layers' cache too unless `places` says another device for each.
    dtype: of what is kept; int8 for codes, as `model.kept` says.
    cache: keys (N, K, C) and values (N, K, Cv) of each layer, N slots; replaced when the pool grows.
    holders: of each page, how many leases hold it. known: pages by their names.
    notes: what others know of what is in known pages, by their names.
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
        self.grows, self.shares = tokens is None, self.device.type == "cuda"
        self.places = tuple(places) or (self.device,) * len(self.shapes)
        self.holders, self.used, self.now = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
        self.known: dict[bytes, int] = {}
        self.notes: dict[bytes, Any] = {}
        self.names: dict[int, bytes] = {}  # of known pages
        self.drafted: set[int] = set()  # known pages in which a draft model's layers are filled, too
        self.cache: list[Cache] = [self._empty(layer, 0) for layer in range(len(self.shapes))]
        if tokens is not None:
            self._grow(self._count(tokens))

    @property
    def free(self) -> int:
        """Pages that nobody holds, known ones included."""
        return int((self.holders == 0).sum())

    @property
    def token_bytes(self) -> int:
        """What one slot takes, in all layers together."""
        return token_bytes(self.shapes, self.dtype)

    # ---- room --------------------------------------------------------------------------------------------------------
    def begin(self, lease: Lease, names: Iterable[bytes], tokens: int, extent: int) -> tuple[int, int] | None:
        """`reserve` for a lease that holds nothing. names: of the pages that it would fill first.

        Returns how many of them, from the first on, it has filled already, and in how many of these a draft model's
        layers are, too; None, and nothing changed, where there is no room.
        """
        pages = self._found(names)
        drafted = sum(1 for _ in takewhile(self.drafted.__contains__, pages))
        self.holders[pages] += 1
        self._lie(lease, pages)
        if self.reserve(lease, tokens, extent):
            return len(pages), drafted
        self.give_back(lease)
        return None

    def reserve(self, lease: Lease, tokens: int, extent: int) -> bool:
        """Make a lease hold at least `tokens` slots, and some ahead, of the `extent` that it may come to need.

        False, and nothing changed, where the pool has no room.
        """
        need = self._count(tokens) - len(lease.pages)
        if need <= 0:
            return True
        want = self._count(min(extent, tokens + AHEAD)) - len(lease.pages)
        return self._together(lease, want) or self._together(lease, need) or self._anywhere(lease, need)

    def fill(self, lease: Lease, names: Sequence[bytes], done: int) -> int:
        """Let a lease, of whose pages `done` are filled, have those that follow and are known by now. Returns how many
        are filled then. names: of all that may be."""
        pages = self._found(names[done:])
        own = lease.pages[done : done + len(pages)]
        if self.shares and pages:
            self.holders[own] -= 1
            self.holders[pages] += 1
            self._lie(lease, [*lease.pages[:done], *pages, *lease.pages[done + len(pages) :]])
        elif pages:
            self._copy(pages, own)
        return done + len(pages)

    def keep(self, lease: Lease, names: Sequence[bytes], first: int = 0, drafted: int = 0) -> None:
        """Know the pages of a lease from `first` on, which are full, by these names of its first pages; and that a
        draft model's layers are filled in the first `drafted`."""
        for i in range(first, len(names)):
            page = lease.pages[i]
            if self.known.setdefault(names[i], page) == page:
                self.names[page] = names[i]
                if i < drafted:
                    self.drafted.add(page)

    def give_back(self, lease: Lease) -> None:
        """Hold the pages of a lease no more, which is empty then. Those that are known stay so for now."""
        self.now += len(lease.pages)
        for i, page in enumerate(lease.pages):
            self.holders[page] -= 1
            self.used[page] = self.now - i if page in self.names else 0  # what comes later is forgotten first
        self._lie(lease, [])

    def forget(self, pages: Iterable[int] | None = None) -> None:
        """Make known pages blank, by default all."""
        for page in list(self.names) if pages is None else pages:
            name = self.names.pop(page, b"")
            self.known.pop(name, None)
            self.notes.pop(name, None)
            self.drafted.discard(page)
            self.used[page] = 0

    def _found(self, names: Iterable[bytes]) -> list[int]:
        """The known pages of these names, up to the first that is not known."""
        pages: list[int] = []
        for name in names:
            if name not in self.known:
                break
            pages.append(self.known[name])
        return pages

    # ---- where -------------------------------------------------------------------------------------------------------
    def _count(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def _together(self, lease: Lease, more: int) -> bool:
        """Lend `more` pages in a row: right behind the lease's own, or else where they, and without sharing the lease's
        own too, fit; in either case where what is known is missed least."""
        row = more + (0 if self.shares else len(lease.pages))
        behind, elsewhere, first = self._ages(lease, more, row)
        missed = min(behind, elsewhere)
        if self.grows and missed and (missed == HELD or len(self.holders) * self.size * self.token_bytes < GENEROUS):
            least = len(self.holders) + row
            if self._grow(max(2 * len(self.holders), least)) or self._grow(least):
                behind, elsewhere, first = self._ages(lease, more, row)
        if min(behind, elsewhere) == HELD:
            return False
        if behind <= elsewhere:
            self._hold(lease, range(lease.pages[-1] + 1, lease.pages[-1] + 1 + more))
        elif self.shares:
            self._hold(lease, range(first, first + row))
        else:
            self._move(lease, range(first, first + row))
        return True

    def _ages(self, lease: Lease, more: int, row: int) -> tuple[int, int, int]:
        """When the pages were used that `more` pages right behind a lease would take, and that a row elsewhere would
        take, and the first of these. 0: they are blank, HELD: there is no such place."""
        ages = np.where(self.holders > 0, HELD, self.used)
        behind = ages[lease.pages[-1] + 1 :][:more] if lease.start is not None else ages[:0]
        rows = _most(ages, row)
        first = int(rows.argmin()) if len(rows) else 0
        return int(behind.max()) if len(behind) == more else HELD, int(rows[first]) if len(rows) else HELD, first

    def _anywhere(self, lease: Lease, count: int) -> bool:
        free = np.flatnonzero(self.holders == 0)
        if len(free) < count:
            return False
        self._hold(lease, sorted(free[self.used[free].argsort(kind="stable")[:count]].tolist()))
        return True

    def _hold(self, lease: Lease, pages: Sequence[int]) -> None:
        """Lend a lease pages that nobody holds, behind its own."""
        self.forget(pages)
        self.holders[pages] += 1
        self._lie(lease, [*lease.pages, *pages])

    def _move(self, lease: Lease, pages: Sequence[int]) -> None:
        """Let a lease lie in these pages, which nobody holds, with all that it has filled."""
        own = lease.pages
        self.forget(pages)
        self._copy(own, pages[: len(own)])
        for old, new in zip(own, pages, strict=False):
            if self.holders[old] == 1 and old in self.names:  # nobody else needs it where it was
                self.names[new] = self.names.pop(old)
                self.known[self.names[new]] = new
                if old in self.drafted:
                    self.drafted.add(new)
                    self.drafted.discard(old)
        self.give_back(lease)
        self.holders[pages] += 1
        self._lie(lease, list(pages))

    def _lie(self, lease: Lease, pages: list[int]) -> None:
        lease.pages, lease.room, lease.start = pages, len(pages) * self.size, None
        if pages and pages == list(range(pages[0], pages[0] + len(pages))):
            lease.start = pages[0] * self.size
        lease.slots = self._slots(pages)

    def _slots(self, pages: Sequence[int]) -> Tensor:
        starts = torch.tensor(pages, device=self.device, dtype=torch.int64) * self.size
        return (starts[:, None] + torch.arange(self.size, device=self.device)).flatten()

    # ---- what is in them ---------------------------------------------------------------------------------------------
    def _copy(self, pages: Sequence[int], to: Sequence[int]) -> None:
        source, goal = self._slots(pages), self._slots(to)
        for (keys, values), shape in zip(self.cache, self.shapes, strict=True):
            keys[goal] = keys[source]
            if not shape.values_in_keys:
                values[goal] = values[source]

    def _grow(self, count: int) -> bool:
        """Make the pool one of `count` pages; False, and nothing changed, where there is no memory for it."""
        slots, more = len(self.holders) * self.size, count * self.size
        try:
            for i in range(len(self.shapes)):
                bigger = self._empty(i, more)
                for old, new in zip(self.cache[i], bigger, strict=True):
                    new[:slots] = old[:slots]
                self.cache[i] = bigger
        except (MemoryError, RuntimeError):  # PyTorch has an exception of its own for this on GPUs only
            return False
        blank = np.zeros(count - len(self.holders), np.int64)
        self.holders, self.used = np.append(self.holders, blank), np.append(self.used, blank)
        return True

    def _empty(self, layer: int, slots: int) -> Cache:
        shape, device = self.shapes[layer], self.places[layer]
        key, value = (kept.width(n, self.dtype) for n in (shape.key_channels, shape.value_channels))
        keys = torch.empty(slots, shape.heads, key, device=device, dtype=self.dtype)
        if shape.values_in_keys:
            return keys, keys[..., :value]
        return keys, torch.empty(slots, shape.heads, value, device=device, dtype=self.dtype)


def token_bytes(shapes: Iterable[CacheShape], dtype: torch.dtype) -> int:
    """What a token's keys and values take, in all layers together."""
    rows = [(s.heads, n) for s in shapes for n in (s.key_channels, *[s.value_channels] * (not s.values_in_keys))]
    return sum(heads * kept.width(n, dtype) for heads, n in rows) * dtype.itemsize


def _most(numbers: np.ndarray, count: int) -> np.ndarray:
    """The largest of every `count` in a row."""
    width = 1
    while 2 * width <= count:
        numbers, width = np.maximum(numbers[:-width], numbers[width:]), 2 * width
    rest = count - width
    return np.maximum(numbers[: max(len(numbers) - rest, 0)], numbers[rest:])
