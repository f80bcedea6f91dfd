"""A checkpoint's matrices become codes, a layer in memory at a time: each rounded to the nearest by itself, or in 4
bits calibrated on a text. What comes is in memory's names, and is written by `save`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lathe.checkpoint.filling import Checkpoint, fit
from lathe.model import layers
from lathe.model.blank import blank, slots
from lathe.model.decoder import Block, Decoder
from lathe.model.layout import Layout
from lathe.transforms import awq, gptq
from lathe.transforms.grids import BLOCK, GROUP
from lathe.transforms.kinds import FOURS, KINDS
from lathe.transforms.quantize import matrices
from lathe.weights.coded import Coded
from lathe.weights.tensors import Box, Ref

CPU = torch.device("cpu")
TOKENS = 2048  # of calibration in one pass


def nearest(found: Checkpoint, how: str) -> Iterator[tuple[str, Coded]]:
    """The codes of every matrix that is wide enough for them, by names. how: int8, int4, int4-zp, nf4 or fp8.

    Raises CheckpointError as `Checkpoint.load`.
    """
    decoder = blank(found.spec)
    fit(decoder, found.tensors, found.path)
    for module, _ in matrices(decoder):
        ref = found.tensors[f"{module}.weight"]
        if coded := rounded(ref, how):
            yield f"{module}.weight", coded


def rounded(ref: Ref, how: str) -> Coded | None:
    """A matrix, or a stack of them, in the nearest codes. 4 bits go by groups of a row: rows that are no whole groups
    are kept in 8 bits (int4, int4-zp), or not coded (nf4)."""
    inputs = ref.shape[-1]
    if how == "nf4" and inputs % BLOCK:
        return None
    kind = _kind(how, inputs)
    if isinstance(ref, Coded) and ref.kind == kind and ref.sure():
        return ref
    return _coded(ref, kind, KINDS[kind].pack(ref.pieces(), torch.Size(ref.shape), CPU))


def _kind(how: str, inputs: int) -> str:
    """How a matrix with so many columns is coded, where 4 bits are wished."""
    return "int8" if how in FOURS and inputs % GROUP else how


def _coded(ref: Ref, kind: str, parts: Mapping[str, Tensor]) -> Coded:
    def fetch(box: Box) -> Tensor:
        rows = KINDS[kind].unpack([*parts.values()], ref.shape[-1], ref.dtype, box[0])
        return rows[(slice(None), *box[1:])]

    kept = {name: Ref.of(part, ref.source) for name, part in parts.items()}
    return Coded(ref.shape, ref.dtype, fetch, ref.source, kind=kind, parts=kept)


@torch.inference_mode()
def calibrated(found: Checkpoint, rows: Sequence[Sequence[int]], how: str = "int4") -> Iterator[tuple[str, Ref]]:
    """The codes of every matrix, chosen for what the layers below it, in their codes already, make of rows of tokens:
    int4 by GPTQ; int4-zp of matrices that are scaled by AWQ, and norms that make up for it. Experts, of which each sees
    little, and what is not given a row are rounded to the nearest.

    Everything is computed in float32. Raises CheckpointError as `Checkpoint.load`.
    """
    decoder = blank(found.spec)
    fit(decoder, found.tensors, found.path)
    streams = [*_embedded(found, decoder, rows)]
    for number, layer in enumerate(decoder.model.layers):
        prefix = f"model.layers.{number}."
        state = {name: found.tensors[prefix + name].to(torch.float32).read() for name, _ in slots(layer)}
        layer.load_state_dict(state, assign=True)
        modules = {name.removeprefix(prefix): one for name, one in matrices(decoder) if name.startswith(prefix)}
        with Moments(modules) as moments:
            for x, layout in streams:
                layer(x, layout, None)
        if how == "int4-zp":
            assert isinstance(layer, Block)
            for name in awq.scale(layer, moments.of, _again, found.dtype):
                yield prefix + name, Ref.of(layer.get_parameter(name).to(found.dtype))
        for name, module in modules.items():
            ref = found.tensors[f"{prefix}{name}.weight"]
            given = moments.of.pop(name, None)
            coded: Coded | None
            if how == "int4-zp":
                kind = _kind(how, ref.shape[-1])
                coded = _coded(ref, kind, KINDS[kind].pack([module.weight], module.weight.shape, CPU))
            elif given is None or ref.shape[-1] % GROUP:
                coded = rounded(ref, "int4")
            else:
                coded = _coded(ref, "int4", gptq.quantize(module.weight, given))
            assert coded is not None
            yield f"{prefix}{name}.weight", coded
            module.weight = nn.Parameter(coded.to(torch.float32).read(), requires_grad=False)
        streams = [(layer(x, layout, None), layout) for x, layout in streams]
        layer.to("meta")


def _again(weight: Tensor) -> Tensor:
    """What the codes of a matrix stand for that is scaled."""
    kind, inputs = KINDS[_kind("int4-zp", weight.shape[1])], weight.shape[1]
    return kind.unpack([*kind.pack([weight], weight.shape, CPU).values()], inputs, torch.float32)


def _embedded(found: Checkpoint, decoder: Decoder, rows: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Layout]]:
    """What the first layer is given, some rows together."""
    for name in ("embed_tokens", "embed_positions"):
        if (table := getattr(decoder.model, name, None)) is not None:
            table.weight = nn.Parameter(found.tensors[f"model.{name}.weight"].read(), requires_grad=False)
    some = max(TOKENS // max(map(len, rows)), 1)
    for start in range(0, len(rows), some):
        few = rows[start : start + some]
        layout = Layout.of([len(row) for row in few])
        yield decoder.embed(torch.tensor([id for row in few for id in row]), layout).float(), layout


class Moments:
    """While it is entered: the sums of x.T @ x of what linear maps are given. of: by their names."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.of: dict[str, Tensor] = {}
        self.last: tuple[Tensor, Tensor] | None = None
        self.modules = {name: one for name, one in modules.items() if isinstance(one, layers.Linear)}

    def __enter__(self) -> Moments:
        self.hooks = [one.register_forward_pre_hook(self._adding(name)) for name, one in self.modules.items()]
        return self

    def __exit__(self, *_: object) -> None:
        self.last = None
        for hook in self.hooks:
            hook.remove()

    def _adding(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if self.last is None or self.last[0] is not given[0]:  # several maps are given the same
                x = given[0].flatten(0, -2)
                self.last = given[0], x.T @ x
            self.of[name] = self.of[name] + self.last[1] if name in self.of else self.last[1]

        return add
