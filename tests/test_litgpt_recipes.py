"""Each of the 46 recipes of LitGPT's config_hub trains a tiny model of the same lineage, as it is, for a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from litgpt_recipes import recipes
from litgpt_world import World, check, world

pytestmark = pytest.mark.usefixtures("forks")

RECIPES = recipes()
TOGETHER = "finetune/phi-2/full.yaml"  # runs on as many processes as it says; others of its kind, which say 4, on one


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world"), RECIPES) as made:
        yield made


def test_all_recipes_are_here() -> None:
    kinds = [name.rpartition("/")[2] for name in RECIPES if name.startswith("finetune/")]
    assert len(RECIPES) == 46
    assert {kind: kinds.count(kind) for kind in kinds} == {"lora.yaml": 16, "qlora.yaml": 16, "full.yaml": 10}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(here: World, name: str) -> None:
    recipe = yaml.safe_load(RECIPES[name])
    verb = "pretrain" if name.startswith("pretrain") else "finetune_full" if "full" in name else "finetune_lora"
    here.sweep()
    one = "" if name == TOGETHER or verb != "finetune_full" else "--devices 1"
    check(here, here.run(f"{verb} --config https://hub/config_hub/{name} {one}"))
    learned = yaml.safe_load(Path(recipe["out_dir"], "final/recipe.yaml").read_text())
    assert learned["optimizer"]["lr"] == float(recipe["optimizer"]["init_args"]["lr"])
    assert learned["precision"] == recipe["precision"]
    if verb == "finetune_lora":
        assert (learned["lora_r"], learned["lora_alpha"]) == (recipe["lora_r"], 16)
        assert learned["quantize"] == ("nf4" if recipe["quantize"] else None)
    if name == TOGETHER:
        assert learned["devices"] == "2"
