"""Tokens become the names of the pages that they fill: equal names mean equal keys and values; knows no page.

A page's keys depend on all tokens before it, so its name is a keyed hash (BLAKE2b) of the name before it and of its own
tokens; the first follows the name of everything else that they depend on. The key is secret and drawn anew for each
engine, so that nobody can find two prompts whose names are the same.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Hashable
from hashlib import blake2b


class Names:
    """Names for pages of `size` tokens."""

    def __init__(self, size: int) -> None:
        self.size, self.secret = size, secrets.token_bytes(32)

    def root(self, *told: Hashable) -> bytes:
        """The name in front of a sequence's first page. told: of types whose `repr` tells them apart."""
        return self._hash(repr(told).encode("utf-8", "surrogatepass"))

    def extend(self, names: list[bytes], tokens: list[int]) -> None:
        """Add the names of all pages that these tokens fill. names: the root's, and those of pages before."""
        for end in range(len(names) * self.size, len(tokens) + 1, self.size):
            names.append(self._hash(names[-1] + array("q", tokens[end - self.size : end]).tobytes()))

    def _hash(self, what: bytes) -> bytes:
        return blake2b(what, key=self.secret, digest_size=32).digest()
