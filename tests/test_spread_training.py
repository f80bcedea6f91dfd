"""Training on several processes is training on one: losses, gradient norms and weights, of twenty steps and of few."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from rank_training import SPECS, Wanted, each, tell

from lathe import checkpoint
from lathe.actions import ranks
from lathe.training.grid import Grid

pytestmark = pytest.mark.usefixtures("forks")

COPIES, SHARDS, SLICES = Grid(2), Grid(1, 2), Grid(1, 1, 2)
MANY, FEW = 20, 4
ALIKE = ("compiled", "checkpointed", "wide")  # what changes no number
WANTED: dict[int, list[Wanted]] = {
    2: [
        *[("gemma", grid, MANY, "wide") for grid in (COPIES, SHARDS, SLICES)],
        *[(name, SLICES, FEW) for name in SPECS if name not in ("gemma", "shallow")],
        ("latent", SHARDS, FEW),
        *[("llama", grid, FEW, way) for grid in (SHARDS, SLICES) for way in ("lora", "lora dpo", "dpo", "bf16-mixed")],
        *[("shallow", grid, FEW, "compiled checkpointed") for grid in (SHARDS, SLICES)],  # each layer takes seconds
        *[("llama", COPIES, FEW, way) for way in ("lora dpo checkpointed", "16-mixed")],
        ("llama", SHARDS, FEW, "16-mixed"),
    ],
    4: [
        *[("gemma", grid, MANY, "wide") for grid in (Grid(4), Grid(1, 4), Grid(1, 1, 4))],
        *[("experts", Grid(1, 1, 4), FEW), ("experts", Grid(2, 2), FEW), ("shared expert", Grid(2, 1, 2), FEW)],
        *[("gemma", Grid(1, 2, 2), FEW), ("llama", Grid(1, 2, 2), FEW, "lora dpo checkpointed")],
    ],
}
one = cache(tell)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_learn_what_one_does(count: int, tmp_path: Path) -> None:
    ranks.run(each, count, "cpu", WANTED[count], tmp_path)
    found = torch.load(tmp_path / "found.pt")
    # Of shards each number is read once; of slices norms are read by all, and at 4 ranks two share a head of keys.
    numbers = sum(slot.numel() for _, slot in checkpoint.slots(checkpoint.blank(SPECS["llama"])))
    assert sum(found["shards"]) == numbers
    assert max(found["shards"]) < 1.1 * numbers / count
    assert max(found["slices"]) < 1.2 * numbers / count
    for wanted in WANTED[count]:
        name, _, steps, *way = wanted
        mine = one(name, Grid(), steps, " ".join(word for word in " ".join(way).split() if word not in ALIKE))
        theirs, narrow = found[repr(wanted)], "mixed" in repr(way)
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3 if narrow else 2e-5), wanted
        assert theirs["norm"] == pytest.approx(mine["norm"], rel=1e-2 if narrow else 2e-4), wanted
        assert theirs["tensors"].keys() == mine["tensors"].keys()
        assert steps == FEW or mine["loss"][-1] < mine["loss"][0]
        # Where a gradient is near 0, its sign in 16 bits, and so a step of AdamW, is chance.
        for key, tensor in () if narrow else mine["tensors"].items():
            torch.testing.assert_close(theirs["tensors"][key], tensor, rtol=1e-3, atol=1e-3, msg=f"{wanted} {key}")
