"""Training on several processes is training on one: losses, gradient norms and weights of twenty steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_training import SPECS, each, tell

from lathe import checkpoint
from lathe.actions import ranks
from lathe.training.spread import Grid

COPIES, SHARDS, SLICES = Grid(2), Grid(1, 2), Grid(1, 1, 2)
WANTED: dict[int, list[tuple[Any, ...]]] = {
    2: [
        *[(name, SLICES) for name in SPECS],
        *[("gemma", COPIES), ("latent", SHARDS), ("llama", SHARDS, True), ("llama", SLICES, True)],
    ],
    4: [
        *[(name, Grid(1, 1, 4)) for name in ("gemma", "experts")],
        *[("llama", Grid(4)), ("gemma", Grid(1, 4)), ("experts", Grid(2, 2)), ("shared expert", Grid(2, 1, 2))],
        *[("gemma", Grid(1, 2, 2)), ("llama", Grid(1, 2, 2), True)],
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
        name, _, *how = wanted
        mine, theirs = one(name, Grid(), *how), found[repr(wanted)]
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=2e-5), wanted
        assert theirs["norm"] == pytest.approx(mine["norm"], rel=2e-4), wanted
        assert theirs["tensors"].keys() == mine["tensors"].keys()
        assert mine["loss"][-1] < mine["loss"][0]
        for key, tensor in mine["tensors"].items():
            torch.testing.assert_close(theirs["tensors"][key], tensor, rtol=1e-3, atol=1e-3, msg=f"{wanted} {key}")
