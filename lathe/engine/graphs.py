"""Steps in which every sequence has one new token become CUDA graphs: recorded once, then replayed by one launch.

A replay repeats the same operations on the same addresses, so that neither a shape nor what is done may depend on a
number. A `Step` is computed of one table of whole numbers, which has a row for each sequence: its token, that token's
position, its pages. It has room for a power of two of rows and of pages. Rows to spare repeat the last sequence, and
write what it writes; of pages to spare nothing is seen. All this is plain PyTorch and the same on every device: only
`Recorder` wants CUDA.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lathe.engine.pages import Pages
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout, Table
from lathe.model.rope import by_extent, frequencies, turned

if TYPE_CHECKING:
    from lathe.engine.runner import Piece
    from lathe.engine.scheduler import Part

LEAST = 256  # slots of a row
MOST = 1 << 16  # slots of a step; with more of them it waits for memory rather than for launches

Replay = Callable[[], Tensor]
Record = Callable[["Step"], Replay]


def able(decoder: Decoder, pages: Pages) -> bool:
    """Whether it is worth trying: all is on one GPU, and nothing is done between a decoder's modules (other ranks add
    to it there, and the stream moves to other GPUs)."""
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in decoder.modules())
    return pages.device.type == "cuda" and set(pages.places) == {pages.device} and not hooked


class Step:
    """The next token of at most `rows` sequences, of at most `columns` pages each, is read.

    layers: those of the pool that are the decoder's. Its addresses stay as long as the pool's.
    """

    def __init__(self, decoder: Decoder, pages: Pages, layers: slice, rows: int, columns: int) -> None:
        self.decoder, self.cache, self.size, self.device = decoder, pages.cache[layers], pages.size, pages.device
        self.told = np.zeros((rows, 2 + columns), np.int32)
        self.table = torch.zeros(rows, 2 + columns, dtype=torch.int32, device=self.device)
        self.held: list[list[int]] = [[]] * rows  # the pages that each row tells
        self.extents: list[int] = []
        ropes = {rope for layer in decoder.spec.layers if (rope := layer.mixer.rope) and by_extent(rope)}
        self.speeds = {rope: torch.zeros(rows, rope.channels // 2, device=self.device) for rope in ropes}

    def tell(self, parts: Sequence[Part | Piece]) -> None:
        """Take the tokens that `compute` will read."""
        parts = [*parts, *[parts[-1]] * (len(self.told) - len(parts))]
        self.told[:, 0] = [part.tokens[0] for part in parts]
        self.told[:, 1] = [part.start for part in parts]
        for row, (part, held) in enumerate(zip(parts, self.held, strict=True)):
            pages = part.sequence.lease.pages
            if pages is not held:  # a lease never changes its list, but takes another
                some = pages[: self.told.shape[1] - 2]
                self.told[row, 2 : 2 + len(some)], self.held[row] = some, pages
        self.table.copy_(torch.from_numpy(self.told))
        if self.speeds and self.extents != (extents := [part.sequence.extent for part in parts]):
            self.extents = extents
            for rope, speed in self.speeds.items():
                speed.copy_(torch.stack([frequencies(rope, extent, self.device) for extent in extents]))

    def compute(self) -> Tensor:
        """Hidden states of all rows, whose keys and values are in the pool then. S D"""
        told = self.table.long()
        token, position, pages = told[:, 0], told[:, 1], told[:, 2:]
        slots = (pages[..., None] * self.size + torch.arange(self.size, device=self.device)).flatten(1)  # S M
        write = slots.gather(1, position[:, None])  # S 1
        # Behind a sequence's end stands its new token: whatever lies in blank slots, no zero is multiplied by it.
        past = torch.arange(slots.shape[1], device=self.device) <= position[:, None]
        table = Table(torch.where(past, slots, write), position + 1)
        rows = len(told)
        layout = Layout(position, tuple(range(rows + 1)), (0,) * rows, write[:, 0], table=table)
        for rope, speed in self.speeds.items():
            layout.made[rope] = turned(rope, position, speed)
        return self.decoder(token, layout, self.cache)


class Graphs:
    """The steps of a decoder that were recorded so far, each when it was first needed.

    recorder: what records on a device, for as long as decoder and pool are the same. refused: why nothing is recorded
    any more; None while it is.
    """

    def __init__(
        self,
        decoder: Decoder,
        pages: Pages,
        layers: slice,
        recorder: Callable[[torch.device], Record] | None = None,
    ) -> None:
        self.decoder, self.pages, self.layers, self.recorder = decoder, pages, layers, recorder or Recorder
        self.refused: str | None = None
        self.forget()

    def forget(self) -> None:
        """Record anew whatever is needed, since the decoder or the pool is another."""
        self.steps: dict[tuple[int, int], tuple[Step, Replay]] = {}
        self.record: Record | None = None
        self.first = self.pages.cache[self.layers.start][0]

    def run(self, parts: Sequence[Part | Piece]) -> Tensor | None:
        """As `Runner.run`, of what goes through no adapter of its own; None where that is nothing for a graph."""
        if self.refused or any(len(part.tokens) != 1 for part in parts):
            return None
        size = self.pages.size
        rows = _power(len(parts))
        columns = _power(max(max(part.start for part in parts) // size + 1, LEAST // size))
        if rows * columns * size > MOST:
            return None
        if self.pages.cache[self.layers.start][0] is not self.first:  # the pool has grown
            self.forget()
        made = self.steps.get((rows, columns))
        step = made[0] if made else Step(self.decoder, self.pages, self.layers, rows, columns)
        step.tell(parts)
        if made is None:
            try:
                self.record = self.record or self.recorder(self.pages.device)
                made = self.steps[rows, columns] = step, self.record(step)
            except (Varying, RuntimeError) as error:
                self.forget()
                self.refused = str(error)
                warnings.warn(f"Steps are not recorded as CUDA graphs: {error}", stacklevel=2)
                return None
        return made[1]()[: len(parts)].clone()  # the next replay writes to the same place


class Recorder:
    """Records steps on a GPU, whose graphs share the memory for what they compute."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Replay:
        here = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream), Watch():  # once as it is, so that libraries are ready
                step.compute()
            here.wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            told: dict[str, Any] = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, **told):
                hidden = step.compute()

        def replay() -> Tensor:
            graph.replay()
            return hidden

        return replay


class Varying(Exception):
    """What is done, or a shape, depends on a number."""


class Watch(TorchDispatchMode):
    """Raises Varying at an operation that a graph cannot repeat: one whose course or shape depends on numbers, or that
    brings some from one device to another. Among those are a mixture's products where the host deals out the tokens."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _varies(func, args):
            raise Varying(f"{func} depends on numbers.")
        made = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, Tensor) and x.ndim]
        if len({x.device for x in tensors}) > 1:
            raise Varying(f"{func} waits for another device.")
        return made


def _varies(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether what an operation gives, or its shape, depends on numbers where the host has to know them."""
    if func is torch.ops.aten.index.Tensor:  # which also takes masks
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def _power(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << (count - 1).bit_length()
