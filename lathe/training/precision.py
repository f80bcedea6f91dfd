"""A device and a precision by their names become torch's; says which combination is the default where."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lathe.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """weights: their dtype, and that of gradients and the optimizer's state. autocast: that of products, if another."""

    device: torch.device
    weights: torch.dtype
    autocast: torch.dtype | None


class Scale:
    """What losses are multiplied by before gradients are taken: here nothing."""

    factor = 1.0

    def sound(self, norm: float, step: int) -> bool:
        """Whether a step with gradients of this norm, the factor taken out, is to be made. Raises UsageError where
        gradients are no numbers any more."""
        if not math.isfinite(norm):
            raise UsageError(f"The gradient is {norm} at step {step}.", "", "Lower the learning rate (--optimizer.lr).")
        return True


UNSCALED = Scale()

PRECISIONS = {
    "32-true": (torch.float32, None),
    "bf16-true": (torch.bfloat16, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
}


def choose(device: str, precision: str | None) -> Precision:
    """device: auto (a CUDA GPU if there is one), cpu, cuda, mps. precision: see PRECISIONS; None is bf16-mixed on CUDA
    and 32-true elsewhere. Raises UsageError for a device that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = device if device != "auto" else "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise UsageError(f"--device is {name}, and PyTorch finds no such device here.", fix="Choose auto or cpu.")
    return Precision(torch.device(name), *PRECISIONS[precision or ("bf16-mixed" if name == "cuda" else "32-true")])
