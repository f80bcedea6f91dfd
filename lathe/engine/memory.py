"""A device's free memory becomes how many tokens a pool may hold."""

from __future__ import annotations

from pathlib import Path

import torch

from lathe.engine.pages import token_bytes
from lathe.engine.speculate import Drafter
from lathe.model.decoder import Decoder

SHARE = {"cuda": 0.85, "cpu": 0.5}  # of what is free; on a CPU others want some of it, too
MODEST = 2**31  # bytes that a pool on a CPU takes at most, but for one whole context


def fitting(decoder: Decoder, seats: int, drafter: Drafter | None = None, kv: torch.dtype | None = None) -> int | None:
    """Slots for the keys and values of `seats` whole contexts, or as many as there is memory for; at least those of one
    page. None where nobody says how much memory is free. kv: as `Engine` has it."""
    weight, spec = decoder.like, decoder.spec
    kind, free = weight.device.type, free_bytes(weight.device)
    if free is None:
        return None
    shapes = [layer.mixer.cache for layer in spec.layers]
    each = token_bytes([*shapes, *(drafter.shapes if drafter else ())], kv or weight.dtype)
    room = int(free * SHARE[kind])
    if kind == "cpu":
        room = min(room, max(MODEST, spec.context * each))
    return max(min(seats * spec.context, room // each), 16)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a GPU, or on a CPU where the system is Linux; None elsewhere."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    told = Path("/proc/meminfo")
    if device.type != "cpu" or not told.exists():
        return None
    lines = dict(line.split(":", 1) for line in told.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024
