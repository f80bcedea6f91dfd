"""Matrices of layers become codes of 4 or 8 bits, which never change, and are unpacked where they are multiplied.

nf4      sixteen values at the quantiles of a normal distribution, times the largest of each 64 numbers of a row
         (Dettmers et al., arXiv:2305.14314): 4.5 bits a weight
nf4-dq   the same, with those largest numbers in 8 bits, in blocks of 256 about their mean: 4.13 bits
int8     whole numbers, times a 127th of the largest of each row (arXiv:2208.07339, without its outliers): 8 bits
int8-32  whole numbers, times a 127th of the largest of each 32 numbers of a row (GGUF's Q8_0): 8.5 bits
int4     whole numbers from -8 to 7, times a scale for each 32 numbers of a row, chosen for the least error: 4.5 bits
fp4      as nf4, with the sixteen values that floats of 4 bits have; fp4-dq as nf4-dq
fp8      floats of 8 bits (4 of exponent, 3 of mantissa), times a 448th of the largest of each row: 8 bits

Gradients go to what is multiplied, not to the codes: adapters learn beside them (QLoRA). Embedding, head, norms and
routers stay as they are. Knows no file: `Kind.pack` takes the pieces of a matrix as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lathe.errors import UsageError, did_you_mean
from lathe.model import kernels, layers
from lathe.model.decoder import Decoder
from lathe.model.mlps import Stacked
from lathe.model.native import encoding

Table = tuple[float, ...]
BLOCK, COARSE, GROUP = 64, 256, 32
ENDS = (-8.0, -7.3, -6.6)  # what the largest number of a group may become in 4 bits
CHUNK, LARGE = 1 << 18, 1 << 24  # numbers quantized at once, and where they are not by a CPU, which has caches
# Appendix E of the paper; rounded to the nearest, of two as near to the lower.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# By their codes: a sign, two bits of exponent, one of mantissa, but that the least of all is not zero's half.
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
LARGEST8 = 448.0  # of the floats of 8 bits


@dataclass(frozen=True)
class Kind:
    """One way. code: the type of codes. width, scales: how many codes a row of so many inputs has, and how many numbers
    that they are multiplied by. rows: n D float32 to both; back: both to ... D. double: the scales are packed too."""

    code: torch.dtype
    width: Callable[[int], int]
    scales: Callable[[int], int]
    rows: Callable[[Tensor], tuple[Tensor, Tensor]]
    back: Callable[[Tensor, Tensor, int], Tensor]
    double: bool = False
    scale: torch.dtype = torch.float32

    def blank(self, shape: torch.Size) -> dict[str, Tensor]:
        """Parts without values for a matrix, or a stack of them, of this shape."""
        *lead, inputs = shape
        count = self.scales(inputs)
        found = {"codes": torch.empty(*lead, self.width(inputs), dtype=self.code)}
        if not self.double:
            return found | {"scales": torch.empty(*lead, count, dtype=self.scale)}
        coarse = -(-torch.Size(lead).numel() * count // COARSE)
        return found | {
            "scales": torch.empty(*lead, count, dtype=torch.int8),
            "coarse": torch.empty(coarse),
            "mean": torch.empty(1),
        }

    def pack(self, pieces: Iterable[Tensor], shape: torch.Size, device: torch.device) -> dict[str, Tensor]:
        """Parts of a matrix that comes some rows at a time (of a stack: some matrices), in any floating-point type."""
        with device:
            found = self.blank(shape)
            scales = torch.empty(*shape[:-1], self.scales(shape[-1]), dtype=self.scale)
        codes, start = found["codes"].flatten(0, -2), 0
        step = max((CHUNK if device.type == "cpu" else LARGE) // shape[-1], 1)
        for piece in pieces:
            for rows in piece.flatten(0, -2).split(step):
                end = start + len(rows)
                codes[start:end], scales.flatten(0, -2)[start:end] = self.rows(rows.to(device).float())
                start = end
        return found | (_doubled(scales) if self.double else {"scales": scales})

    def unpack(
        self, parts: Sequence[Tensor], inputs: int, dtype: torch.dtype, which: slice | int = slice(None)
    ) -> Tensor:
        """Rows (of a stack: matrices) of the matrix, computed in float32 and rounded once. parts: the values of what
        `pack` gives; inputs: columns of the matrix."""
        codes, scales, *rest = parts
        return self.back(codes[which], _single(which, scales, *rest) if rest else scales[which], inputs).to(dtype)


def _doubled(scales: Tensor) -> dict[str, Tensor]:
    mean = scales.mean().view(1)
    blocks = F.pad((scales - mean).flatten(), (0, -scales.numel() % COARSE)).view(-1, COARSE)
    coarse = blocks.abs().amax(1)
    codes = (blocks / _nonzero(coarse)[:, None] * 127).round().to(torch.int8)
    return {"scales": codes.flatten()[: scales.numel()].view(scales.shape), "coarse": coarse, "mean": mean}


def _single(which: slice | int, codes: Tensor, coarse: Tensor, mean: Tensor) -> Tensor:
    first = which if isinstance(which, int) else which.indices(len(codes))[0]
    start, some = first * codes[0].numel(), codes[which]
    blocks = torch.arange(start, start + some.numel(), device=codes.device) // COARSE
    return some.float() / 127 * coarse[blocks].view(some.shape) + mean


def _nonzero(largest: Tensor) -> Tensor:
    return torch.where(largest == 0, 1, largest)


def _to_table(values: Table, rows: Tensor) -> tuple[Tensor, Tensor]:
    """n D, float32, to n D/2 codes, two in a byte, the first in its upper half, and n D/64 largest sizes."""
    blocks = F.pad(rows, (0, -rows.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(-1)
    shares = blocks / _nonzero(largest)[..., None]
    ordered = sorted({value: code for code, value in reversed([*enumerate(values)])}.items())  # of two zeros the first
    codes = torch.zeros(shares.shape, dtype=torch.uint8, device=rows.device)
    for (below, _), (above, _) in pairwise(ordered):
        codes += shares > (below + above) / 2  # sooner than a search
    if values is not NF4:  # whose codes are in the order of what they stand for
        codes = torch.tensor([code for _, code in ordered], dtype=torch.uint8, device=rows.device)[codes.int()]
    return halves(codes.flatten(1)), largest


def _from_table(values: Table, codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    pairs = _pairs(values, codes.device).index_select(0, codes.flatten().int()).view(torch.float32)
    return (pairs.view(*scales.shape, BLOCK) * scales[..., None]).flatten(-2)[..., :inputs]


@cache
def _pairs(table: Table, device: torch.device) -> Tensor:
    """The two values that each byte stands for, together as one of 64 bits, which is looked up soonest."""
    with torch.inference_mode(False):
        values = torch.tensor(table, device=device)
        return torch.stack((values.repeat_interleave(16), values.repeat(16)), 1).view(torch.int64).flatten()


def _int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    scales = rows.abs().amax(1, keepdim=True) / 127
    return (rows / _nonzero(scales)).round().to(torch.int8), scales


def _from_int8(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    return codes * scales


def _int8_groups(rows: Tensor) -> tuple[Tensor, Tensor]:
    groups = F.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / 127).to(torch.float16)
    codes = (groups / _nonzero(scales.float())[..., None]).round().clamp(-127, 127)
    return codes.to(torch.int8).flatten(1)[:, : rows.shape[1]], scales


def _from_int8_groups(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    return codes * scales.float().repeat_interleave(GROUP, -1)[..., :inputs]


def _fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    scales = rows.abs().amax(1, keepdim=True) / LARGEST8
    return (rows / _nonzero(scales)).to(torch.float8_e4m3fn), scales


def _from_fp8(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    return codes.float() * scales


def _int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """n D, float32, to n D/2 codes, 8 more than the whole numbers, two in a byte as in nf4, and n D/32 scales."""
    if made := encoding.int4(rows, ENDS):
        return made
    groups = F.pad(rows, (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = int4_scales(groups)
    return halves(int4_codes(groups, scales[..., None]).flatten(1)), scales


def int4_codes(groups: Tensor, scales: Tensor) -> Tensor:
    """The codes nearest to numbers, uint8: whole numbers from -8 to 7, and 8 more."""
    return ((groups / _nonzero(scales.float())).round().clamp(-8, 7) + 8).to(torch.uint8)


def halves(codes: Tensor) -> Tensor:
    """Codes of 4 bits two in a byte, the first in its upper half: ... 2n -> ... n."""
    return codes[..., ::2] << 4 | codes[..., 1::2]


def int4_scales(groups: Tensor, ends: Sequence[float] = ENDS) -> Tensor:
    """The scale of each group of numbers, float16: ... 32 -> ...

    The largest number becomes an end: of the scales that do so, each fitted to its whole numbers (least squares), the
    best is taken.
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    largest = torch.where(-low > high, low, high)
    best = torch.full_like(largest, float("inf"))
    scales = torch.zeros_like(largest)
    for end in ends:
        codes = (groups / _nonzero(largest / end)).round().clamp(-8, 7)
        fitted = (groups * codes).sum(-1, keepdim=True) / _nonzero(codes.square().sum(-1, keepdim=True))
        error = (groups - fitted * codes).square().sum(-1, keepdim=True)
        scales, best = torch.where(error < best, fitted, scales), torch.minimum(best, error)
    return scales[..., 0].to(torch.float16)


def _from_int4(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    whole = torch.stack((codes >> 4, codes & 15), dim=-1).flatten(-2).float() - 8
    return (whole.unflatten(-1, (-1, GROUP)) * scales.float()[..., None]).flatten(-2)[..., :inputs]


def _half(inputs: int) -> int:
    return -(-inputs // BLOCK) * BLOCK // 2


def _groups(inputs: int) -> int:
    return -(-inputs // GROUP)


def _table(values: Table, double: bool = False) -> Kind:
    to, back = partial(_to_table, values), partial(_from_table, values)
    return Kind(torch.uint8, _half, lambda inputs: -(-inputs // BLOCK), to, back, double)


KINDS = {
    "nf4": _table(NF4),
    "nf4-dq": _table(NF4, double=True),
    "fp4": _table(FP4),
    "fp4-dq": _table(FP4, double=True),
    "int8": Kind(torch.int8, lambda inputs: inputs, lambda inputs: 1, _int8, _from_int8),
    "int8-32": Kind(torch.int8, lambda inputs: inputs, _groups, _int8_groups, _from_int8_groups, scale=torch.float16),
    "fp8": Kind(torch.float8_e4m3fn, lambda inputs: inputs, lambda inputs: 1, _fp8, _from_fp8),
    "int4": Kind(
        torch.uint8,
        lambda inputs: _groups(inputs) * GROUP // 2,
        _groups,
        _int4,
        _from_int4,
        scale=torch.float16,
    ),
}
KEPT = (
    "int8",
    "int8-32",
    "int4",
    "nf4",
)  # kinds that stay in codes where a checkpoint has them: they are also multiplied so
LITGPT = {
    **{f"bnb.{name}": name for name in ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8")},
    "bnb.int8-training": "int8",
}


def known(name: str) -> str:
    """One of KINDS by its name, or by LitGPT's.

    Raises:
        UsageError: there is none of that name.
    """
    found = LITGPT.get(name, name)
    if found not in KINDS:
        every = f"Known are {', '.join(KINDS)}."
        raise UsageError(f'"{name}" is no way to quantize that is known.', every, did_you_mean(name, [*KINDS, *LITGPT]))
    return found


ALL = -1


# Operations of their own: a compiler that looked inside would keep what is unpacked for the way back.
@torch.library.custom_op("lathe::packed_product", mutates_args=())
def product(x: Tensor, bias: Tensor | None, parts: list[Tensor], how: str, inputs: int, one: int) -> Tensor:
    """x @ weight.T + bias. The weight is unpacked on the way there, and again on the way back; of a stack it is the
    matrix of number `one`, else ALL."""
    weight = KINDS[how].unpack(parts, inputs, x.dtype, slice(None) if one == ALL else one)
    return F.linear(x, weight, bias)


@product.register_fake
def _(x: Tensor, bias: Tensor | None, parts: list[Tensor], how: str, inputs: int, one: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], parts[0].shape[-2])


@torch.library.custom_op("lathe::packed_product_back", mutates_args=())
def product_back(grad: Tensor, parts: list[Tensor], how: str, inputs: int, one: int) -> Tensor:
    """grad @ weight: the gradient of x."""
    return grad @ KINDS[how].unpack(parts, inputs, grad.dtype, slice(None) if one == ALL else one)


@product_back.register_fake
def _(grad: Tensor, parts: list[Tensor], how: str, inputs: int, one: int) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], inputs)


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

    def __init__(self, base: layers.Linear | Stacked, how: str) -> None:
        nn.Module.__init__(self)
        self.how, self.shape, self.dtype = how, base.weight.shape, base.weight.dtype
        with base.weight.device:
            self.take(KINDS[how].blank(self.shape))
        self.register_parameter("bias", base.bias)

    def take(self, parts: Mapping[str, Tensor]) -> None:
        """Be this matrix."""
        self.parts = tuple(parts)
        for name, part in parts.items():
            self.register_parameter(name, nn.Parameter(part, requires_grad=False))

    def unpacked(self, dtype: torch.dtype, which: slice | int = slice(None)) -> Tensor:
        """Rows of it, of a stack matrices, as numbers."""
        return KINDS[self.how].unpack(self._all(), self.shape[-1], dtype, which)

    def product(self, x: Tensor, bias: Tensor | None, one: int) -> Tensor:
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
        return self.product(x, self.bias, ALL)


class PackedStacked(Packed, Stacked):  # type: ignore[misc]
    """One matrix per expert, of which only those that are visited are unpacked, one at a time."""

    def forward(self, x: Tensor, groups: kernels.Groups) -> Tensor:
        biases = self.bias
        products = [self.product(x[a:b], None if biases is None else biases[e], e) for e, a, b in groups.spans]
        return torch.cat(products) if products else x.new_empty(0, self.shape[1])


def matrices(decoder: Decoder) -> Iterator[tuple[str, layers.Linear | Stacked]]:
    """The modules that are packed: every matrix of a layer but its router's."""
    for name, module in decoder.named_modules():
        if name.startswith("model.layers.") and isinstance(module, layers.Linear | Stacked):
            yield name, module


def pack(decoder: Decoder, how: str | Mapping[str, str]) -> None:
    """Put packed modules into the places of a decoder's matrices: of all, or of those that are told, by their names. A
    decoder on the meta device gets room for codes, and no values; another keeps what it computes as nearly as the codes
    can say it."""
    for name, module in [*matrices(decoder)]:
        kind = how if isinstance(how, str) else how.get(name)
        if kind is None:
            continue
        made = (PackedLinear if isinstance(module, layers.Linear) else PackedStacked)(module, kind)
        if not module.weight.is_meta:
            made.take(KINDS[kind].pack([module.weight.detach()], module.weight.shape, module.weight.device))
        decoder.set_submodule(name, made.train(module.training))
