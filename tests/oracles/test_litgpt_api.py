"""LitGPT's Python object, and ours by the same lines: the same answers, scores, losses and training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ask

from lathe import checkpoint, families
from lathe.api import LLM, benchmark_dict_to_markdown_table
from lathe.model import initial
from lathe.tokenizer import Tokenizer

ROWS = [[1, 403, 407, 261, 378, 5, 17, 8], [1, 9, 30, 2, 2, 17, 8, 11], [1, 27, 3, 44, 60, 400, 401, 402]]
ASKED: dict[str, Any] = {"prompt": "Once upon a time", "top_k": 1, "max_new_tokens": 30}


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "data/models/stories260K-litgpt"


@pytest.fixture(scope="module")
def untied(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose head is no embedding: LitGPT trains the two apart where they are one, and we do not."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"architectures": ["LlamaForCausalLM"], **sizes, "vocab_size": 512, "max_position_embeddings": 64}
    place = tmp_path_factory.mktemp("untied") / "model"
    decoder = initial.decoder(families.read(config), seed=0)
    checkpoint.save(place, decoder, config, form="litgpt", tokenizer=Tokenizer.open(folder))
    return place


@pytest.fixture(scope="module")
def theirs(litgpt: Ask, folder: Path, untied: Path) -> dict[str, Any]:
    return litgpt(Path(__file__).parent / "litgpt_api.py", folder, untied, json.dumps(ROWS))


def test_answers(theirs, folder: Path):
    llm = LLM.load(folder, distribute=None)
    llm.distribute(accelerator="cpu", precision="32-true")
    assert llm.generate(**ASKED, return_as_token_ids=True).tolist() == theirs["tokens"]
    assert llm.generate(**ASKED).removeprefix(" ") == theirs["text"].removeprefix(" ")  # which a continued text keeps
    assert llm.preprocessor.encode("Once upon a time").tolist() == theirs["encoded"]
    assert llm.prompt_style.apply("Once upon a time") == theirs["styled"]
    assert sorted(llm.benchmark(**ASKED)[1]) == theirs["names"]


def test_scores_and_losses(theirs, folder: Path):
    llm = LLM.load(folder, device="cpu")
    rows = torch.tensor(ROWS)
    masked = rows.clone()
    masked[:, :4] = -100
    logits, loss = llm(rows, target_ids=masked)
    assert torch.allclose(logits[:, -1], torch.tensor(theirs["logits"]), atol=2e-5)
    assert loss.item() == pytest.approx(theirs["loss"], abs=1e-5)


def test_a_table(theirs):
    assert (
        benchmark_dict_to_markdown_table({"Seconds total": [1.5, 0.79, 0.8], "Tokens generated": [26, 26, 26]})
        == theirs["table"]
    )


def test_a_trainer_takes_the_same_steps(theirs, untied: Path):
    pytest.importorskip("lightning")
    from litgpt_trainer import losses

    assert losses(LLM, untied, torch.tensor(ROWS)) == pytest.approx(theirs["losses"], rel=1e-5)
