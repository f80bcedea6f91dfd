"""Adapters put on from outside: PEFT is the oracle, for what its folders mean and for what we write."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, ask, reference
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from lathe import checkpoint
from lathe.llm import LLM
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.transforms import adapt

TOKENS = torch.tensor([1, 5, 9, 30, 2, 2, 17, 8, 11, 4, 27, 3, 44, 60])
MODELS = ["llama-3.2-tied-llama3-rope", "llama-biased", "qwen3", "phi3-window", "gpt2", "neox", "gemma2", "olmo2"]


def logits(decoder: Decoder, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(tokens, Layout.of([len(tokens)])))


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() < 3e-5 * theirs.std())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models as transformers writes them, by the names of the family suite's cases."""
    cases = {case.name: case for case in CASES if case.name in {*MODELS, "deepseek-v3", "mixtral"}}
    return {name: reference(case, tmp_path_factory.mktemp(name)).folder for name, case in cases.items()}


def made(base: Path, folder: Path, seed: int = 0, **settings: Any) -> Tensor:
    """Have PEFT put a LoRA with random numbers on a model and save it. Returns the logits it has then."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype=torch.float32).eval()
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    moved = [p for name, p in adapted.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in moved:
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    adapted.save_pretrained(folder)
    return ask(adapted, TOKENS)


def layers_of(base: Path) -> list[str]:
    """The ends of the names of a model's linear maps, as its family calls them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    kinds = {"Linear", "Conv1D"}
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if type(m).__name__ in kinds}
    return sorted(names - {"lm_head", "embed_out"})


def embedding_of(base: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(base)
    return next(n for n, m in model.named_modules() if m is model.get_input_embeddings()).rpartition(".")[2]


@dataclass(frozen=True)
class Kind:
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    embedding: bool = False
    whole: bool = False


KINDS = [
    Kind("plain"),
    Kind("rank-stabilised", {"use_rslora": True, "r": 5, "lora_alpha": 3}),
    Kind("dora", {"use_dora": True}),
    Kind("biases", {"bias": "all"}),
    Kind("own-biases", {"bias": "lora_only", "lora_bias": True}),
    Kind("embedding", {}, embedding=True),
    Kind("whole-head-and-embedding", {}, whole=True),
    Kind("some-layers", {"layers_to_transform": [1], "rank_pattern": {"layers.1.*": 3}, "alpha_pattern": {"1.*": 2}}),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_that_peft_wrote_gives_its_logits(name: str, kind: Kind, bases: dict[str, Path], tmp_path: Path):
    targets = layers_of(bases[name]) + ([embedding_of(bases[name])] if kind.embedding else [])
    settings = {"r": 4, "lora_alpha": 16, "target_modules": targets, **kind.settings}
    if kind.whole:
        head = "embed_out" if name == "neox" else "lm_head"
        settings["modules_to_save"] = [head, embedding_of(bases[name])]
    if kind.name == "some-layers" and name == "gpt2":
        settings |= {"layers_pattern": "h", "rank_pattern": {r"h\.1.*": 3}}
    theirs = made(bases[name], tmp_path / "adapter", **settings)
    model = checkpoint.open(bases[name])
    found = checkpoint.put_on(model, {"default": tmp_path / "adapter"})
    decoder = found.load()
    assert not close(logits(model.load()), theirs)
    assert close(logits(decoder), theirs)
    with adapt.disabled(decoder):
        assert torch.equal(logits(decoder), logits(model.load()))


def test_a_genuine_adapter_of_a_real_model(shared: Path):
    folder, base = shared / "data/formats/peft-lora-stories260K", shared / "data/models/stories260K-hf"
    expected = json.loads((folder / "expected.json").read_text())

    def told(llm: LLM) -> str:
        return expected["prompt"] + llm.generate(expected["prompt"], temperature=0, max_new_tokens=80)

    llm = LLM.load(base, device="cpu", adapter=folder)
    assert told(llm) == expected["with_adapter"]
    with adapt.disabled(llm.decoder):
        assert told(llm) == expected["base"]
    adapt.merge(llm.decoder)
    assert told(llm) == expected["merged"]
