"""What can be told of a training besides its numbers: its recipe, its model, its machine; and whom to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lathe.model.decoder import Decoder
from lathe.training.gauge import Gauge
from lathe.training.loggers import Logger
from lathe.training.precision import Precision


@dataclass(frozen=True)
class About:
    """What a run's page tells of it. recipe: the options, as YAML. facts: of model and machine, in words. gauge: what
    its speed is measured by. loggers: who else is told."""

    title: str
    recipe: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    gauge: Gauge | None = None
    loggers: Sequence[Logger] = ()

    @staticmethod
    def of(
        title: str,
        recipe: str,
        decoder: Decoder,
        chosen: Precision,
        loggers: Sequence[Logger] = (),
        ranks: int = 1,
    ) -> About:
        """What can be told of any training, with the machine's peak measured."""
        gauge, spec = Gauge.of(decoder, chosen, ranks), decoder.spec
        sizes = [(p.numel(), p.requires_grad) for p in decoder.parameters()]
        names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
        products = chosen.autocast or chosen.weights
        facts = {
            "parameters": f"{sum(n for n, _ in sizes):,}",
            "learned": f"{sum(n for n, learns in sizes if learns):,}",
            "layers": str(len(spec.layers)),
            "width": f"{spec.width:,}",
            "vocabulary": f"{spec.vocab:,}",
            "weights": names.get(chosen.weights, str(chosen.weights)),
            "device": torch.cuda.get_device_name(chosen.device) if chosen.device.type == "cuda" else chosen.device.type,
            "processes": str(ranks),
            "measured peak": f"{short(gauge.peak)}FLOP/s in {names.get(products, str(products))}",
            "work per token": f"{short(gauge.flops)}FLOP",
            "PyTorch": torch.__version__,
        }
        return About(title, recipe, facts, gauge, loggers)


def short(number: float) -> str:
    """A number with the prefix that suits it: "1.5 T"."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} P"
