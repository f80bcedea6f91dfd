"""How fast a machine could multiply and how much a model has to, as what part of the one the other uses up.

The peak is measured, not looked up: the rate of large matrix products in the training's own type of numbers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lathe.model.decoder import Decoder
from lathe.model.layers import Linear
from lathe.model.mlps import Stacked
from lathe.model.spec import Attention, Experts
from lathe.training.precision import Precision

BUDGET = 0.25  # seconds that measuring may take


@dataclass(frozen=True)
class Gauge:
    """flops: floating-point operations to learn from one token. peak: those the machine does per second. ranks: how
    many such machines, or processors, learn together."""

    flops: float
    peak: float
    device: torch.device
    ranks: int = 1

    @staticmethod
    def of(decoder: Decoder, precision: Precision, ranks: int = 1) -> Gauge:
        """Measure the machine's peak. How far tokens look back depends on the data: attention is left out of the work,
        a few percent for documents as long as the model is wide."""
        dtype = precision.autocast or precision.weights
        return Gauge(flops(decoder), peak(precision.device, dtype), precision.device, ranks)

    def read(self, tokens_per_second: float) -> dict[str, float]:
        """peak: the part of it that learning at this speed uses. memory: the most bytes in use so far."""
        part = tokens_per_second * self.flops / (self.peak * self.ranks)
        used = memory(self.device)
        return {"peak": round(part, 4), **({} if used is None else {"memory": used})}


def memory(device: torch.device) -> int | None:
    """The most bytes in use so far: on the GPU, or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it began this process
        told = (line.split() for line in status.read_text().splitlines())
        return next((int(words[1]) * 1024 for words in told if words[:1] == ["VmHWM:"]), None)
    try:
        import resource
        import sys
    except ImportError:
        return None
    # In kilobytes, but on macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def flops(decoder: Decoder, length: int = 0) -> float:
    """Operations to learn from a token: two for each weight that it meets, as many again for the gradient of what the
    weight is multiplied with, and for that of the weight, if it learns. Recomputation is left out.

    length: tokens in a document, each of which looks at half of them or at a window: twelve operations for each channel
    of each head and each of these (Chowdhery et al., arXiv:2204.02311, appendix B). 0 leaves attention out.
    """
    total = 0.0
    experts = [layer.mlp for layer in decoder.spec.layers if isinstance(layer.mlp, Experts)]
    met = experts[0].router.chosen / experts[0].router.count if experts else 1.0
    for module in decoder.modules():
        if isinstance(module, Linear | Stacked):
            weight = module.weight
            each = weight.numel() * (met if isinstance(module, Stacked) else 1.0)
            total += each * (6.0 if weight.requires_grad else 4.0)
    for layer in decoder.spec.layers:
        if isinstance(layer.mixer, Attention):
            seen = min(length / 2, layer.mixer.window or length)
            total += 12.0 * layer.mixer.heads * layer.mixer.channels * seen
    return total


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of square matrix products, each size twice as large as the one before, while there is time."""
    best, size, begin = 0.0, 256, time.perf_counter()
    numbers = torch.Generator(device).manual_seed(0)  # its own: what training draws must not depend on this
    while size <= 8192:
        a, b = (torch.randn(size, size, device=device, generator=numbers).to(dtype) for _ in range(2))
        took = min(_timed(a, b) for _ in range(3))
        best = max(best, 2.0 * size**3 / took)
        spent = time.perf_counter() - begin
        if spent + 4 * 8 * took > BUDGET:  # the next size takes 8 times as long
            break
        size *= 2
    return best


def _timed(a: torch.Tensor, b: torch.Tensor) -> float:
    begin = time.perf_counter()
    a @ b
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    elif a.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begin
