"""The parts that a quantized matrix has on disk become one Ref of its numbers, and codes become parts; a rule for both.

Knows no one's format: each says which parts there are, how they are read, and how they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from lathe.errors import CheckpointError
from lathe.transforms.grids import GROUP, halves
from lathe.weights.coded import Coded, made
from lathe.weights.rules import Refs, Rule, matches
from lathe.weights.tensors import Box, Ref

Parts = dict[str, Ref]
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
FLOATS8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


@dataclass(frozen=True)
class Matrices(Rule):
    """Every matrix with these parts. mark: the part that all of them have, and nothing else has; others: what there may
    be beside it. read: from a module's name and its parts. write: from codes, for kinds that the format has.
    """

    mark: str
    others: tuple[str, ...]
    read: Callable[[str, Parts], Ref]
    write: Mapping[str, Callable[[Coded], Parts]]

    def into(self, tensors: Refs) -> None:
        for name, _ in matches(f"*.{self.mark}", tensors):
            module = name.removesuffix(f".{self.mark}")
            names = {part: f"{module}.{part}" for part in (self.mark, *self.others)}
            parts = {part: tensors.pop(name) for part, name in names.items() if name in tensors}
            ref = self.read(module, parts)
            known = isinstance(ref, Coded)
            tensors[f"{module}.weight"] = ref if known else Coded(ref.shape, ref.dtype, ref.fetch, ref.source)

    def back(self, tensors: Refs) -> None:
        for name, ref in [*tensors.items()]:
            if isinstance(ref, Coded) and ref.kind in self.write:
                del tensors[name]
                parts = self.write[ref.kind](ref)
                tensors |= {f"{name.removesuffix('.weight')}.{part}": found for part, found in parts.items()}


def needed(module: str, parts: Parts, *names: str) -> list[Ref]:
    """Parts that a matrix must have. Raises CheckpointError."""
    missing = [name for name in names if name not in parts]
    if missing:
        there = ", ".join(f"{module}.{name}" for name in parts)
        raise CheckpointError(
            f"{module}.{missing[0]} is missing: of a quantized matrix there is only {there}.",
            fix="Download or copy the checkpoint again.",
        )
    return [parts[name] for name in names]


def typed(ref: Ref, *dtypes: torch.dtype) -> Ref:
    """A part of one of these types. Raises CheckpointError for one of another."""
    if ref.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise CheckpointError(
            f"{ref.source} holds {str(ref.dtype).removeprefix('torch.')}.",
            f"As a part of a quantized matrix it should hold {names}.",
        )
    return ref


def shaped(ref: Ref, *shape: int) -> Ref:
    """A part of this shape. Raises CheckpointError for one of another."""
    if ref.shape != shape:
        raise CheckpointError(
            f"{ref.source} has shape {list(ref.shape)}.",
            f"As a part of a quantized matrix it should have {list(shape)}.",
            "Check that quantization_config and weights are of one model.",
        )
    return ref


def fours(codes: Ref, scales: Ref, group: int, zeros: Ref | None = None) -> dict[str, Ref]:
    """Codes of 4 bits in the layout of int4, or with zero points of int4-zp. codes: N K; scales, zeros: N K/group."""
    rows, inputs = codes.shape
    packed = made(codes, (rows, inputs // 2), torch.uint8, halves)
    return {"codes": packed, **factors(scales, inputs, group, zeros)}


def eights(codes: Ref, scales: Ref, group: int) -> dict[str, Ref]:
    """Codes of 8 bits, 128 more than whole numbers, in the layout of int8-32. codes: N K; scales: N K/group."""
    whole = made(codes, codes.shape, torch.int8, lambda some: (some ^ 0x80).view(torch.int8))
    return {"codes": whole, **factors(scales, codes.shape[1], group, None)}


def factors(scales: Ref, inputs: int, group: int, zeros: Ref | None) -> dict[str, Ref]:
    """What int4 has beside its codes; with zero points, int4-zp."""
    found = {"scales": repeated(scales, inputs, group)}
    return found if zeros is None else found | {"zeros": repeated(zeros, inputs, group, torch.uint8)}


def repeated(values: Ref, inputs: int, group: int, dtype: torch.dtype = torch.float16) -> Ref:
    """Scales, or zero points, of groups as those of the smaller groups that int4 has, in its type."""
    small = inputs // GROUP

    def turn(rows: torch.Tensor) -> torch.Tensor:
        return rows[:, torch.arange(small) * GROUP // group].to(dtype)

    return made(values, (values.shape[0], small), dtype, turn)


def exact(scales: Ref) -> bool:
    """Whether float16, in which int4 has its scales, holds these."""
    values = scales.read().float()
    return bool((values.half().float() == values).all())


def whole(zeros: Ref) -> bool:
    """Whether int4-zp, which has its zero points in 8 bits, holds these."""
    values = zeros.read().float()
    return bool(((values == values.round()) & (values >= 0) & (values <= 255)).all())


def in_order(groups: Ref | None, group: int) -> bool:
    """Whether columns belong to groups in their order."""
    return groups is None or torch.equal(groups.read().long(), torch.arange(groups.shape[0]) // group)


def bounded(groups: Ref, count: int) -> Ref:
    """Which group each column belongs to; reading raises CheckpointError where there is none of that number."""

    def fetch(box: Box) -> torch.Tensor:
        some = groups.fetch(box)
        if some.numel() and not 0 <= int(some.min()) <= int(some.max()) < count:
            raise CheckpointError(f"{groups.source} names groups from {some.min()} to {some.max()}, of {count}.")
        return some

    return Ref(groups.shape, groups.dtype, fetch, groups.source)


def swapped(words: torch.Tensor) -> torch.Tensor:
    """Words of eight codes as bytes of two, the first of which is in the lower half there and in the upper here, or the
    other way round."""
    pairs = words.contiguous().view(torch.uint8)
    return pairs >> 4 | pairs << 4
