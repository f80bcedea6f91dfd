"""Two checkpoints become a comparison: the same tensors, scores and greedy tokens? Knows no command line.

Nothing is whole in memory: tensors are compared a piece at a time, and both decoders stay views of their files where
they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lathe.engine import Engine, Sampling
from lathe.errors import MissingError
from lathe.weights.tensors import Ref

if TYPE_CHECKING:
    from lathe.checkpoint import Checkpoint

PROBE = "A lathe turns a piece of wood against a blade. In 1797 Maudslay built one that cut screws: 日本語, naïve."
WRITTEN = 32  # greedy tokens
ROUNDING = 0.15  # of the weights' own size: no type of number that is written rounds more away


@dataclass(frozen=True)
class Comparison:
    """How a second checkpoint differs from a first.

    tensors: how many were compared. changed: those that are not, bit for bit, the first's in the second's type.
    alone: names that only one of the two has. specs: whether both configurations make the same model.
    weights: root of the mean squared difference of all elements, over that of the first's elements.
    scores: the same of the scores that follow each token of a text, less each row's mean.
    agreed, written: how many of the first greedy tokens are the same, of how many.
    """

    tensors: int
    changed: int
    alone: tuple[str, ...]
    specs: bool
    weights: float
    scores: float
    agreed: int
    written: int

    @property
    def same(self) -> bool:
        """The same model, but for what its types of numbers round away."""
        return self.specs and not self.alone and self.weights < ROUNDING

    def told(self) -> list[str]:
        """In words."""
        equal = f"{self.changed} changed" if self.changed else "all equal"
        rounded = f", rounded by {self.weights:.2%} of their size" if self.weights else ""
        lines = [f"tensors  {self.tensors} compared, {equal}{rounded}"]
        if self.alone:
            lines.append(f"         only one of the two has {', '.join(self.alone[:3])}")
        if not self.specs:
            lines.append("         the configurations describe different models")
        lines.append(f"scores   differ by {self.scores:.2%} of their spread")
        lines.append(f"greedy   the first {self.agreed} of {self.written} tokens are the same")
        return [*lines, "verdict  " + ("the same model" if self.same else "NOT the same model")]


def compare(first: Checkpoint, second: Checkpoint) -> Comparison:
    """The second checkpoint against the first, both computing in the first's type of number, on the CPU."""
    names = first.tensors.keys() & second.tensors.keys()
    changed, difference, size = 0, 0.0, 0.0
    for name in sorted(names):
        d, s, same = _tensor(first.tensors[name], second.tensors[name])
        changed, difference, size = changed + (not same), difference + d, size + s
    tokens = _probe(first)
    (scores, said), (again, said_again) = (_run(found, tokens, first.dtype) for found in (first, second))
    agreed = next((n for n, (a, b) in enumerate(zip(said, said_again, strict=False)) if a != b), len(said))
    return Comparison(
        tensors=len(names),
        changed=changed,
        alone=tuple(sorted(first.tensors.keys() ^ second.tensors.keys())),
        specs=first.spec == second.spec,
        weights=(difference / size) ** 0.5 if size else 0.0,
        scores=float((again - scores).square().mean().sqrt() / scores.square().mean().sqrt()),
        agreed=agreed,
        written=len(said),
    )


def _tensor(first: Ref, second: Ref) -> tuple[float, float, bool]:
    """Sums of squares of the difference and of the first, and whether the second is the first in its own type."""
    if first.shape != second.shape:
        return float("inf"), 1.0, False
    difference, size, same = 0.0, 0.0, True
    for a, b in zip(first.pieces(), second.pieces(), strict=True):
        same = same and torch.equal(a.to(b.dtype), b)
        a, b = a.double(), b.double()
        difference, size = difference + float((a - b).square().sum()), size + float(a.square().sum())
    return difference, size, same


def _probe(found: Checkpoint) -> list[int]:
    """Tokens to ask about, at most half the context: those of a text, or, without a tokenizer, some."""
    try:
        ids = found.tokenizer().encode(PROBE)
    except MissingError:
        ids = list(range(0, found.spec.vocab, found.spec.vocab // 50 + 1))
    return [id for id in ids if id < found.spec.vocab][: max(found.spec.context // 2, 1)] or [0]


def _run(found: Checkpoint, tokens: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, list[int]]:
    engine = Engine(found.load(dtype=dtype))
    scores = engine.logits(tokens)
    sequence = engine.submit(tokens, Sampling(temperature=0, max_new_tokens=WRITTEN))
    return scores - scores.mean(-1, keepdim=True), [token.id for token in engine.stream(sequence)]
