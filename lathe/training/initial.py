"""A decoder whose weights hold nothing becomes one that can begin to learn: random weights from a generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lathe.model import layers
from lathe.model.decoder import Decoder
from lathe.model.spec import Spec

INTO_STREAM = ("o_proj", "down_proj")  # what adds to the residual stream, twice per layer


def decoder(spec: Spec, seed: int, device: torch.device | str = "cpu") -> Decoder:
    """A float32 decoder with random weights, ready to train; the same ones on every device."""
    with torch.device(device):
        made = Decoder(spec)
    fill(made, torch.Generator().manual_seed(seed))
    return made


@torch.no_grad()
def fill(decoder: Decoder, generator: torch.Generator) -> None:
    """Draw every weight anew, in the order of the parameters' names.

    Matrices and embeddings: normal(0, sqrt(2 / (5 * width))) (Nguyen & Salazar, arXiv:1910.05895; 0.02 at width 1000),
    divided by sqrt(2 * layers) where they add to the residual stream, so that its variance does not grow with depth
    (Radford et al. 2019). The 0.02 that configurations name whatever their width keeps narrow models from learning for
    hundreds of steps. Norms begin as the identity: at 1, or at 0 where 1 is added to the weight (Gemma). Biases begin
    at 0.
    """
    std = (2 / (5 * decoder.spec.width)) ** 0.5
    depth = (2 * len(decoder.spec.layers)) ** -0.5
    for name, module in sorted(decoder.named_modules()):
        slots = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for own_name, parameter in slots:
            if own_name != "weight":  # a bias, or what a router adds to its scores
                parameter.zero_()
            elif isinstance(module, layers.NORMS):
                parameter.fill_(1.0 - getattr(module, "offset", 0.0))
            elif module is not decoder.lm_head or not decoder.spec.tied:
                _normal(parameter, std * depth if name.endswith(INTO_STREAM) else std, generator)


def _normal(parameter: Tensor | nn.Parameter, std: float, generator: torch.Generator) -> None:
    # Drawn on the CPU in float32: one seed gives the same model on every device and in every precision.
    parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))
