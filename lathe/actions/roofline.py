"""What answering takes at least on this machine: bytes that must be read and products that must be computed, at the
rates at which the machine reads and multiplies, which are measured (Williams et al. 2009, the roofline model).

A pass reads every weight once, and every token's keys and values; norms, turns and softmax are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lathe.actions import memory
from lathe.actions.inspect import idle

if TYPE_CHECKING:
    import torch

    from lathe.model.decoder import Decoder
    from lathe.model.spec import Mixer

READ = 512 << 20  # bytes, more than caches hold
TRIES = 5


@dataclass(frozen=True)
class Machine:
    """read: bytes a second. multiply: floating-point operations a second, of products in the weights' type."""

    read: float
    multiply: float

    @staticmethod
    def measured(device: torch.device, dtype: torch.dtype) -> Machine:
        """The best of some tries, in about a second on a CPU."""
        from lathe.training import gauge

        return Machine(reading(device), gauge.peak(device, dtype))


@dataclass(frozen=True)
class Work:
    """What a decoder does for a token.

    weights: bytes that a pass of one token reads. matrices, head: numbers in the matrices of layers that a token meets,
    and in the head. cache: bytes of keys and values that it leaves. looking: operations for each token that it sees.
    """

    weights: int
    matrices: int
    head: int
    cache: int
    looking: int

    @staticmethod
    def of(decoder: Decoder) -> Work:
        from lathe import checkpoint
        from lathe.transforms.products import QuickHead

        spec, blank = decoder.spec, checkpoint.blank(decoder.spec)
        size = decoder.like.dtype.itemsize
        matrices, head = memory.Sizes.of(blank).matrices, spec.vocab * spec.width
        last = decoder.lm_head
        ends = {*decoder.model.embed_tokens.parameters(), *last.parameters()}
        stored = sum(p.nbytes for p in decoder.parameters() if p not in ends)
        idle_part = idle(spec) / matrices
        codes = last.panels.all.nbytes if isinstance(last, QuickHead) else sum(p.nbytes for p in last.parameters())
        return Work(
            weights=round(stored * (1 - idle_part)) + codes,
            matrices=matrices - idle(spec),
            head=head,
            cache=memory.cached(spec) * size,
            looking=sum(_looking(layer.mixer) for layer in spec.layers),
        )

    def decode(self, machine: Machine, prompt: int, new: int) -> float:
        """Tokens a second that one sequence can write at most after a prompt, on average of `new` tokens."""
        return machine.read / (self.weights + self.cache * (prompt + new / 2))

    def prefill(self, machine: Machine, prompt: int) -> float:
        """Tokens a second of a prompt that can be read at most, up to the first token after it."""
        return prompt * machine.multiply / (prompt * self._operations(prompt / 2) + 2 * self.head)

    def together(self, machine: Machine, prompt: int, new: int, sequences: int) -> float:
        """Tokens a second that some sequences at once can write at most, with the time that reading takes."""
        seen = prompt + new / 2
        read = (self.weights + sequences * self.cache * seen) / machine.read
        multiply = sequences * (self._operations(seen) + 2 * self.head) / machine.multiply
        seconds = sequences * prompt / self.prefill(machine, prompt) + (new - 1) * max(read, multiply)
        return sequences * new / seconds

    def _operations(self, seen: float) -> float:
        return 2 * self.matrices + self.looking * seen


def _looking(mixer: Mixer) -> int:
    """Operations of all heads for each token that is seen: a key's product with the query, and a share of a value."""
    from lathe.model.spec import Attention

    if isinstance(mixer, Attention):
        return 4 * mixer.heads * mixer.channels
    return 2 * mixer.heads * (mixer.plain_channels + mixer.rope.channels + mixer.value_channels)


def reading(device: torch.device) -> float:
    """Bytes a second that the device reads from its memory: the best that a sum reaches, or our product by one row."""
    import torch

    much = torch.zeros(READ // 4, device=device)
    best = READ / _best(lambda: much.sum().item())
    if device.type == "cpu" and (product := _product(much)):
        best = max(best, READ / _best(product))
    return best


def _product(much: torch.Tensor) -> Callable[[], object] | None:
    """A product of one row with a matrix that takes all these bytes; None where there are no kernels."""
    import torch

    from lathe.model import layers
    from lathe.model.native import library
    from lathe.transforms.products import QuickLinear

    kernels = library()
    if kernels is None:
        return None
    plain = layers.Linear(1, 1, bias=False)
    width = 4096
    plain.weight = torch.nn.Parameter(much.view(torch.bfloat16).view(-1, width), requires_grad=False)
    quick, row = QuickLinear(plain, kernels), torch.ones(1, width, dtype=torch.bfloat16)

    def multiply() -> object:
        with torch.inference_mode():
            return quick(row)

    return multiply


def _best(work: Callable[[], object]) -> float:
    took = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        work()
        took.append(time.perf_counter() - begun)
    return min(took)
