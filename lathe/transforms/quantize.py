"""Matrices of layers become codes, which never change, and are unpacked where they are multiplied.

Gradients go to what is multiplied, not to the codes: adapters learn beside them (QLoRA). Norms and routers stay as they
are, and embedding and head unless they are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.model import gpu, kernels, layers
from lathe.model.decoder import Decoder, Embedding
from lathe.model.gpu.matrix import Matrix
from lathe.model.mlps import Stacked
from lathe.transforms.grids import pairs
from lathe.transforms.kinds import KINDS

ALL = -1
LAYOUTS = {  # of those kinds whose codes are multiplied on a GPU as they are
    "int8": "rows", "fp8": "rows", "int8-32": "groups", "int4": "fours", "int4-zp": "zeros",
    "nf4": "table", "nf4-dq": "table", "fp4": "table", "fp4-dq": "table",
}  # fmt: skip


# Operations of their own: a compiler that looked inside would keep what is unpacked for the way back.
@torch.library.custom_op("lathe::packed_product", mutates_args=())
def product(x: Tensor, bias: Tensor | None, parts: list[Tensor], how: str, inputs: int, one: int) -> Tensor:
    """x @ weight.T + bias. The weight is unpacked on the way there, and again on the way back; of a stack it is the
    matrix of number `one`, else ALL."""
    return F.linear(x, _unpacked(parts, how, inputs, x.dtype, one), bias)


@product.register_fake
def _(x: Tensor, bias: Tensor | None, parts: list[Tensor], how: str, inputs: int, one: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], parts[0].shape[-2])


@torch.library.custom_op("lathe::packed_product_back", mutates_args=())
def product_back(grad: Tensor, parts: list[Tensor], how: str, inputs: int, one: int) -> Tensor:
    """grad @ weight: the gradient of x."""
    return grad @ _unpacked(parts, how, inputs, grad.dtype, one)


@product_back.register_fake
def _(grad: Tensor, parts: list[Tensor], how: str, inputs: int, one: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], inputs)


def _unpacked(parts: list[Tensor], how: str, inputs: int, dtype: torch.dtype, one: int) -> Tensor:
    """The matrix as numbers; of a stack, that of number `one`, else ALL."""
    which = slice(None) if one == ALL else one
    if how in LAYOUTS and gpu.at_hand(parts[0]):
        from lathe.model.gpu import products

        if products.readable(parts[0]):
            return products.unpacked(_matrix(parts, how, which), inputs, dtype)
    return KINDS[how].unpack(parts, inputs, dtype, which)


def _matrix(parts: Sequence[Tensor], how: str, which: slice | int = slice(None), bias: Tensor | None = None) -> Matrix:
    """What kernels on a GPU are told of codes of the kinds in LAYOUTS."""
    codes, *others = KINDS[how].single(parts, which)
    if (values := KINDS[how].values) is not None:
        others.append(pairs(values, codes.device))
    return Matrix(codes, bias, LAYOUTS[how], *others)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, parts, *ctx.rest = inputs
    ctx.save_for_backward(*parts)


def _back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    to_x, to_bias = ctx.needs_input_grad[:2]
    parts = [*ctx.saved_tensors]  # once: where activations are computed twice, they are gone when asked again
    given = product_back(grad, parts, *ctx.rest) if to_x else None
    return given, grad.flatten(0, -2).sum(0) if to_bias else None, [None] * len(parts), None, None, None


product.register_autograd(_back, setup_context=_remember)


class Packed(nn.Module):
    """What a packed matrix, or a stack of them, is as a module: it stands where one with a `weight` stood.

    shape: of the weight. dtype: what the weight is for whoever reads it. device: where it is.
    """

    def __init__(self, base: layers.Linear | Stacked | Embedding, how: str) -> None:
        nn.Module.__init__(self)
        self.how, self.shape, self.dtype = how, base.weight.shape, base.weight.dtype
        with base.weight.device:
            self.take(KINDS[how].blank(self.shape))
        self.register_parameter("bias", None if isinstance(base, Embedding) else base.bias)

    def take(self, parts: Mapping[str, Tensor]) -> None:
        """Be this matrix."""
        self.parts = tuple(parts)
        for name, part in parts.items():
            self.register_parameter(name, nn.Parameter(part, requires_grad=False))

    def unpacked(self, dtype: torch.dtype, which: slice | int | Tensor = slice(None)) -> Tensor:
        """Rows of it, of a stack matrices, as numbers. which: where there is no double quantization, their numbers."""
        return KINDS[self.how].unpack(self._all(), self.shape[-1], dtype, which)

    def product(self, x: Tensor, bias: Tensor | None, one: int) -> Tensor:
        if gpu.able(x):  # and an operation of its own would cost the host more than it does
            return F.linear(x, _unpacked(self._all(), self.how, self.shape[-1], x.dtype, one), bias)
        return product(x, bias, self._all(), self.how, self.shape[-1], one)

    def _all(self) -> list[Tensor]:
        return [cast("Tensor", self._parameters[name]) for name in self.parts]

    @property
    def device(self) -> torch.device:
        return cast("Tensor", self.codes).device

    @property
    def weight(self) -> Tensor:
        """All of it, unpacked: for those who do more with it than multiply."""
        return self.unpacked(self.dtype)


class PackedLinear(Packed, layers.Linear):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        made = layers.few(x, None, self)
        return self.product(x, self.bias, ALL) if made is None else made[0]

    @property
    def matrix(self) -> Matrix | None:
        return _matrix(self._all(), self.how, bias=self.bias) if self.how in LAYOUTS else None


class PackedStacked(Packed, Stacked):  # type: ignore[misc]
    """One matrix per expert, of which only those that are visited are unpacked, one at a time."""

    def forward(self, x: Tensor, groups: kernels.Groups) -> Tensor:
        biases = self.bias
        products = [self.product(x[a:b], None if biases is None else biases[e], e) for e, a, b in groups.spans]
        return torch.cat(products) if products else x.new_empty(0, self.shape[1])


class PackedTable(Packed, Embedding):  # type: ignore[misc]
    """A table of which those rows are unpacked that are looked up."""

    def forward(self, index: Tensor) -> Tensor:
        return self.unpacked(self.dtype, index)


MODULES: dict[type[nn.Module], type[Packed]] = {
    layers.Linear: PackedLinear,
    Stacked: PackedStacked,
    Embedding: PackedTable,
}


def matrices(decoder: Decoder) -> Iterator[tuple[str, layers.Linear | Stacked]]:
    """The modules that are packed: every matrix of a layer but its router's."""
    for name, module in decoder.named_modules():
        if name.startswith("model.layers.") and isinstance(module, layers.Linear | Stacked):
            yield name, module


def pack(decoder: Decoder, how: str | Mapping[str, str]) -> None:
    """Put packed modules into the places of a decoder's matrices: of all of its layers, or of those that are told by
    their names, embedding and head among them. A decoder on the meta device gets room for codes, and no values; another
    keeps what it computes as nearly as the codes can say it."""
    kinds = {name: how for name, _ in matrices(decoder)} if isinstance(how, str) else how
    for name, kind in kinds.items():
        module: Any = decoder.get_submodule(name)
        made = next(packed for plain, packed in MODULES.items() if isinstance(module, plain))(module, kind)
        if not module.weight.is_meta:
            made.take(KINDS[kind].pack([module.weight.detach()], module.weight.shape, module.weight.device))
        decoder.set_submodule(name, made.train(module.training))
