"""Two low matrices become a term that is added to a module's weight, and a module one that holds such terms by name.

LoRA (Hu et al., arXiv:2106.09685) and DoRA's magnitudes (Liu et al., arXiv:2402.09353). What terms do to a linear map
is in `lora`, to an embedding or a stack of experts in `lora_tables`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lathe.model import layers
from lathe.transforms.adapted import Adapted


@dataclass(frozen=True, eq=False)
class LowRank:
    """One module's term: a: r in, b: out r; of an embedding of V rows and D columns, a: r V, b: D r; of E experts, with
    a first dimension E. magnitude: out, what DoRA scales rows to. bias: out, b's own. table: of an embedding.

    Parts with the same tensor as `a` go on sharing it, as those of a matrix that is one in a family's files.
    """

    a: Tensor
    b: Tensor
    scaling: float
    dropout: float = 0.0
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    table: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[-2]

    def change(self, rows: Tensor, which: slice) -> Tensor:
        """What these rows of the weight change by, float32. rows: n in, float32, those of `which`."""
        if self.table:
            return self.scaling * (self.a[:, which].float().T @ self.b.float().T)
        a = self.a[which] if self.a.ndim == 3 else self.a  # of experts, rows are whole matrices
        delta = self.scaling * (self.b[which].float() @ a.float())
        if self.magnitude is None:
            return delta
        changed = rows + delta
        return changed * (self.magnitude[which].float() / changed.norm(dim=1))[:, None] - rows


class Terms(NamedTuple):
    """Terms of several adapters as one. a: R in, b: R out, scaled, R all their ranks together. others: T R, bool, which
    of these do not count for a row; None where all count for all."""

    a: Tensor
    b: Tensor
    others: Tensor | None


class Term(torch.autograd.Function):
    """y + scaling * B A x, added to y in place, in products of y's dtype. y: T out, x: T in, a: r in, b: out r.

    Keeps x as it is, which all matrices that are given it share, and A x. A and B may be float32 beside a model of
    fewer bits: only they and their gradients are cast, not what is as long as the ribbon.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        low = x.to(y.dtype) @ a.to(y.dtype).T  # T r
        ctx.save_for_backward(x, low, a, b)
        ctx.scaling = scaling
        ctx.mark_dirty(y)
        return y.addmm_(low, (scaling * b).to(y.dtype).T)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, low, a, b = ctx.saved_tensors
        kind, by_x = low.dtype, None
        by_low = outer[0] @ (ctx.scaling * b).to(kind)
        if ctx.needs_input_grad[1]:
            by_x = (by_low @ a.to(kind)).to(x.dtype)
        by_a = (by_low.T @ x.to(kind)).to(a.dtype)
        by_b = (outer[0].T @ low).to(b.dtype).mul_(ctx.scaling)
        return outer[0], by_x, by_a, by_b, None


class LoraModule(Adapted):
    """What modules with low-rank terms have in common. scaling: of each adapter's term."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.scaling: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        return list(self.scaling)

    def part_of(self, name: str) -> LowRank:
        """An adapter's term as it is now."""
        raise NotImplementedError

    def rows(self, which: slice, names: tuple[str, ...] | None = None) -> Tensor:
        """names: those that count; by default the active ones."""
        weight, names = cast("Tensor", self.base_layer.weight)[which], self.active if names is None else names
        if self.kept is not None or not names:
            return weight
        rows = weight.float()
        return (rows + sum(self.part_of(name).change(rows, which) for name in names)).to(weight.dtype)


class Magnitude(nn.Module):
    """DoRA's: what the length of each row of a matrix is to be."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)


def linear(weight: Tensor, bias: Tensor | None = None) -> layers.Linear:
    """A linear map of these numbers."""
    with torch.device("meta"):
        made = layers.Linear(weight.shape[1], weight.shape[0], bias is not None)
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias)
    return made
