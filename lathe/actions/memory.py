"""Turns a decoder's shape into the memory that running or training it takes, in bytes, by formulas; measures nothing.

Parameters are of two kinds: M in the matrices of layers, which can be quantized, and E in embeddings, head, norms,
biases and routers, which stay as they are; P = M + E. Of T tokens at once (micro batch x length) every layer keeps A
numbers each for the way back.

    to run      P at fp32: 4 P, bf16: 2 P; int8: M + 2 per row of a matrix + 2 E; int4: 4.5/8 M (a 2-byte scale for
                each 32) + 2 E. The cache: numbers per token x context, 4 bytes each beside fp32, else 2.
    full        32-true: weights 4 P, gradients 4 P, AdamW's two moments 8 P. bf16-mixed: the same, and the copy of M
                that products use, 2 M. bf16-true: 2 P, 2 P and 4 P.
    lora        weights 2 P, frozen; per adapted matrix R x (inputs + outputs) new parameters of 16 bytes: 4 each for
                weight, gradient and two moments. R = 8, on every linear layer that is not an expert.
    qlora       as lora, but M at 4.5 bits, and room for the largest matrix unpacked, 2 bytes a number.
    adapter     weights 2 P, frozen; in each layer 10 rows of width D and a gate per head (LLaMA-Adapter,
                arXiv:2303.16199), 16 bytes each.
    activations T x A for each layer, and 2 T D at the end, in the bytes of a product's dtype; for the loss a slice of
                the T x V scores in 12 bytes each: in that dtype, in float32, and their gradient.

A, for width D: 2 D for each norm, and 2 D for what they give; attention 2 HC + 2 KC (rotated queries, keys, values,
what was gathered), and 2 (H + K) C more under a QK norm; an MLP 4 F (gate, its activation, up, their product), a plain
one 2 F; a mixture that for each expert chosen and for the shared one, and 2 D for each copy of a token that goes to an
expert and comes back. Attention's scores are never kept. What PyTorch itself takes, and pieces that it frees late, come
on top: some hundred MB on CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lathe.model.decoder import Decoder
    from lathe.model.spec import Clamped, Layer, Mixer, Mlp, Spec

RANK, PREFIX = 8, 10  # LitGPT's defaults for LoRA and adapters
INT4 = 4.5 / 8
SLICE = 1 << 24  # scores of a slice of the loss


@dataclass(frozen=True)
class Sizes:
    """matrices, others: M and E. rows: of all matrices. largest: numbers in one. adapted: inputs + outputs, summed over
    the linear layers. gates: heads of all layers."""

    matrices: int
    others: int
    rows: int
    largest: int
    adapted: int
    gates: int

    @staticmethod
    def of(decoder: Decoder) -> Sizes:
        from lathe.model.layers import Linear
        from lathe.model.mlps import Stacked

        modules = [module for module in decoder.model.layers.modules() if isinstance(module, (Linear, Stacked))]
        weights = [module.weight for module in modules]
        matrices = sum(weight.numel() for weight in weights)
        return Sizes(
            matrices=matrices,
            others=sum(parameter.numel() for parameter in decoder.parameters()) - matrices,
            rows=sum(weight.numel() // weight.shape[-1] for weight in weights),
            largest=max(weight.numel() for weight in weights),
            adapted=sum(sum(module.weight.shape) for module in modules if isinstance(module, Linear)),
            gates=sum(layer.mixer.heads for layer in decoder.spec.layers),
        )


@dataclass(frozen=True)
class Training:
    """Bytes of one way to train."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    def facts(self) -> Mapping[str, int]:
        return {name: round(value) for name, value in {**asdict(self), "total": self.total}.items()}


def running(spec: Spec, sizes: Sizes, context: int) -> dict[str, dict[str, int]]:
    """Bytes of the weights and of the cache for a sequence of `context` tokens, by number format."""
    m, e = sizes.matrices, sizes.others
    weights = {"fp32": 4 * (m + e), "bf16": 2 * (m + e), "int8": m + 2 * (sizes.rows + e), "int4": INT4 * m + 2 * e}
    numbers = cached(spec) * context
    found = {}
    for name, size in weights.items():
        cache = numbers * (4 if name == "fp32" else 2)
        found[name] = {"weights": round(size), "cache": cache, "total": round(size) + cache}
    return found


def training(spec: Spec, sizes: Sizes, length: int, batch: int) -> dict[str, Training]:
    """Bytes of each way to train on `batch` rows of `length` tokens at once."""
    m, p = sizes.matrices, sizes.matrices + sizes.others
    tokens = length * batch
    kept = tokens * (sum(activations(layer, spec.width) for layer in spec.layers) + 2 * spec.width)
    loss = 12 * min(tokens * spec.vocab, SLICE)
    lora, prefix = RANK * sizes.adapted, PREFIX * spec.width * len(spec.layers) + sizes.gates
    packed = INT4 * m + 2 * (sizes.others + sizes.largest)
    return {
        "full, 32-true": Training(4 * p, 4 * p, 8 * p, 4 * kept + loss),
        "full, bf16-mixed": Training(4 * p + 2 * m, 4 * p, 8 * p, 2 * kept + loss),
        "full, bf16-true": Training(2 * p, 2 * p, 4 * p, 2 * kept + loss),
        "lora": Training(2 * p + 4 * lora, 4 * lora, 8 * lora, 2 * kept + loss),
        "qlora": Training(packed + 4 * lora, 4 * lora, 8 * lora, 2 * kept + loss),
        "adapter": Training(2 * p + 4 * prefix, 4 * prefix, 8 * prefix, 2 * kept + loss),
    }


def activations(layer: Layer, width: int) -> int:
    """A of one layer: numbers that one token leaves for the way back. On a GPU; a CPU keeps a quarter less of MLPs."""
    # What goes into each norm, and into the matrices after it; of norms side by side, the first is the same.
    stream = {"sandwich": 6, "parallel": 3, "shared": 2}.get(layer.order, 4)
    return stream * width + _mixer(layer.mixer) + _mlp(layer.mlp, width)


def _mixer(part: Mixer) -> int:
    from lathe.model.spec import Attention

    if isinstance(part, Attention):
        normed = (part.heads + part.kv_heads) * part.channels if part.qk_norm else 0
        return 2 * (part.heads + part.kv_heads) * part.channels + normed
    joined = part.plain_channels + part.rope.channels
    latents = 2 * (part.q_rank or 0) + 2 * part.kv_rank
    return latents + part.heads * (2 * joined + part.plain_channels + 2 * part.value_channels)


def _mlp(part: Mlp | Clamped, width: int) -> int:
    from lathe.model.spec import Experts, Plain

    if isinstance(part, Experts):
        return part.router.chosen * (_mlp(part.each, width) + 2 * width) + (
            _mlp(part.shared, width) if part.shared else 0
        )
    return (2 if isinstance(part, Plain) else 4) * part.width


def cached(spec: Spec) -> int:
    """Numbers that one token leaves in the cache, all layers together."""
    shapes = [layer.mixer.cache for layer in spec.layers]
    return sum(s.heads * (s.key_channels + (0 if s.values_in_keys else s.value_channels)) for s in shapes)
