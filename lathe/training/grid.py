"""A number of processes becomes a grid that divides a training, and names of tensors become who writes them.

The processes are a grid, `copies` x `shards` x `slices`, slices nearest to each other:

    slices   of every layer, computed together on the same batches (tensor parallel, transforms.parallel)
    shards   of every parameter, brought together where a layer is computed (FSDP, Zhao et al., arXiv:2304.11277)
    copies   of all that, each with its own batches (with shards: hybrid sharding)
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lathe.errors import UsageError


@dataclass(frozen=True)
class Grid:
    """How many copies, shards and slices; their product is the number of processes."""

    copies: int = 1
    shards: int = 1
    slices: int = 1

    @property
    def size(self) -> int:
        return self.copies * self.shards * self.slices


ONE = Grid()  # process alone


def divided(count: int, near: int, slices: int, strategy: str, need: int, room: float) -> Grid:
    """How `count` processes, `near` of them on each machine, divide a training.

    strategy: ddp copies, fsdp shards, hybrid shards on a machine and copies between machines. auto is ddp where
    `need` bytes of weights, gradients and optimizer fit in the `room` of a device, else hybrid where they fit a
    machine, else fsdp.

    Raises UsageError for numbers that do not divide.
    """
    if count % slices or near % slices:
        found = f"--tensor-parallel is {slices}, and there are {near} devices on a machine."
        raise UsageError(found, "It must divide their number.")
    batches, shards = count // slices, near // slices
    if strategy == "auto":
        several = 1 < shards < batches
        fits = need / slices <= room
        strategy = "ddp" if fits else "hybrid" if several and need / near <= room else "fsdp"
    if strategy == "hybrid" and batches % shards:
        raise UsageError(f"There are {count} devices, and {near} on a machine.", "Every machine must have as many.")
    grids = {
        "ddp": Grid(batches, 1, slices),
        "fsdp": Grid(1, batches, slices),
        "hybrid": Grid(batches // shards, shards, slices),
    }
    return grids[strategy]


def room(device: torch.device) -> float:
    """Bytes of a device's memory for weights, gradients and optimizer: half of it, the other half being for the work in
    hand. No limit on a CPU."""
    return torch.cuda.get_device_properties(device).total_memory / 2 if device.type == "cuda" else math.inf


def group(name: str) -> str:
    """What one process writes as a whole: a layer, whose tensors may be one in files; an embedding; a head."""
    found = re.match(r"model\.layers\.\d+|model\.\w+|\w+", name)
    assert found is not None, name
    return found[0]


def divide(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Which of `count` processes writes each group of names, by the bytes of each name: the largest group first, each
    by the process that has least to write so far."""
    groups: Counter[str] = Counter()
    for name, size in sizes.items():
        groups[group(name)] += size
    owners, loads = dict[str, int](), [0] * count
    for which, size in groups.most_common():
        owners[which] = rank = loads.index(min(loads))
        loads[rank] += size
    return owners
