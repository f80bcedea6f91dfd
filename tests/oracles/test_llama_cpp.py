"""llama.cpp itself reads the GGUF files that we write, answers as we do, and packs and mixes types as we do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
import torch
from families import CASES, REFUSED, Case
from torch import Tensor

from lathe import LLM, checkpoint, families
from lathe.checkpoint.packing import pack
from lathe.families import ggml
from lathe.model.blank import blank, slots
from lathe.model.layout import Layout
from lathe.weights import gguf
from lathe.weights.blocks import PACKINGS
from lathe.weights.tensors import Ref

SCRIPT = Path(__file__).with_name("llama_cpp_answers.py")
VOCAB = 512
TOKENS = [1, *torch.randint(3, VOCAB, (23,), generator=torch.Generator().manual_seed(0)).tolist()]

# Windows, chunks, and YaRN's own numbers, of which llama.cpp makes nothing in these: it answers as the changed model.
UNHEEDED = {
    "llama-yarn-attention-betas": {"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
    }},
    "llama-yarn-mscale": {"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512,
    }},
    "mistral-window": {"sliding_window": None},
    "mixtral-window": {"sliding_window": None},
    "qwen2-window": {"use_sliding_window": False},
    "phi3-window": {"sliding_window": None},
    "starcoder2": {"sliding_window": None},
    "ministral": {"sliding_window": None},
    "olmo3-yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 3},  # but where there are 64 layers
    "gpt-oss": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "llama4": {"attention_chunk_size": 8192, "floor_scale": 8192},
    "kimi-k2": {"rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16, "mscale": 1, "mscale_all_dim": 1,
    }},
}  # fmt: skip
# Cases that cannot be said, so changed that they can: of DeepSeek's two numbers for YaRN only one is in the file, and
# llama.cpp has one epsilon for all norms.
DEEPSEEK = {"rms_norm_eps": 1e-6, "rope_scaling": {
    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.7, "mscale_all_dim": 0.7,
}}  # fmt: skip
ALTERED: dict[str, dict[str, Any]] = {
    "gemma3": {},
    "deepseek-v3": DEEPSEEK,
    "deepseek-v2-lite": {**DEEPSEEK, "q_lora_rank": 40},
    "deepseek-v2": {"rms_norm_eps": 1e-6, "topk_method": "greedy"},
    "olmoe": {"clip_qkv": None, "num_key_value_heads": 4},
    "falcon-40b": {"bias": False},
    "cohere": {"attention_bias": False},
    "gpt-oss": {"swiglu_limit": 7.0},
    "nemotron": {"head_dim": 16},
    "seed-oss": {"attention_out_bias": False},
    "ernie": {"use_bias": False},
    "glm": {"head_dim": 16},
    "kimi-k2": {"rms_norm_eps": 1e-6},
}
# Cohere's heads are normed where there are 64 layers or more, says llama.cpp; and Phi-3.5-MoE's LayerNorm is RMSNorm.
LEFT_OUT = {"cohere-normed-heads", "phi-moe"}


def configured(case: Case, **changes: Any) -> dict[str, Any]:
    config = families.plain(case.config)
    config |= {"vocab_size": VOCAB, **ALTERED.get(case.name, {}), **changes}
    if config["model_type"] == "gpt_neox":
        config.pop("num_key_value_heads", None)  # which it has no word for
    if "query_pre_attn_scalar" in config:
        config["query_pre_attn_scalar"] = config["head_dim"]  # as llama.cpp takes for granted
    return config


def weights(config: dict[str, Any], spread: float = 0.15) -> dict[str, Ref]:
    """Random, so that every part matters: norms about one, and about zero where one is added to them."""
    random = torch.Generator().manual_seed(1)
    spec = families.read(config)
    centre = 1 - getattr(spec.norm, "offset", 0.0)
    found = {}
    for name, slot in slots(blank(spec)):
        values = torch.randn(slot.shape, generator=random)
        size, at = (spread, 0.0) if slot.ndim > 1 else (0.1, 0.0) if "bias" in name else (0.2, centre)
        found[name] = Ref.of(values * size + at, name)
    return found


@pytest.fixture(scope="session")
def words(shared: Path) -> dict[str, Any]:
    """The vocabulary of a real model, 512 tokens, as its GGUF file has it."""
    metadata = gguf.open(shared / "data/models/stories260K-gguf/stories260K-f32.gguf").metadata
    return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}


@pytest.fixture
def answers(llama_cpp, tmp_path):
    def ask(**questions: Any) -> dict[str, Any]:
        file = tmp_path / "questions.json"
        file.write_text(json.dumps(questions))
        return llama_cpp(SCRIPT, file)

    return ask


def ours(file: Path | str, config: dict[str, Any] | None = None, quick: bool = False) -> Tensor:
    """The logits of our decoder, with the tensors of a file."""
    found = checkpoint.open(file)
    spec = families.read(config) if config else found.spec
    opened = checkpoint.Checkpoint(found.path, found.form, found.config, spec, found.tensors)
    decoder = opened.load(dtype=torch.float32, quick=quick)
    with torch.inference_mode():
        return decoder.logits(decoder(torch.tensor(TOKENS), Layout.of([len(TOKENS)])))


def distance(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.std()).item()


def test_every_lineage_answers_alike(answers, words, tmp_path):
    """llama.cpp looks GELU up in a table of half-precision numbers; everything else is float32 to the last digits."""
    files: dict[str, tuple[Case, Path]] = {}
    for case in CASES:
        if case.name not in REFUSED["gguf"] | LEFT_OUT or case.name in ALTERED:
            file = tmp_path / f"{case.name}.gguf"
            config = configured(case)
            # Users are told of what it does not heed, and of nothing else.
            assert bool(ggml.unheeded(config, families.read(config))) == (case.name in UNHEEDED), case.name
            pack(file, weights(config), config, "F32", words)
            files[str(file)] = case, file
    told = answers(logits=dict.fromkeys(files, TOKENS))["logits"]
    wrong = {}
    for name, (case, file) in files.items():
        if isinstance(told[name], str):
            wrong[case.name] = told[name]
            continue
        theirs = torch.tensor(told[name])
        mine = ours(file, configured(case, **UNHEEDED[case.name]) if case.name in UNHEEDED else None)
        mlp = families.read(configured(case)).layers[0].mlp
        bound = 5e-3 if getattr(mlp, "act", "silu").startswith("gelu") else 1e-4
        if distance(mine, theirs) > bound or not torch.equal(mine.argmax(-1), theirs.argmax(-1)):
            wrong[case.name] = distance(mine, theirs)
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    assert len(files) > 40


def wide(name: str, layers: int) -> dict[str, Any]:
    """A case with rows of 256 values, as the K types want them."""
    case = next(case for case in CASES if case.name == name)
    return configured(case, hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=layers)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"])
def test_files_of_every_kind_answer_as_we_do(answers, words, tmp_path, kind):
    """From the same packed weights; llama.cpp multiplies them with activations that it rounds to 8 bits, and so do our
    kernels."""
    config = wide("llama-2", layers=3)
    file = tmp_path / "model.gguf"
    pack(file, weights(config, spread=0.05), config, kind, words)
    theirs = torch.tensor(answers(logits={str(file): TOKENS})["logits"][str(file)])
    for quick in (False, True):
        assert (ours(file, quick=quick) - theirs).square().mean().sqrt() < 0.05 * theirs.std()


NUMBERS = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15}


@pytest.mark.parametrize("name", ["llama-2", "llama-3.2-tied-llama3-rope", "mixtral", "phi3-longrope", "gemma"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_mixture_is_llama_cpp_s(answers, words, tmp_path, name, kind):
    """Every tensor has the type that llama.cpp's own quantizer gives it, and is as near to what it was."""
    config = wide(name, layers=9)  # enough for layers to differ in a mixture
    if name == "phi3-longrope":
        config["rope_scaling"] = {
            "type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32,
        }  # fmt: skip
    if name == "mixtral":
        config["num_local_experts"] = 8
    whole, mine, theirs = (tmp_path / f"{part}.gguf" for part in ("whole", "mine", "theirs"))
    tensors = weights(config)
    pack(whole, tensors, config, "F32", words)
    pack(mine, tensors, config, kind, words)
    assert answers(quantize=[str(whole), str(theirs), NUMBERS[kind]])["quantize"] == 0
    found, wanted = ({t.name: t for t in reference.GGUFReader(file).tensors} for file in (mine, theirs))
    assert {name: t.tensor_type.name for name, t in found.items()} == {
        name: t.tensor_type.name for name, t in wanted.items()
    }
    ratios = []
    for name, tensor in wanted.items():
        exact = gguf.open(whole).tensors[name].read()
        errors = [(gguf.open(file).tensors[name].read() - exact).square().sum().item() for file in (mine, theirs)]
        if errors[1]:
            ratios.append((errors[0] / errors[1]) ** 0.5)
        if tensor.tensor_type.name in ("Q8_0", "Q4_0", "Q5_0", "Q5_1"):
            assert np.array_equal(found[name].data, tensor.data)
    assert 0.99 < min(ratios) <= max(ratios) < 1.01


@pytest.mark.parametrize(
    "number", [n for n, packing in PACKINGS.items() if packing.pack], ids=lambda n: PACKINGS[n].name
)
def test_blocks_are_packed_as_ggml_packs_them(answers, number):
    """Bit for bit, but for the rare block of a K type where sums in another order chose another scale, as good."""
    packing = PACKINGS[number]
    random = torch.Generator().manual_seed(0)
    values = torch.randn(600, 256, generator=random) * torch.rand(600, 1, generator=random)
    values[100:200] *= torch.randn(100, 256, generator=random).square()  # few large, many small
    values[200:250] = values[200:250].abs()
    values[250:300, ::2] = 0
    theirs = bytes.fromhex(answers(blocks={str(number): values.tolist()})["blocks"][str(number)])
    wanted = torch.frombuffer(bytearray(theirs), dtype=torch.uint8).view(-1, packing.nbytes)
    rows = values.view(-1, packing.values)
    found = packing.pack(rows)
    same = (found == wanted).all(1)
    assert same.float().mean() > (0.8 if packing.name.endswith("_K") else 0.9999)
    mine, other = (((packing.expand(blocks) - rows)[~same]).square().sum().sqrt() for blocks in (found, wanted))
    assert same.all() or mine / other < 1.02


def test_a_real_model_tells_its_story(answers, shared, tmp_path):
    """stories260K, written by us from its Hugging Face form, with the vocabulary of its GGUF file."""
    folder = shared / "data/models"
    found = checkpoint.open(folder / "stories260K-hf")
    metadata = gguf.open(folder / "stories260K-gguf/stories260K-f32.gguf").metadata
    told = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    file = tmp_path / "stories.gguf"
    pack(file, found.tensors, found.config, "F32", told)
    said = answers(text={str(file): ["Once upon a time", 60]})["text"][str(file)]
    assert said == LLM.load(file).generate("Once upon a time", max_new_tokens=60, temperature=0, raw=True)
    assert said.startswith(", there was a little girl named Lily")
