"""LitGPT 0.5.13 reads what we write, and we read every kind of checkpoint that it and Lightning write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ask
from families import CASES, REFUSED, Case, reference
from torch import Tensor

from lathe import checkpoint
from lathe.checkpoint import Checkpoint
from lathe.model.layout import Layout
from lathe.weights import distributed

HERE = Path(__file__).parent
TOKENS = [1, 5, 9, 30, 2, 2, 17, 8, 11, 4, 27, 3, 44, 60]  # longer than the windows
STORY = [1, 403, 407, 261, 378, 5, 17]
WRITTEN = [case for case in CASES if case.name not in REFUSED["litgpt"]]


def logits(found: Checkpoint, tokens: list[int]) -> Tensor:
    decoder = found.load()
    with torch.inference_mode():
        return decoder.logits(decoder(torch.tensor(tokens), Layout.of([len(tokens)])))


def close(ours: Tensor, theirs: Any) -> bool:
    wanted = torch.tensor(theirs)
    return bool((ours - wanted).abs().max() < 2e-5 * wanted.std())


# ---- it reads what we write -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def read(litgpt: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Any]]:
    """Our logits and LitGPT's, of each model that transformers wrote and we wrote again for LitGPT."""
    place, ours = tmp_path_factory.mktemp("written"), {}
    for case in WRITTEN:
        source = checkpoint.open(reference(case, tmp_path_factory.mktemp(case.name)).folder)
        checkpoint.save(place / case.name, source.tensors, source.config, form="litgpt")
        ours[case.name] = logits(source, TOKENS)
    theirs = litgpt(HERE / "litgpt_reads.py", place, json.dumps(TOKENS))
    return {name: (ours[name], theirs[name]) for name in ours}


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_litgpt_answers_as_we_do_with_what_we_wrote(case: Case, read):
    assert close(*read[case.name])


# ---- we read what it writes -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def kinds(litgpt: Ask, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of every kind, and the logits that LitGPT has with it."""
    place = tmp_path_factory.mktemp("kinds")
    return place, litgpt(HERE / "litgpt_kinds.py", shared / "data/models/stories260K-litgpt", place)


@pytest.mark.parametrize(
    "kind",
    [
        "full/final",  # {"model": ...}
        "full/step-000002",  # with optimizer, scheduler and counters
        "pretrain/final",
        "pretrain/step-00000001",
        "trainer/last.ckpt",  # with options of LitGPT's classes, among which is what model it is
        "sharded",  # by two processes
        "sharded/lit_model.pth",
        "interleaved",
        "compiled",
    ],
)
def test_we_answer_as_litgpt_does_with_what_it_wrote(kind: str, kinds):
    place, theirs = kinds
    assert close(logits(checkpoint.open(place / kind), STORY), theirs[kind.removesuffix("/lit_model.pth")])


def test_every_kind_was_another_model(kinds):
    """So that none of them is read by chance: training moved the weights."""
    _, theirs = kinds
    trained = [theirs[name] for name in ("full/final", "full/step-000002", "pretrain/final", "sharded", "compiled")]
    assert len({json.dumps(found) for found in trained}) == len(trained)


def test_shards_are_read_in_any_box(kinds):
    """Rows that lie in both files, in one, and the optimizer's state, which is there and which nothing reads."""
    place, _ = kinds
    refs = distributed.open(place / "sharded/lit_model.pth")
    whole = torch.load(place / "joined", weights_only=True)
    for name, tensor in whole["model"].items():
        ref, half = refs[f"model.{name}"], tensor.shape[0] // 2
        assert torch.equal(ref.read(), tensor)
        assert torch.equal(ref[half - 1 : half + 1].read(), tensor[half - 1 : half + 1])
        assert torch.equal(ref[1:2].read(), tensor[1:2])
    assert sum(name.startswith("optimizer.") for name in refs) > len(whole["model"])


def test_a_genuine_folder_answers_as_the_model_it_was_made_of(shared: Path):
    """stories260K, as LitGPT's converter wrote it, and as the hub has it."""
    theirs, hub = (checkpoint.open(shared / f"data/models/stories260K-{form}") for form in ("litgpt", "hf"))
    assert torch.equal(logits(theirs, STORY), logits(hub, STORY))
