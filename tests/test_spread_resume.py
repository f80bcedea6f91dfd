"""A training on several processes goes on bit for bit, and on another number of them as that number would have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_resume import SAVED, each, trained

from lathe.actions import ranks
from lathe.training.spread import Grid

ONE, COPIES, SHARDS, SLICES = Grid(), Grid(2), Grid(1, 2), Grid(1, 1, 2)
WANTED = [
    ("llama", COPIES, "full"),
    ("gemma", SHARDS, "full"),
    ("llama", SHARDS, "bf16"),
    ("gemma", SLICES, "full"),
    ("llama", SLICES, "bf16"),
    ("llama", SLICES, "lora"),
    ("llama", SHARDS, "lora"),
]


def test_processes_go_on_from_what_they_or_another_number_saved(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    alone = {}
    for name, _, method in WANTED:
        folder = tmp_path / "one" / f"{name}-{method}"
        alone[name, method] = trained(cpu, name, ONE, method, folder)
    ranks.run(each, 2, "cpu", WANTED, tmp_path / "one", tmp_path)
    found = torch.load(tmp_path / "found.pt")
    for number, (name, _, method) in enumerate(WANTED):
        (losses, weights), again, crossed = found[number]
        assert again[0] == losses[SAVED:], (name, method)
        assert all(torch.equal(again[1][key], weights[key]) for key in weights), (name, method)
        back = trained(cpu, name, ONE, method, tmp_path / "none", tmp_path / str(number))
        mine = alone[name, method]
        close = {"rel": 3e-2} if method == "bf16" else {"rel": 1e-4}
        for others in (crossed, back):  # begun by one and ended by two; begun by two and ended by one
            assert others[0] == pytest.approx(mine[0][SAVED:], **close), (name, method)
            if method != "bf16":
                for key, tensor in mine[1].items():
                    torch.testing.assert_close(others[1][key], tensor, rtol=1e-3, atol=1e-3, msg=f"{name} {key}")
