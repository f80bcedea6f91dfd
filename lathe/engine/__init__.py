"""Tokens in, tokens out: many requests share one decoder and one pool of cache pages; knows no text and no file."""

from lathe.engine.constrain import Constraint, Grammars
from lathe.engine.engine import Engine
from lathe.engine.lookup import Lookup
from lathe.engine.runner import Adapters
from lathe.engine.sampling import Sampling, Token
from lathe.engine.scheduler import Finish, Sequence
from lathe.engine.speculate import Drafter, DraftModel

__all__ = [
    "Adapters",
    "Constraint",
    "DraftModel",
    "Drafter",
    "Engine",
    "Finish",
    "Grammars",
    "Lookup",
    "Sampling",
    "Sequence",
    "Token",
]
