"""LitGPT 0.5.13 reads what we write, and we read every kind of checkpoint that it and Lightning write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ask
from families import CASES, REFUSED, Case, reference
from safetensors.torch import load_file
from torch import Tensor

from lathe import checkpoint
from lathe.checkpoint import Checkpoint
from lathe.model.layout import Layout
from lathe.tokenizer import Tokenizer
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
@dataclass(frozen=True)
class Read:
    """A model that transformers wrote and we wrote again for LitGPT: where, and what LitGPT made of it."""

    hub: Path
    exported: Path
    logits: list[list[float]]
    error: str


@pytest.fixture(scope="module")
def read(litgpt: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Read]:
    place, hub, out = (tmp_path_factory.mktemp(name) for name in ("litgpt", "hub", "exported"))
    for case in WRITTEN:
        source = checkpoint.open(reference(case, hub / case.name).folder)
        checkpoint.save(place / case.name, source.tensors, source.config, form="litgpt")
    theirs = litgpt(HERE / "litgpt_reads.py", place, json.dumps(TOKENS), out)
    return {name: Read(hub / name, out / name / "model.pth", *found) for name, found in theirs.items()}


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.name)
def test_litgpt_answers_as_we_do_with_what_we_wrote(case: Case, read):
    assert close(logits(checkpoint.open(read[case.name].hub), TOKENS), read[case.name].logits)


# What its exporter has no names for: OLMo 2 (its defect 10), and models that it builds and does not publish.
NAMELESS = {"olmo2", "llama-biased", "stablelm", "falcon-40b", "phi-normed-heads"}
MISNAMED = {"falcon-one-after-the-other"}  # as those after it, which have a norm for each side
TOWER = "ForConditionalGeneration"  # its names are the tower's
NAMED = [case for case in WRITTEN if case.name not in MISNAMED and TOWER not in str(case.config["architectures"])]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_litgpt_exports_what_we_wrote(case: Case, read):
    """By the name that we gave the model: to the names and bits that transformers had written."""
    found = read[case.name]
    if case.name in NAMELESS:
        assert found.error.startswith("KeyError")
        return
    assert not found.error
    exported, hub = torch.load(found.exported, weights_only=True), load_file(found.hub / "model.safetensors")
    for name in hub.keys() & {"lm_head.weight"} ^ exported.keys() & {"lm_head.weight"}:
        exported.pop(name, None)  # of a tied head
    assert exported.keys() == hub.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in hub.items())


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


# ---- tokenizers -----------------------------------------------------------------------------------------------------
TEXTS = ["Once upon a time", "  two spaces, 1234 and it's\n\n\tnew", "né 🔥 你好", "<|endoftext|> in a text"]
FOLDERS = (
    "qwen2.5",
    "llama-3",
    "llama-2",
    "qwen3",
)  # merges.txt alone, tiktoken's ranks, SentencePiece, tokenizer.json


def test_litgpt_encodes_as_we_do_with_what_we_wrote(litgpt: Ask, shared: Path, tmp_path: Path) -> None:
    source = checkpoint.open(shared / "data/models/stories260K-hf")
    words = {name: Tokenizer.open(shared / "data/tokenizers" / name) for name in FOLDERS}
    for name, tokenizer in words.items():
        checkpoint.save(tmp_path / name, source.tensors, source.config, form="litgpt", tokenizer=tokenizer)
        checkpoint.open(tmp_path / name).tokenizer()
    theirs = litgpt(HERE / "litgpt_encodes.py", tmp_path, json.dumps(TEXTS))
    for name, tokenizer in words.items():
        assert theirs[name]["ids"] == [tokenizer.encode(text, special=False) for text in TEXTS], name
        assert theirs[name]["eos"] == tokenizer.eos_id, name
