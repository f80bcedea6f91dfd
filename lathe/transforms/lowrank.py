"""A linear map, an embedding or a stack of experts becomes one with low-rank terms: LoRA, and DoRA's magnitudes.

Parameters are called what PEFT calls them: base_layer.weight, lora_A.NAME.weight, lora_B.NAME.weight,
lora_magnitude_vector.NAME.weight, lora_embedding_A.NAME, lora_embedding_B.NAME.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.model import kernels, layers
from lathe.transforms.adapted import Adapted, joined, kind_of


@dataclass(frozen=True, eq=False)
class LowRank:
    """One module's term: a: r in, b: out r; of an embedding V rows and D columns, a: r V, b: D r; of E experts, with a
    first dimension E. magnitude: out, what DoRA scales rows to. bias: out, b's own. table: of an embedding.

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
        """What these rows of the weight change by. rows: n in, float32, those of `which`."""
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


class Magnitude(nn.Module):
    """DoRA's: what the length of each row of a matrix is to be."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)


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


class LoraLinear(Adapted):
    """base(x) + the sum over active adapters of scaling * B A x."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_dropout, self.lora_magnitude_vector = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.plain: dict[str, bool] = {}  # whether it is B A x and nothing more
        self.norms: dict[str, tuple[Any, Tensor]] = {}
        self.stack: tuple[Any, Tensor, Tensor, tuple[int, ...]] | None = None  # several adapters' terms as one

    @property
    def names(self) -> list[str]:
        return list(self.scaling)

    def put(self, name: str, part: LowRank, a: layers.Linear | None = None) -> None:
        """a: the module that holds part.a already, where another shares it."""
        device, dtype = kind_of(self.base_layer)
        self.lora_A[name] = a if a is not None else linear(part.a.to(device, dtype))
        self.lora_B[name] = linear(part.b.to(device, dtype), None if part.bias is None else part.bias.to(device, dtype))
        self.lora_dropout[name] = nn.Dropout(part.dropout)
        self.lora_dropout.train(self.training)
        if part.magnitude is not None:
            self.lora_magnitude_vector[name] = Magnitude(part.magnitude.to(device, dtype))
        self.scaling[name], self.stack = part.scaling, None
        self.plain[name] = part.magnitude is None and part.bias is None

    def drop(self, name: str) -> None:
        for held in (self.lora_A, self.lora_B, self.lora_dropout, self.lora_magnitude_vector):
            if name in held:
                del held[name]
        del self.scaling[name], self.plain[name]
        self.norms.pop(name, None)
        self.stack = None

    def part_of(self, name: str) -> LowRank:
        a, b = cast("layers.Linear", self.lora_A[name]), cast("layers.Linear", self.lora_B[name])
        magnitude = self.lora_magnitude_vector[name].weight if name in self.lora_magnitude_vector else None
        dropout = cast("nn.Dropout", self.lora_dropout[name]).p
        return LowRank(a.weight, b.weight, self.scaling[name], dropout, cast("Tensor | None", magnitude), b.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        if self.kept is not None:
            return y
        if not self.mixed:
            return self._with(self.active, x, y)
        spans = self.spans
        if all(self.plain[name] for names, _ in spans for name in names):
            return self._stacked(x, y)
        for names, rows in spans:
            y[rows] = self._with(names, x[rows], y[rows])
        return y

    def _with(self, names: tuple[str, ...], x: Tensor, y: Tensor) -> Tensor:
        """What these adapters make of y, the base's."""
        kind, total = y.dtype, y
        for name in sorted(names, key=self.plain.__getitem__):  # plain terms last: they are added to y where it lies
            x_in = self.lora_dropout[name](x)
            a, b = cast("layers.Linear", self.lora_A[name]), cast("layers.Linear", self.lora_B[name])
            bias = cast("Tensor | None", self.base_layer.bias)
            if self.plain[name]:
                total = Term.apply(total, x_in, a.weight, b.weight, self.scaling[name])
                continue
            low = b(a(x_in.to(a.weight.dtype))) * self.scaling[name]
            if name in self.lora_magnitude_vector:
                seen = y if x_in is x else self.base_layer(x_in)
                seen = seen if bias is None else seen - bias
                factor = cast("Tensor", self.lora_magnitude_vector[name].weight) / self._norm(name)
                low = (factor - 1) * seen + factor * low
            total = total + low
        return total.to(kind)

    @property
    def counting(self) -> tuple[str, ...]:
        """The adapters that count for some row of this pass."""
        if self.kept is not None:
            return ()
        return tuple(dict.fromkeys(name for names, _ in self.spans for name in names))

    def together(self, names: tuple[str, ...], kind: torch.dtype) -> Terms:
        """The terms of plain adapters, those that count in this pass, as one; what is active may still be learning."""
        state = names, kind, () if self.mixed else tuple(_state(self.part_of(name)) for name in names)
        if self.stack is None or self.stack[0] != state:
            parts = [self.part_of(name) for name in names]
            a = torch.cat([part.a for part in parts]).to(kind)
            b = torch.cat([(part.scaling * part.b).T for part in parts]).to(kind)
            self.stack = state, a, b, tuple(part.rank for part in parts)
        _, a, b, ranks = self.stack
        if not self.mixed:
            return Terms(a, b, None)
        spans = self.spans

        def others() -> Tensor:
            of = [name for name, rank in zip(names, ranks, strict=True) for _ in range(rank)]
            own = torch.tensor([[name in given for name in of] for given, _ in spans])
            counts = torch.tensor([rows.stop - rows.start for _, rows in spans])
            return ~own.repeat_interleave(counts, 0).to(a.device)

        assert self.ribbon is not None
        return Terms(a, b, self.ribbon.once((names, ranks, tuple(given for given, _ in spans)), others))

    def _stacked(self, x: Tensor, y: Tensor) -> Tensor:
        """The terms of several adapters in two products, each on its own rows. y, the base's, is changed."""
        if not (names := self.counting):
            return y
        a, b, others = self.together(names, y.dtype)
        low = x.to(y.dtype) @ a.T  # T R
        if others is not None:  # not multiplied by 0: what another adapter makes of a row may be infinite
            low.masked_fill_(others, 0.0)
        return y.addmm_(low, b)

    @torch.no_grad()
    def _norm(self, name: str) -> Tensor:
        """The length of each row of W + scaling B A, which no gradient goes through (DoRA's section 4.3).

        Where answers are made it is kept until one of the three changes: it costs more than the rest of the pass.
        """
        part, weight = self.part_of(name), cast("Tensor", self.base_layer.weight)
        state = [(id(t), None if t.is_inference() else t._version) for t in (weight, part.a, part.b)]
        if not torch.is_inference_mode_enabled() or self.norms.get(name, (None,))[0] != state:
            delta = part.scaling * (part.b.float() @ part.a.float())
            self.norms[name] = state, (weight.float() + delta).norm(dim=1).to(part.a.dtype)
        return self.norms[name][1]

    def rows(self, which: slice, names: tuple[str, ...] | None = None) -> Tensor:
        """names: those that count; by default the active ones."""
        weight, names = cast("Tensor", self.base_layer.weight)[which], self.active if names is None else names
        if self.kept is not None or not names:
            return weight
        rows = weight.float()
        return (rows + sum(self.part_of(name).change(rows, which) for name in names)).to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        bias = cast("Tensor | None", self.base_layer.bias)
        own = [(self.scaling[n], self.part_of(n).bias) for n in self.active] if self.kept is None else []
        for scaling, more in own:
            if more is not None and bias is None:
                found = "An adapter adds biases to a matrix that has none in the model."
                raise UsageError(found, "It cannot be merged.", "Use it unmerged.")
            if more is not None and bias is not None:
                bias = (bias.float() + scaling * more.float()).to(bias.dtype)
        return bias


class LoraRouter(LoraLinear):
    """A router whose matrix is summed before it judges; it is small, and no term is dropped out."""

    def forward(self, x: Tensor) -> Any:
        def judged(names: tuple[str, ...], x: Tensor) -> Any:
            return torch.func.functional_call(self.base_layer, {"weight": self.rows(slice(None), names)}, (x,))

        return joined([judged(names, x[rows]) for names, rows in self.spans])


class LoraEmbedding(Adapted):
    """Rows of a table, plus those of a low-rank one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.lora_embedding_A, self.lora_embedding_B = nn.ParameterDict(), nn.ParameterDict()
        self.scaling: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        return list(self.scaling)

    def put(self, name: str, part: LowRank) -> None:
        device, dtype = kind_of(self.base_layer)
        self.lora_embedding_A[name] = nn.Parameter(part.a.to(device, dtype))
        self.lora_embedding_B[name] = nn.Parameter(part.b.to(device, dtype))
        self.scaling[name] = part.scaling

    def drop(self, name: str) -> None:
        del self.lora_embedding_A[name], self.lora_embedding_B[name], self.scaling[name]

    def part_of(self, name: str) -> LowRank:
        return LowRank(self.lora_embedding_A[name], self.lora_embedding_B[name], self.scaling[name], table=True)

    def forward(self, index: Tensor) -> Tensor:
        y = self.base_layer(index)
        if self.kept is not None:
            return y
        return joined([self._with(names, index[rows], y[rows]) for names, rows in self.spans])

    def _with(self, names: tuple[str, ...], index: Tensor, y: Tensor) -> Tensor:
        total = y
        for name in names:
            a, b = self.lora_embedding_A[name], self.lora_embedding_B[name]
            total = total + F.embedding(index, a.T) @ b.T * self.scaling[name]
        return total.type_as(y)

    def rows(self, which: slice) -> Tensor:
        weight = cast("Tensor", self.base_layer.weight)[which]
        if self.kept is not None or not self.active:
            return weight
        changes = [table(self.part_of(name), which) for name in self.active]
        return (weight.float() + sum(changes)).to(weight.dtype)


def table(part: LowRank, which: slice) -> Tensor:
    """What rows of an embedding change by, float32."""
    return part.scaling * (part.a[:, which].float().T @ part.b.float().T)


class LoraStacked(Adapted):
    """A matrix per expert, each with a low-rank term of its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.scaling: dict[str, float] = {}
        self.dropout: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        return list(self.scaling)

    def put(self, name: str, part: LowRank) -> None:
        device, dtype = kind_of(self.base_layer)
        self.lora_A[name], self.lora_B[name] = (nn.Parameter(t.to(device, dtype)) for t in (part.a, part.b))
        self.scaling[name], self.dropout[name] = part.scaling, part.dropout

    def drop(self, name: str) -> None:
        del self.lora_A[name], self.lora_B[name], self.scaling[name], self.dropout[name]

    def part_of(self, name: str) -> LowRank:
        return LowRank(self.lora_A[name], self.lora_B[name], self.scaling[name], self.dropout[name])

    def forward(self, x: Tensor, groups: kernels.Groups) -> Tensor:
        y = self.base_layer(x, groups)
        if self.kept is not None or not self.active:
            return y
        total = y
        for name in self.active:
            a, b = self.lora_A[name], self.lora_B[name]
            given = F.dropout(x, self.dropout[name], self.training).to(a.dtype)
            low = kernels.expert_products(kernels.expert_products(given, a, None, groups), b, None, groups)
            total = total + low * self.scaling[name]
        return total.type_as(y)

    def rows(self, which: slice) -> Tensor:
        weight = cast("Tensor", self.base_layer.weight)[which]
        if self.kept is not None or not self.active:
            return weight
        rows = weight.float()
        return (rows + sum(self.part_of(name).change(rows, which) for name in self.active)).to(weight.dtype)


def linear(weight: Tensor, bias: Tensor | None = None) -> layers.Linear:
    """A linear map of these numbers."""
    with torch.device("meta"):
        made = layers.Linear(weight.shape[1], weight.shape[0], bias is not None)
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias)
    return made


def _state(part: LowRank) -> tuple[object, ...]:
    """What changes when its numbers do."""
    return tuple((id(t), None if t.is_inference() else t._version) for t in (part.a, part.b))
