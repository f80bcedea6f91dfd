"""A linear map becomes one with low-rank terms, of which each row of a pass gets those of its adapters: LoRA and DoRA.

Parameters are called what PEFT calls them: base_layer.weight, lora_A.NAME.weight, lora_B.NAME.weight,
lora_magnitude_vector.NAME.weight.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.model import layers
from lathe.transforms.adapted import joined, kind_of
from lathe.transforms.lowrank import LoraModule, LowRank, Magnitude, Term, Terms, linear


class LoraLinear(LoraModule):
    """base(x) + the sum over active adapters of scaling * B A x."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_dropout, self.lora_magnitude_vector = nn.ModuleDict(), nn.ModuleDict()
        self.plain: dict[str, bool] = {}  # whether it is B A x and nothing more
        self.norms: dict[str, tuple[Any, Tensor]] = {}
        self.stack: tuple[Any, Tensor, Tensor, tuple[int, ...]] | None = None  # several adapters' terms as one

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
        state = names, kind, () if self.mixed else tuple(_state(part.a, part.b) for part in map(self.part_of, names))
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
        state = _state(weight, part.a, part.b)
        if not torch.is_inference_mode_enabled() or self.norms.get(name, (None,))[0] != state:
            delta = part.scaling * (part.b.float() @ part.a.float())
            self.norms[name] = state, (weight.float() + delta).norm(dim=1).to(part.a.dtype)
        return self.norms[name][1]

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


def _state(*tensors: Tensor) -> tuple[object, ...]:
    """What changes when their numbers do."""
    return tuple((id(t), None if t.is_inference() else t._version) for t in tensors)
