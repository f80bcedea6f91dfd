"""A spec becomes a decoder of names and shapes alone, to be asked or to be filled; knows no file and no values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lathe.model.decoder import Decoder
from lathe.model.spec import Spec


def blank(spec: Spec) -> Decoder:
    """A decoder on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return Decoder(spec)


def slots(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by its name, once each: a tied head is its embedding."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def emptied(decoder: Decoder, device: torch.device) -> Decoder:
    """Give memory on a device to all that has none yet, with no values; a tied head stays its embedding."""
    for module in decoder.modules():
        for name, slot in (*module._parameters.items(), *module._buffers.items()):
            if slot is not None and slot.is_meta:
                empty = torch.empty_like(slot, device=device)
                setattr(module, name, nn.Parameter(empty) if isinstance(slot, nn.Parameter) else empty)
    if decoder.spec.tied:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    return decoder
