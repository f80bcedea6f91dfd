"""Slices of a decoder that compute together learn together: what of `shard` needs gradients, and who has them.

After Shoeybi et al., arXiv:1909.08053. The stream is whole and the same on all ranks, and so is its gradient; between
`enter` and `sum`, inside a mixer or an MLP, each rank has its part of both. A parameter of which ranks have slices has
its gradient at once. One that all have whole, inside, has on each rank a part of it (per-head norms, routers, the kv
head that several ranks share): `Slices.complete` adds those parts. One on the stream has it whole, everywhere the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.errors import UsageError
from lathe.model.blank import blank
from lathe.model.decoder import Decoder
from lathe.model.layers import Linear
from lathe.model.spec import Spec
from lathe.transforms.begin import Made
from lathe.transforms.cuts import cut_of
from lathe.transforms.group import Group, span
from lathe.transforms.lowrank import LowRank
from lathe.transforms.parts import local
from lathe.transforms.shard import Share
from lathe.transforms.standing import Part

if TYPE_CHECKING:
    from lathe.weights.tensors import Ref


class Added(torch.autograd.Function):
    """The sum of all ranks' x, on all ranks, each of which has the whole gradient of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return Group.sum(group, x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return outer[0], None


class Entered(torch.autograd.Function):
    """x, which all ranks have, and each uses for a part: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return Group.sum(ctx.group, outer[0].clone(memory_format=torch.contiguous_format)), None


class SideBySide(torch.autograd.Function):
    """All ranks' columns, on all ranks, each of which has the whole gradient and takes that of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: int, group: Group) -> Tensor:
        ctx.span = span(columns, group.rank, group.count)
        return Group.side_by_side(group, x, columns)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        start, end = ctx.span
        return outer[0][..., start:end], None, None


@dataclass(frozen=True)
class Learning(Group):
    """The ranks that learn together: as `Group`, with gradients."""

    def sum(self, x: Tensor) -> Tensor:
        return Added.apply(x, self)

    def enter(self, x: Tensor) -> Tensor:
        return Entered.apply(x, self)

    def side_by_side(self, x: Tensor, columns: int) -> Tensor:
        return SideBySide.apply(x, columns, self)

    def shared(self, x: Tensor) -> Tensor:
        return Entered.apply(Added.apply(x, self), self)


@dataclass(frozen=True)
class Has:
    """What this rank has of a parameter, of which the ranks have `pieces` different ones; this is number `piece`.

    gradient: "own" is complete on each rank; "parts" have to be added up among those that have the same piece; of
    "first" only the first rank's counts, as its parameter is the only one that does.
    """

    pieces: int
    piece: int
    gradient: Literal["own", "parts", "first"]

    @staticmethod
    def of(name: str, part: tuple[int, ...], whole: tuple[int, ...], group: Group) -> Has:
        """part, whole: the parameter's shape on this rank, and in the model."""
        cut = cut_of(name)
        if cut.once:
            return Has(1, 0, "first")
        if part == whole:
            inside = ".self_attn." in name or ".mlp." in name or name.startswith("lm_head.")
            return Has(1, 0, "parts" if inside else "own")
        pieces = whole[cut.dim] // part[cut.dim]
        if cut.unit == "kv_heads" and pieces < group.count:
            return Has(pieces, group.rank * pieces // group.count, "parts")
        return Has(group.count, group.rank, "own")


class Slices:
    """This rank's slices of a decoder that learns, put on by `Share`, and what the ranks have in common."""

    def __init__(self, spec: Spec, group: Group) -> None:
        self.share, self.group = Share(spec, group), group
        self.whole = blank(spec)
        self.has: dict[nn.Parameter, Has] = {}

    def learn(self, decoder: Decoder) -> None:
        """Take note of the parameters that learn: the decoder's own, and those of LoRAs."""
        for name, parameter in decoder.named_parameters():
            if parameter.requires_grad:
                place, shape = self._of_whole(name, tuple(parameter.shape))
                self.has[parameter] = Has.of(place, tuple(parameter.shape), shape, self.group)

    def _of_whole(self, name: str, part: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """The parameter of the plan that decides how this one is divided, and this one's shape in the whole model."""
        module, _, term = name.replace(".base_layer", "").partition(".lora_")
        if not term:
            return module, tuple(self.whole.get_parameter(module).shape)
        rows, columns = self.whole.get_parameter(f"{module}.weight").shape
        return f"{module}.weight", (part[0], columns) if term.startswith("A.") else (rows, part[1])

    def lora(self, made: Made) -> Made:
        """This rank's parts of an adapter that was made for the whole model.

        Raises UsageError for one that is not plain: what it does would need all columns on one rank.
        """
        return {module: [self._sliced(module, part) for part in parts] for module, parts in made.items()}

    def _sliced(self, module: str, part: Part) -> LowRank:
        whole = self.whole.get_submodule(module)
        extra = not isinstance(part, LowRank) or part.magnitude is not None or part.bias is not None
        if extra or not isinstance(part, LowRank) or not isinstance(whole, Linear):
            found = f"{module} gets a {type(part).__name__} that is no plain low-rank term."
            raise UsageError(found, "Tensor parallel training takes plain LoRA.", "Leave --tensor-parallel out.")
        cut = cut_of(f"{module}.weight")
        if cut.unit is None:
            return part
        tensor = part.b if cut.dim == 0 else part.a
        start, end = self.share.place(f"{module}.weight", cut, tensor.shape[cut.dim])
        mine = tensor.narrow(cut.dim, start, end - start)
        mine = mine.clone(memory_format=torch.contiguous_format)  # fused optimizers count on it: no view
        return replace(part, b=mine) if cut.dim == 0 else replace(part, a=mine)

    def mine(self, name: str, ref: Ref, part: tuple[int, ...]) -> Ref:
        """What `gathered` gives, or is kept of it, as this rank has it. part: the shape of that."""
        return self.share.mine(self._of_whole(name, part)[0], ref, part)

    def copies(self, parameter: nn.Parameter) -> float:
        """How many ranks have the numbers of this parameter's complete gradient."""
        has = self.has[parameter]
        return 1 if has.gradient == "first" else self.group.count / has.pieces

    @torch.no_grad()
    def complete(self) -> None:
        """Make every gradient the whole model's, all with one sum."""
        parts: list[tuple[Tensor, Has]] = []
        for parameter, has in self.has.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if has.gradient == "first" and self.group.rank > 0:
                parameter.grad.zero_()
            elif has.gradient == "parts":
                parts.append((local(parameter.grad), has))
        if not parts:
            return
        rows = [F.one_hot(torch.tensor(has.piece), has.pieces).to(x.device) for x, has in parts]
        sums = torch.cat(
            [(row[:, None] * x.flatten().float()).flatten() for row, (x, _) in zip(rows, parts, strict=True)]
        )
        dist.all_reduce(sums, group=self.group.processes)
        pieces = sums.split([has.pieces * x.numel() for x, has in parts])
        for (x, has), sum_ in zip(parts, pieces, strict=True):
            x.copy_(sum_.view(has.pieces, *x.shape)[has.piece])

    def gathered(self, name: str, part: Tensor) -> Tensor:
        """A parameter of the whole model; all ranks ask for it."""
        place, whole = self._of_whole(name, tuple(part.shape))
        cut, group = cut_of(place), self.group
        has = Has.of(place, tuple(part.shape), whole, group)
        if has.pieces == 1:
            return Group.firsts(group, part.detach().clone())
        columns = part.detach().movedim(cut.dim, -1).contiguous()
        spans = [self.share.on(rank).place(place, cut, whole[cut.dim]) for rank in range(group.count)]
        found = group.gathered(columns, [end - start for start, end in spans])
        every = group.count // has.pieces  # several ranks have the same
        return torch.cat(found[::every], dim=-1).movedim(-1, cut.dim).contiguous()
