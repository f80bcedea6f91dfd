"""A device and a precision by their names become torch's; says which combination is the default where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from lathe.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """weights: their dtype, and that of gradients. autocast: that of products, if another."""

    device: torch.device
    weights: torch.dtype
    autocast: torch.dtype | None

    def scale(self) -> Scale:
        """What a training in this precision multiplies its losses by."""
        return Dynamic() if self.autocast == torch.float16 else UNSCALED


class Scale:
    """What losses are multiplied by before gradients are taken: here nothing."""

    factor = 1.0

    def sound(self, norm: float, step: int) -> bool:
        """Whether a step with gradients of this norm, the factor taken out, is to be made. Raises UsageError where
        gradients are no numbers any more."""
        if not math.isfinite(norm):
            raise UsageError(f"The gradient is {norm} at step {step}.", "", "Lower the learning rate (--optimizer.lr).")
        return True

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with it."""


UNSCALED = Scale()


class Dynamic(Scale):
    """A factor as large as float16 gradients bear, so that the small ones do not vanish: halved where one overflows,
    and that step left out; doubled after `patience` steps without. Micikevicius et al., arXiv:1710.03740."""

    def __init__(self, factor: float = 2.0**16, patience: int = 2000) -> None:
        self.factor, self.patience, self.sound_steps = factor, patience, 0

    def sound(self, norm: float, step: int) -> bool:
        if not math.isfinite(norm):
            if self.factor <= 1:
                return super().sound(norm, step)
            self.factor, self.sound_steps = self.factor / 2, 0
            return False
        self.sound_steps += 1
        if self.sound_steps == self.patience:
            self.factor, self.sound_steps = self.factor * 2, 0
        return True

    def state(self) -> dict[str, Any]:
        return {"factor": self.factor, "sound_steps": self.sound_steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.factor, self.sound_steps = state["factor"], state["sound_steps"]


# By LitGPT's names. bf16-true: weights and gradients in bfloat16, but what the optimizer adds is not rounded away (see
# bfloat16.py). mixed: float32 weights, whose products are computed in 16 bits.
PRECISIONS = {
    "32-true": (torch.float32, None),
    "bf16-true": (torch.bfloat16, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
}


def choose(device: str, precision: str | None) -> Precision:
    """device: auto (a CUDA GPU if there is one), cpu, cuda, mps. precision: see PRECISIONS; None is bf16-mixed on CUDA
    and 32-true elsewhere. Raises UsageError for a device that is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    name = device if device != "auto" else "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise UsageError(f"--device is {name}, and PyTorch finds no such device here.", fix="Choose auto or cpu.")
    return Precision(torch.device(name), *PRECISIONS[precision or ("bf16-mixed" if name == "cuda" else "32-true")])
