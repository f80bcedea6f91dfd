"""What several processes save together is a model's folder, from which that number goes on bit for bit, and another
as it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_resume import SAVED, each, trained
from rank_saving import CONFIGS, GRIDS
from rank_training import drawn
from transformers import AutoModelForCausalLM

from lathe import checkpoint, families
from lathe.actions import ranks
from lathe.model.layout import Layout
from lathe.training.grid import Grid, divide

pytestmark = pytest.mark.usefixtures("forks")

ONE, COPIES, SHARDS, SLICES = Grid(), Grid(2), Grid(1, 2), Grid(1, 1, 2)
WANTED = [
    ("llama", COPIES, "full"),
    ("gemma", SHARDS, "full"),
    ("llama", SHARDS, "bf16"),
    ("gemma", SLICES, "full"),
    ("llama", SLICES, "lora"),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[tuple[str, str], Any]:
    """What one process learns, which saves in its middle."""
    ways = dict.fromkeys((name, how) for name, _, how in WANTED)
    return {(name, how): trained(CPU, name, ONE, how, place / "one" / f"{name}-{how}") for name, how in ways}


@pytest.fixture(scope="module")
def found(place: Path, alone: dict[tuple[str, str], Any]) -> dict[int | str, Any]:
    """What two did."""
    ranks.run(each, 2, "cpu", WANTED, place / "one", place)
    told: dict[int | str, Any] = torch.load(place / "found.pt")
    return told


@pytest.mark.parametrize(("number", "wanted"), [*enumerate(WANTED)])
def test_processes_go_on_from_what_they_or_another_number_saved(
    number: int,
    wanted: tuple[str, Grid, str],
    place: Path,
    alone: dict[tuple[str, str], Any],
    found: dict[int | str, Any],
) -> None:
    name, _, method = wanted
    (losses, weights), again, crossed = found[number]
    assert again[0] == losses[SAVED:]
    assert all(torch.equal(again[1][key], weights[key]) for key in weights)
    back = trained(CPU, name, ONE, method, place / "none", place / str(number))
    mine = alone[name, method]
    close = {"rel": 3e-2} if method == "bf16" else {"rel": 1e-4}
    for others in (crossed, back):  # begun by one and ended by two; begun by two and ended by one
        assert others[0] == pytest.approx(mine[0][SAVED:], **close)
        for key, tensor in mine[1].items() if method != "bf16" else ():
            torch.testing.assert_close(others[1][key], tensor, rtol=1e-3, atol=1e-3, msg=key)


@pytest.mark.parametrize("number", range(len(GRIDS)))
@pytest.mark.parametrize("name", CONFIGS)
def test_each_writes_its_share_and_has_no_more_than_that_and_a_tensor(
    name: str, number: int, place: Path, found: dict[int | str, Any]
) -> None:
    out, told = place / f"{name}-{number}", found["saved"][f"{name}-{number}"]
    tensors = dict(drawn(families.read(CONFIGS[name])))
    size = sum(ref.nbytes for ref in tensors.values())
    assert sum(told["share"]) == size
    assert max(told["share"]) < 0.53 * size
    # Beyond its share. A norm more, of which gloo lets go some time after it has been sent.
    assert all(most < 1.05 * largest for most, largest in zip(told["most"], told["largest"], strict=True))
    # A disk that was full for one of them has left the step before whole, and nothing else.
    assert {path.name for path in out.iterdir()} == {"step-000001", "metrics.jsonl", "report.html"}
    step = out / "step-000001"
    assert len(list(step.glob("model-0000?-of-00002.safetensors"))) == 2
    model = checkpoint.open(step)
    assert model.tensors.keys() == tensors.keys()
    for key, ref in tensors.items():
        assert torch.equal(model.tensors[key].read(), ref.read()), key
    ids = torch.arange(9) * 7
    theirs = AutoModelForCausalLM.from_pretrained(step, dtype=torch.float32)(ids[None]).logits[0]
    decoder = model.load()
    torch.testing.assert_close(decoder.logits(decoder(ids, Layout.of([9]))), theirs, rtol=1e-4, atol=1e-4)


def test_the_largest_is_given_first_to_who_has_least() -> None:
    layers = {f"model.layers.{n}.mlp.{name}_proj.weight": 30 for n in range(4) for name in ("up", "down")}
    sizes = {"model.embed_tokens.weight": 100, **layers, "model.norm.weight": 1, "lm_head.weight": 100}
    owners = divide(sizes, 3)
    assert owners == {
        "model.embed_tokens": 0,
        "lm_head": 1,
        "model.layers.0": 2,
        "model.layers.1": 2,
        "model.layers.2": 0,
        "model.layers.3": 1,
        "model.norm": 2,
    }
