"""What an answer must be, as tokens: which may come next, and what becomes of it when one comes; knows no text."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Constraint(Protocol):
    """One request's, made above the engine from a grammar and the vocabulary's bytes."""

    def mask(self) -> Tensor:
        """Which tokens may come next. V, bool."""

    def accept(self, token: int) -> None:
        """Go on past a token."""

    def roll_back(self, count: int) -> None:
        """Take the last tokens back: they were guessed and fell."""

    def whole(self) -> bool:
        """Whether the answer may end here."""
