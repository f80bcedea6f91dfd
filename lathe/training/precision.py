"""A device and a precision by their names become torch's; says which combination is the default where."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lathe.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """weights: their dtype, and that of gradients and the optimizer's state. autocast: that of products, if another."""

    device: torch.device
    weights: torch.dtype
    autocast: torch.dtype | None


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
