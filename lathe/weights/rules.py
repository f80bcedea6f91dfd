"""Names on disk become names in memory, and back: each law is stated once and run both ways; knows no model, no torch.

A pattern is a name with numbered holes: `model.layers.{i}.mlp.up_proj.weight`; `*` stands for any rest. A rule whose
tensors are absent, or of a shape it cannot work on, does nothing: whether all the model wants is there is for
`checkpoint` to judge, once, at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lathe.weights.tensors import Ref

Refs = dict[str, "Ref"]


class Rule:
    """One law between tensors on disk and tensors in memory; both directions change the mapping they are given."""

    def into(self, tensors: Refs) -> None:
        """Replace what the disk says by what memory says."""
        raise NotImplementedError

    def back(self, tensors: Refs) -> None:
        """Replace what memory says by what the disk says."""
        raise NotImplementedError


def into(rules: Sequence[Rule], tensors: Refs) -> Refs:
    """All rules, disk to memory, on a copy of `tensors`."""
    out = dict(tensors)
    for rule in rules:
        rule.into(out)
    return out


def back(rules: Sequence[Rule], tensors: Refs) -> Refs:
    """All rules, memory to disk, on a copy of `tensors`."""
    out = dict(tensors)
    for rule in reversed(rules):
        rule.back(out)
    return out


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    exact = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(pattern))
    return re.compile(exact.replace(r"\*", ".*") + r"\Z")


def matches(pattern: str, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The names that fit `pattern`, each with the numbers in its holes."""
    for name in list(names):
        if found := _regex(pattern).match(name):
            yield name, found.groupdict()


def _alike(tensors: Refs, names: Sequence[str], but: int | None = None) -> bool:
    """Whether all these tensors are there, and of one shape but for one dimension, so that they can be joined."""
    if not all(name in tensors for name in names):
        return False
    shapes = [tensors[name].shape for name in names]
    if but is None:
        return len(set(shapes)) == 1
    return len({(shape[:but], shape[but + 1 :]) for shape in shapes}) == 1 and min(map(len, shapes)) > but


@dataclass(frozen=True)
class Rename(Rule):
    """One tensor under another name."""

    disk: str
    memory: str

    def into(self, tensors: Refs) -> None:
        for name, holes in matches(self.disk, tensors):
            tensors[self.memory.format(**holes)] = tensors.pop(name)

    def back(self, tensors: Refs) -> None:
        Rename(self.memory, self.disk).into(tensors)


@dataclass(frozen=True)
class Prefix(Rule):
    """A prefix that all the names beginning with it exchange for another (`model.language_model.` for `model.`)."""

    disk: str
    memory: str

    def into(self, tensors: Refs) -> None:
        for name in [n for n in tensors if n.startswith(self.disk)]:
            tensors[self.memory + name.removeprefix(self.disk)] = tensors.pop(name)

    def back(self, tensors: Refs) -> None:
        Prefix(self.memory, self.disk).into(tensors)


@dataclass(frozen=True)
class Split(Rule):
    """One tensor on disk is several in memory, which lie in it one below the other: `rows[n]` rows for `memory[n]`.

    dim: which dimension counts the rows; 1 in a stack of matrices.
    """

    disk: str
    memory: tuple[str, ...]
    rows: tuple[int, ...]
    dim: int = 0

    def into(self, tensors: Refs) -> None:
        for name, holes in matches(self.disk, tensors):
            whole, low = tensors[name], 0
            if whole.shape[self.dim : self.dim + 1] != (sum(self.rows),):
                continue  # the wrong shape is reported, with its name, by whoever misses the parts
            del tensors[name]
            for part, rows in zip(self.memory, self.rows, strict=True):
                tensors[part.format(**holes)] = whole[(*[slice(None)] * self.dim, slice(low, low + rows))]
                low += rows

    def back(self, tensors: Refs) -> None:
        for _, holes in matches(self.memory[0], tensors):
            names = [part.format(**holes) for part in self.memory]
            if _alike(tensors, names, self.dim):
                first, *rest = (tensors.pop(name) for name in names)
                tensors[self.disk.format(**holes)] = first.cat(*rest, dim=self.dim)


@dataclass(frozen=True)
class Stack(Rule):
    """`count` tensors on disk, numbered by the hole {e}, are one in memory along a new first dimension."""

    disk: str
    memory: str
    count: int

    def into(self, tensors: Refs) -> None:
        for _, holes in matches(self.disk.replace("{e}", "0"), tensors):
            names = [self.disk.format(**holes, e=e) for e in range(self.count)]
            if _alike(tensors, names):
                first, *rest = (tensors.pop(name) for name in names)
                tensors[self.memory.format(**holes)] = first.stack(*rest)

    def back(self, tensors: Refs) -> None:
        for name, holes in matches(self.memory, tensors):
            if tensors[name].shape[:1] == (self.count,):
                for e, part in enumerate(tensors.pop(name).unstack()):
                    tensors[self.disk.format(**holes, e=e)] = part


@dataclass(frozen=True)
class Inverse(Rule):
    """A rule the other way round, its `disk` names standing for memory: `Inverse(Stack(...))` takes a stack apart."""

    rule: Rule

    def into(self, tensors: Refs) -> None:
        self.rule.back(tensors)

    def back(self, tensors: Refs) -> None:
        self.rule.into(tensors)


@dataclass(frozen=True)
class Transpose(Rule):
    """A matrix, or a stack of them, stored with rows and columns exchanged, under the same name (GPT-2's Conv1D)."""

    name: str

    def into(self, tensors: Refs) -> None:
        for name, _ in matches(self.name, tensors):
            if len(tensors[name].shape) >= 2:
                tensors[name] = tensors[name].transposed()

    back = into


@dataclass(frozen=True)
class Reorder(Rule):
    """Rows stored in another order: seen as a block of shape `view`, its axes are permuted to `axes`.

    GPT-NeoX keeps q, k, v of one head together: rows (H, 3, C) with axes (1, 0, 2) are all q, then all k, then all v.
    dim: which dimension counts the rows; 1 in a stack of matrices.
    """

    name: str
    view: tuple[int, ...]
    axes: tuple[int, ...]
    dim: int = 0

    def into(self, tensors: Refs) -> None:
        self._apply(tensors, self.view, self.axes)

    def back(self, tensors: Refs) -> None:
        inverse = tuple(self.axes.index(n) for n in range(len(self.axes)))
        self._apply(tensors, tuple(self.view[n] for n in self.axes), inverse)

    def _apply(self, tensors: Refs, view: tuple[int, ...], axes: tuple[int, ...]) -> None:
        rows = 1
        for n in view:
            rows *= n
        for name, _ in matches(self.name, tensors):
            if tensors[name].shape[self.dim : self.dim + 1] == (rows,):
                tensors[name] = tensors[name].reordered(view, axes, self.dim)


@dataclass(frozen=True)
class Shift(Rule):
    """A tensor stored with `amount` added to every element (GGUF keeps Gemma's norm weights plus one)."""

    name: str
    amount: float

    def into(self, tensors: Refs) -> None:
        for name, _ in matches(self.name, tensors):
            tensors[name] = tensors[name].plus(-self.amount)

    def back(self, tensors: Refs) -> None:
        for name, _ in matches(self.name, tensors):
            tensors[name] = tensors[name].plus(self.amount)


class OneWay(Rule):
    """A law of reading alone: nothing of it is written back."""

    def back(self, tensors: Refs) -> None:
        return None


@dataclass(frozen=True)
class Microscaled(OneWay):
    """Blocks of 4-bit floats and their scales (MXFP4), dequantized as they are read; never written back."""

    blocks: str
    scales: str
    memory: str

    def into(self, tensors: Refs) -> None:
        for name, holes in matches(self.blocks, tensors):
            blocks, scales = tensors[name], tensors.get(self.scales.format(**holes))
            if scales is None or {str(blocks.dtype), str(scales.dtype)} != {"torch.uint8"}:
                continue
            if blocks.shape == (*scales.shape, 16):
                del tensors[name], tensors[self.scales.format(**holes)]
                tensors[self.memory.format(**holes)] = blocks.microscaled(scales)


@dataclass(frozen=True)
class Top(OneWay):
    """The first `rows` rows are what the model wants; there may be more on disk (placeholders), which are not kept."""

    name: str
    rows: int

    def into(self, tensors: Refs) -> None:
        for name, _ in matches(self.name, tensors):
            tensors[name] = tensors[name][: self.rows]


@dataclass(frozen=True)
class Drop(OneWay):
    """A tensor that follows from the configuration (rotary frequencies, causal masks) and is not written back."""

    disk: str

    def into(self, tensors: Refs) -> None:
        for name, _ in matches(self.disk, tensors):
            del tensors[name]


@dataclass(frozen=True)
class Adopt(OneWay):
    """A prefix that some writers use or leave out: such names are read, but never written."""

    disk: str
    memory: str

    def into(self, tensors: Refs) -> None:
        Prefix(self.disk, self.memory).into(tensors)


@dataclass(frozen=True)
class Old(OneWay):
    """A rule of files that are no longer written so: they are read by it."""

    rule: Rule

    def into(self, tensors: Refs) -> None:
        self.rule.into(tensors)


@dataclass(frozen=True)
class Tie(OneWay):
    """Two names of one tensor: `copy` may be stored or not, and is never a tensor of its own in memory."""

    name: str
    copy: str

    def into(self, tensors: Refs) -> None:
        if (copy := tensors.pop(self.copy, None)) is not None:
            tensors.setdefault(self.name, copy)


@dataclass(frozen=True)
class Twin(Tie):
    """Two names of one tensor, under both of which it is written (by one who has no word for a tied head)."""

    def back(self, tensors: Refs) -> None:
        if self.name in tensors:
            tensors[self.copy] = tensors[self.name]
