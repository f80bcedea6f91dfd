"""What an adapter is to be, before there is one: settings as data, in the words of the methods. No torch here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

Names = tuple[str, ...] | str  # ends of modules' names, one of which must fit, or an expression that the whole must fit


@dataclass(frozen=True)
class Lora:
    """W x becomes W x + scaling B A x, with B A of low rank. Hu et al., arXiv:2106.09685.

    targets: modules that get it; "all-linear" is every matrix but the head. layers: only in layers of these numbers.
    ranks, alphas: other numbers for modules whose names fit an expression.
    stabilised: scaling is alpha / sqrt(rank), not alpha / rank. Kalajdzievski, arXiv:2312.03732.
    dora: rows of the sum are rescaled to a learned magnitude. Liu et al., arXiv:2402.09353.
    bias: which of the model's biases are learned too: none, those of the targets, or all. own_bias: B has one.
    whole: modules that are learned whole, as the head or the embedding.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: Names = ("q_proj", "v_proj")
    excluded: Names = ()
    layers: tuple[int, ...] | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False
    dora: bool = False
    dropout: float = 0.0
    bias: Literal["none", "lora_only", "all"] = "none"
    own_bias: bool = False
    whole: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        return next((rank for pattern, rank in self.ranks.items() if ends(module, pattern)), self.rank)

    def scaling(self, module: str, rank: int) -> float:
        alpha = next((alpha for pattern, alpha in self.alphas.items() if ends(module, pattern)), self.alpha)
        return alpha / (rank**0.5 if self.stabilised else rank)

    def wants(self, module: str) -> bool:
        """Whether a module of this name gets low-rank terms."""
        layer = re.search(r"\.(\d+)\.", module)
        if self.layers is not None and (layer is None or int(layer[1]) not in self.layers):
            return False
        return fits(self.targets, module) and not fits(self.excluded, module)


@dataclass(frozen=True)
class Prefix:
    """Learned tokens that every query looks at beside its own sequence, through a gate per head that begins at zero:
    `length` of them, in each layer from number `start` on. LLaMA-Adapter, arXiv:2303.16199."""

    length: int = 10
    start: int = 2


@dataclass(frozen=True)
class Scale:
    """A learned scale and bias for every matrix, learned norms, and a prefix. LLaMA-Adapter V2, arXiv:2304.15010."""

    prefix: Prefix = Prefix()


def ends(module: str, pattern: str) -> bool:
    """Whether a name, or what follows one of its dots, fits an expression."""
    return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None


def fits(names: Names, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return named(names, module)


def named(names: Collection[str], module: str) -> bool:
    """Whether a module is called one of `names`, or is so called below another."""
    return any(module == name or module.endswith("." + name) for name in names)
