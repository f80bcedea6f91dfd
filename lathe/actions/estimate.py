"""Turns a model's configuration and a data set's size into the memory and the time that training would take.

Memory is reckoned as in lathe/actions/memory.py. Time is that of the products alone: 4 operations per token and
parameter of an adapter's base, 6 of a model that changes whole, at `SHARE` of the rate at which this machine multiplies
two matrices, which is measured. It says hours from days, not one hour from two.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.actions import memory

if TYPE_CHECKING:
    from lathe.data.check import Report
    from lathe.model.spec import Spec

OPERATIONS = {"lora": 4, "full, bf16-true": 6}  # per token and parameter
SHARE = 0.4  # of the rate of products alone that training has reached
EDGE = 2048  # of the matrices that are multiplied to measure it


@dataclass(frozen=True)
class Model:
    """spec: the model's. active: parameters that a token visits."""

    spec: Spec
    sizes: memory.Sizes
    active: int

    @staticmethod
    def at(place: Path) -> Model | None:
        """The model in a folder or file; None where there is only a tokenizer."""
        from lathe import checkpoint, families
        from lathe.actions.inspect import idle

        if place.is_file():
            config: Mapping[str, Any] = checkpoint.open(place).config
        elif (place / "config.json").is_file():
            config = checkpoint.read_json(place / "config.json")
        else:
            return None
        spec = families.read(config)
        sizes = memory.Sizes.of(checkpoint.blank(spec))
        return Model(spec, sizes, sizes.matrices + spec.vocab * spec.width - idle(spec))

    def bytes(self, length: int, batch: int) -> dict[str, int]:
        """Memory of each way to train on `batch` rows of `length` tokens at once."""
        ways = memory.training(self.spec, self.sizes, length, batch)
        return {name: round(way.total) for name, way in ways.items()}

    def seconds(self, report: Report) -> dict[str, float]:
        """Time that one epoch takes here, about."""
        rate = SHARE * products()
        return {name: count * self.active * report.tokens / rate for name, count in OPERATIONS.items()}


def products() -> float:
    """Operations per second of products of bfloat16 matrices, on this machine's GPU or else its CPU. Takes a moment."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    one = torch.ones(EDGE, EDGE, dtype=torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (one @ one)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * EDGE**3 / best
