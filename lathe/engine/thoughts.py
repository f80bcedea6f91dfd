"""A bound on how long an answer may think: when so many tokens are used up, the mark that ends a thought comes next.

A `Constraint` around another, or around none. It reads what is said as bytes, so that marks are found however they are
cut into tokens; it knows no tokenizer, only what each token writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lathe.engine.constrain import Constraint
from lathe.errors import LatheError


@dataclass(frozen=True)
class Bound:
    """most: tokens that a thought may have between its marks.

    begin, end: the marks; an empty one to begin with where the prompt has begun the thought. An answer that begins with
    anything else but space holds none. close: the ids that write `end`, at least one.
    """

    most: int
    begin: bytes
    end: bytes
    close: tuple[int, ...]


class _Place(NamedTuple):
    """How far an answer has come. within: None until its first words tell whether it thinks; False behind the thought.

    text: what may yet become a mark. used: tokens of the thought. closed: how many of `close` were said of necessity.
    """

    within: bool | None
    text: bytes = b""
    used: int = 0
    closed: int = 0


class Bounded:
    """A `Constraint` that ends thoughts.

    Args:
        spell: gives the bytes of a token. vocab: for how many ids there are scores (V).
        inner: what the answer must be besides; it has a say in when a thought may end.
    """

    def __init__(
        self, bound: Bound, spell: Callable[[int], bytes], vocab: int, inner: Constraint | None = None
    ) -> None:
        self.bound, self.inner = bound, inner
        self._spell, self._vocab = spell, vocab
        self._place = _Place(None if bound.begin else True)

    @property
    def complete(self) -> bool:
        return self.inner is not None and self.inner.complete

    @property
    def error(self) -> LatheError | None:
        return self.inner.error if self.inner else None

    def mask(self, after: Sequence[int] = ()) -> Tensor:
        allowed = self.inner.mask(after) if self.inner else torch.ones(self._vocab, dtype=torch.bool)
        place = self._place
        for token in after:
            place = self._next(place, token)
        if not self._used_up(place):
            return allowed
        mark = self.bound.close[place.closed]
        if not allowed[mark]:  # as in the midst of a character: later, then
            return allowed
        return torch.zeros_like(allowed).index_fill_(0, torch.tensor([mark]), True)

    def accept(self, token: int) -> None:
        self._place = self._next(self._place, token)
        if self.inner:
            self.inner.accept(token)

    def _used_up(self, place: _Place) -> bool:
        return bool(place.within) and place.used >= self.bound.most

    def _next(self, place: _Place, token: int) -> _Place:
        """The place behind a further token."""
        if place.within is False:
            return place
        begin, end, close = self.bound.begin, self.bound.end, self.bound.close
        text = place.text + self._spell(token)
        if place.within is None:
            words = text.lstrip()
            if words.startswith(begin):
                return _Place(True, words[len(begin) :])
            return _Place(None if begin.startswith(words) else False, text)
        closed = place.closed + 1 if self._used_up(place) and token == close[place.closed] else 0
        if end in text or closed == len(close):
            return _Place(False)
        return _Place(True, text[-len(end) :], place.used + 1, closed)
