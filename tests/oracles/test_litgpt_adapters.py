"""LitGPT's adapters, read on their bases, give what LitGPT gives; and what it cannot adapt, we can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ask
from test_litgpt import close, logits

from lathe import checkpoint

TOKENS = [1, 5, 9, 30, 2, 2, 17, 8, 11]
KINDS = ["lora", "lora-everywhere", "adapter", "adapter_v2"]
MODELS = ["grouped", "one-key", "neox", "experts"]


@pytest.fixture(scope="module")
def written(litgpt: Ask, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("adapters")
    return place, litgpt(Path(__file__).parent / "litgpt_adapters.py", place, json.dumps(TOKENS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_we_answer_as_litgpt_does_with_its_adapters(name: str, kind: str, written):
    place, said = written
    if (name, kind) == ("experts", "adapter_v2"):
        pytest.skip("it scales the router too, which is refused")
    found = checkpoint.open(place / f"{name}-{kind}")  # on the base that hyperparameters.yaml names
    theirs = said["answers"][f"{name}-{kind}"]
    assert close(logits(found, TOKENS), theirs)
    assert not close(logits(checkpoint.open(place / name), TOKENS), theirs)


@pytest.mark.parametrize("name", MODELS)
def test_a_lora_of_litgpts_merges_into_any_form(name: str, written, tmp_path: Path):
    place, said = written
    found = checkpoint.open(place / f"{name}-lora" / "lit_model.pth.lora")
    for form in ("hf", "litgpt"):
        checkpoint.save(tmp_path / form, found.tensors, found.config, form=form)
        assert close(logits(checkpoint.open(tmp_path / form), TOKENS), said["answers"][f"{name}-lora"])


def test_14_litgpt_cannot_adapt_shared_experts_nor_latent_attention(written):
    """Its mixtures have no shared experts once they are adapted, and latent attention becomes another one."""
    said = written[1]["cannot"]
    assert "shared_experts" in said["shared"]
    assert said["latent"] == "LoRAQKVLinear"
