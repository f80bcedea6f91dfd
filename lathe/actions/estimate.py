"""Turns a model's configuration and a data set's size into the memory and the time that training would take.

Memory is reckoned as in lathe/actions/memory.py. Time is that of the products alone, at `SHARE` of the rate at which
this machine multiplies two matrices, which is measured. It tells hours from days, not one hour from two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.actions import memory

if TYPE_CHECKING:
    from lathe.data.check import Report
    from lathe.model.decoder import Decoder

SHARE = 0.4  # of the rate of products alone that training has reached


@dataclass(frozen=True)
class Model:
    """decoder: the model's, without its weights."""

    decoder: Decoder

    @staticmethod
    def at(place: Path) -> Model | None:
        """The model in a folder or file; None where there is only a tokenizer."""
        from lathe import checkpoint, families

        if place.is_file():
            config: Mapping[str, Any] = checkpoint.open(place).config
        elif (place / "config.json").is_file():
            config = checkpoint.read_json(place / "config.json")
        else:
            return None
        return Model(checkpoint.blank(families.read(config)))

    @property
    def context(self) -> int:
        return self.decoder.spec.context

    def bytes(self, length: int, batch: int) -> dict[str, int]:
        """Memory of each way to train on `batch` rows of `length` tokens at once."""
        ways = memory.training(self.decoder.spec, memory.Sizes.of(self.decoder), length, batch)
        return {name: round(way.total) for name, way in ways.items()}

    def seconds(self, report: Report) -> dict[str, float]:
        """Time that one epoch takes on this machine, about, by way of training."""
        import torch

        from lathe.training import gauge

        if not report.groups:
            return {}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rate = SHARE * gauge.peak(device, torch.bfloat16)
        mean = report.tokens // len(report.lengths)
        found = {}
        for name, learns in (("lora", False), ("full", True)):
            self.decoder.requires_grad_(learns)
            found[name] = round(gauge.flops(self.decoder, mean) * report.tokens / rate, 1)
        return found
