"""A decoder whose weights hold nothing becomes one that can begin to learn: random weights from a generator."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lathe.model import layers
from lathe.model.blank import blank, slots
from lathe.model.decoder import Decoder
from lathe.model.spec import Spec

INTO_STREAM = ("o_proj", "down_proj")  # what adds to the residual stream, twice per layer


@torch.no_grad()
def decoder(spec: Spec, seed: int, device: torch.device | str = "cpu") -> Decoder:
    """A float32 decoder with random weights, ready to train; the same ones on every device."""
    with torch.device(device):
        made = Decoder(spec)
    there = dict(slots(made))
    for name, values in drawn(spec, seed):
        there[name].copy_(values)
    return made


def drawn(spec: Spec, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer of a new decoder, float32 on the CPU, one after the other: one seed gives the same
    model on every device, in every precision, and on any number of processes that each keep a part.

    Matrices and embeddings: normal(0, sqrt(2 / (5 * width))) (Nguyen & Salazar, arXiv:1910.05895; 0.02 at width 1000),
    divided by sqrt(2 * layers) where they add to the residual stream, so that its variance does not grow with depth
    (Radford et al. 2019). The 0.02 that configurations name whatever their width keeps narrow models from learning for
    hundreds of steps. Norms begin as the identity: at 1, or at 0 where 1 is added to the weight (Gemma). Biases,
    attention sinks and what corrects a router begin at 0. For embeddings see `table`.
    """
    generator = torch.Generator().manual_seed(seed)
    made = blank(spec)
    std = (2 / (5 * spec.width)) ** 0.5
    depth = (2 * len(spec.layers)) ** -0.5
    for name, module in sorted(made.named_modules()):
        for own_name, slot in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if module is made.lm_head and spec.tied and own_name == "weight":
                continue
            values = torch.zeros(slot.shape)
            if own_name != "weight":
                pass
            elif isinstance(module, layers.NORMS):
                values.fill_(1.0 - getattr(module, "offset", 0.0))
            elif module is made.model.embed_tokens:
                values.normal_(0.0, std / table(spec) ** 0.5, generator=generator)
            else:
                values.normal_(0.0, std * depth if name.endswith(INTO_STREAM) else std, generator=generator)
            yield f"{name}.{own_name}", values


def table(spec: Spec) -> float:
    """By the root of what embeddings are smaller than other matrices: of the factor that they are multiplied with and
    the one on logits, where the head is the same matrix and layers add to the stream what is not normed.

    Else each token would predict itself: Gemma at width 512 began 6 nats above chance. Where what layers add is normed,
    as since Gemma 2, it is large beside the embeddings, and they learn faster as they are.
    """
    normed = all(layer.order in ("post", "sandwich") for layer in spec.layers)
    return 1.0 if normed or not spec.tied else max(1.0, spec.embed_scale * spec.logit_scale)
