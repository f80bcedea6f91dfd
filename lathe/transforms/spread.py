"""Layers on several devices of one machine: the stream moves to where the next layer is; knows no file.

The ends of the model, embedding and head, stay together on the first device, and the stream comes back to it: so
tokens, scores and whatever is put on either are in one place. One process runs the layers one after the other, which
makes room, not speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lathe.model.decoder import Decoder
from lathe.model.layout import Layout

Place = Callable[[str], torch.device]


def places(sizes: Mapping[str, int], devices: Sequence[torch.device]) -> Place:
    """On which device each parameter lives, so that all get about as much. sizes: bytes of every parameter, by name, in
    the order of use."""
    layers: dict[str, int] = {"": 0}  # the ends count to the first device
    for name, size in sizes.items():
        layers[_layer(name)] = layers.get(_layer(name), 0) + size
    total, before, found = sum(layers.values()), 0, {}
    for layer, size in layers.items():
        found[layer] = devices[min(int((before + size / 2) / total * len(devices)), len(devices) - 1)]
        before += size
    found[""] = devices[0]
    return lambda name: found[_layer(name)]


def _layer(name: str) -> str:
    """The number of a parameter's layer; nothing for the ends of the model."""
    return name.split(".")[2] if name.startswith("model.layers.") else ""


def seams(decoder: Decoder) -> Decoder:
    """Make a decoder whose layers are on several devices move the stream to each of them, and back to its embedding."""
    for block in decoder.model.layers:
        block.register_forward_pre_hook(_to(next(block.parameters()).device))
    decoder.model.norm.register_forward_pre_hook(_to(decoder.model.embed_tokens.weight.device))
    return decoder


def _to(device: torch.device) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def move(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(moved(arg, device) for arg in args)

    return move


def moved(thing: Any, device: torch.device) -> Any:
    """The stream or its layout on a device; a cache is there already. A layout's copy is made once a pass."""
    if isinstance(thing, Tensor):
        return thing.to(device)
    if not isinstance(thing, Layout) or thing.positions.device == device:
        return thing
    layout = thing
    read = layout.read and tuple(slots if isinstance(slots, slice) else slots.to(device) for slots in layout.read)
    write = None if layout.write is None else layout.write.to(device)

    def copy() -> Layout:
        return replace(layout, positions=layout.positions.to(device), write=write, read=read, made={})

    return layout.once(("on", device), copy)
