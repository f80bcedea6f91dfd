"""Models written as GGUF: metadata is as the converter writes it, all reads back the same, or is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from families import CASES, REFUSED, Case
from patterned import pattern

from lathe import checkpoint, families
from lathe.checkpoint.packing import pack
from lathe.errors import CheckpointError, ConfigError, UsageError
from lathe.families import ggml
from lathe.model.blank import blank, slots
from lathe.weights import gguf as lathe_gguf
from lathe.weights.tensors import Ref

LLAMA_CPP = json.loads((Path(__file__).parent / "data" / "llama_cpp.json").read_text())


def plain(case: Case) -> dict[str, Any]:
    config = case.config
    if config["model_type"] == "gpt_neox":
        config.pop("num_key_value_heads", None)  # which it has no word for
    return config


def tensors(config: dict[str, Any]) -> dict[str, Ref]:
    """For every slot of a decoder."""
    found = slots(blank(families.read(config)))
    return {name: Ref.of(pattern(name, tuple(slot.shape)), name) for name, slot in found}


# ---- metadata -------------------------------------------------------------------------------------------------------
def single(value: Any) -> Any:
    return struct.unpack("<f", struct.pack("<f", value))[0] if isinstance(value, float) else value


# What is there even where it says nothing: the length of a first training, another epsilon, factors of 1.
UNSAID = {
    "phi3-window": {"phi3.rope.scaling.original_context_length"},
    "nemotron": {"nemotron.attention.layer_norm_rms_epsilon", "nemotron.rope.scaling.type"},
    "deepseek-v2-lite": {"deepseek2.expert_weights_scale"},
    "olmo3-yarn": {"olmo2.rope.freq_base_swa"},
    # what layers that are not kept predict; a window of no tokens
    "glm4-moe": {"glm4moe.nextn_predict_layers"},
    "glm4-moe-normed": {"glm4moe.nextn_predict_layers", "glm4moe.expert_weights_scale"},
    "phi-moe": {"phimoe.attention.sliding_window"},
    "hunyuan": {f"hunyuan-dense.rope.scaling.{name}" for name in ("type", "factor", "original_context_length")},
}
OTHERWISE = {
    # divided out of other sizes, which in the published models comes to the same
    "ernie-moe-to-the-end": {"ernie4_5-moe.expert_shared_feed_forward_length"},
    # counted with the layers that predict further tokens, which are not kept
    "glm4-moe": {"glm4moe.block_count"},
    "glm4-moe-normed": {"glm4moe.block_count"},
}


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_metadata_is_what_the_converter_writes(name):
    """Every key that it writes of the model, with its value; what we say beyond that it takes for granted."""
    recorded = LLAMA_CPP[name]
    ours = {
        key: single(value)
        for key, value in ggml.metadata(recorded["config"], families.read(recorded["config"])).items()
    }
    arch = recorded["metadata"]["general.architecture"]
    theirs = {key: value for key, value in recorded["metadata"].items() if key.startswith(f"{arch}.")}
    assert theirs.keys() - ours.keys() == UNSAID.get(name, set())
    alike = (theirs.keys() & ours.keys()) - OTHERWISE.get(name, set())
    assert {key: ours[key] for key in alike} == {key: theirs[key] for key in alike}
    assert ours["general.architecture"] == arch


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_tensors_that_are_settings_are_the_converter_s(name):
    recorded = LLAMA_CPP[name]
    ours = ggml.settings(families.read(recorded["config"]))
    theirs = {key: value for key, value in recorded["metadata"].items() if key in ggml.SETTINGS}
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        torch.testing.assert_close(torch.tensor(ours[key]), torch.tensor(values), rtol=1e-6, atol=0)


# What llama.cpp computes otherwise, or has no key for, and a word of the message.
WORDS_OF = {
    "llama-dynamic": "stretched as the sequence grows",
    "llama-yarn-untruncated": "truncate",
    "smollm3-window": "sliding_window",
    "qwen3-moe-some-dense": "expert_weights_norm",
    "gemma3": "mixer.scale",
    "gpt2-wide-unscaled": "mixer.scale",
    "qwen2-moe-window": "expert_weights_norm",
    "olmoe": "clamp_kqv",
    "falcon-40b": "biases",
    "cohere": "biases",
    "seed-oss": "attn_output.bias",
    "ernie": "attn_q.bias",
    "falcon-one-after-the-other": "order",
    "phi-normed-heads": "qk_norm",
    "gpt-oss": "each.limit",
    "ernie-moe": "layers.1.mlp",
    "llama4-tower": "mixer.rope",
    "deepseek-v2-lite": "scaling.attention",
    "deepseek-v3": "scaling.attention",
    "deepseek-v3-plain": "interleaved",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_model_is_the_same_when_it_is_read_back(case, tmp_path):
    """Spec and tensors, bit for bit; or it is refused, and nothing is written."""
    config = plain(case)
    memory, file = tensors(config), tmp_path / "model.gguf"
    if case.name in REFUSED["gguf"]:
        with pytest.raises(ConfigError, match=WORDS_OF.get(case.name, "There is no way to write")):
            pack(file, memory, config, "F32", {})
        assert not file.exists()
        return
    pack(file, memory, config, "F32", {})
    found = checkpoint.open(file)
    assert found.tensors.keys() == memory.keys()
    assert all(torch.equal(found.tensors[name].read(), memory[name].read()) for name in memory)
    again = tmp_path / "again.gguf"  # what was read says all that the first configuration said
    pack(again, found.tensors, found.config, "F32", {})
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_precision_goes_there_and_back_bit_for_bit(kind, dtype, tmp_path):
    config = CASES[0].config
    memory = {name: ref.to(dtype) for name, ref in tensors(config).items()}
    pack(tmp_path / "a.gguf", memory, config, kind, {})
    found = checkpoint.open(tmp_path / "a.gguf")
    assert found.dtype == dtype
    for name, ref in memory.items():
        stored = found.tensors[name]
        assert stored.dtype == (torch.float32 if len(ref.shape) == 1 else dtype)
        assert torch.equal(stored.read().to(dtype), ref.read())


# ---- vocabularies ---------------------------------------------------------------------------------------------------
WORDS = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [f"w{n}" for n in range(90)]}


def test_a_vocabulary_has_a_token_for_each_row_of_the_embedding(tmp_path):
    config = CASES[0].config
    words = {**WORDS, "tokenizer.ggml.scores": [-float(n) for n in range(90)], "tokenizer.ggml.token_type": [1] * 90}
    pack(tmp_path / "a.gguf", tensors(config), config, "F32", words)
    metadata = checkpoint.open(tmp_path / "a.gguf").metadata
    assert metadata["tokenizer.ggml.tokens"][88:] == ["w88", "w89", *(f"[PAD{n}]" for n in range(90, 96))]
    assert metadata["tokenizer.ggml.token_type"][88:] == [1, 1, *[5] * 6]
    assert len(metadata["tokenizer.ggml.scores"]) == 96


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    config = {**CASES[0].config, "vocab_size": 80}
    with pytest.raises(CheckpointError, match="90 tokens, the model 80"):
        pack(tmp_path / "a.gguf", tensors(config), config, "F32", WORDS)


# ---- mixtures -------------------------------------------------------------------------------------------------------
def types(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize(
    ("kind", "number"), [("F32", 0), ("F16", 1), ("Q4_0", 2), ("Q8_0", 7), ("Q4_K_M", 15), ("BF16", 32)]
)
def test_a_file_says_what_kind_it_is(kind, number, tmp_path):
    config = {**CASES[0].config, "hidden_size": 256, "intermediate_size": 256}
    pack(tmp_path / "a.gguf", tensors(config), config, kind, {})
    assert checkpoint.open(tmp_path / "a.gguf").metadata["general.file_type"] == number
    assert gguf.LlamaFileType(number).name.endswith(kind)
    found = types(tmp_path / "a.gguf")
    assert found["blk.0.attn_norm.weight"] == "F32"
    assert found["blk.0.attn_q.weight"] == kind.removesuffix("_M")


def test_an_unknown_kind_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match=r'Did you mean "Q8_0"\?'):
        ggml.described("Q80")


# ---- files in parts -------------------------------------------------------------------------------------------------
def test_a_folder_that_holds_a_model_in_parts_is_a_model(tmp_path):
    config = CASES[0].config
    memory, file = tensors(config), tmp_path / "whole.gguf"
    pack(file, memory, config, "F32", {})
    whole = lathe_gguf.open(file)
    names = list(whole.tensors)
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, (metadata, some) in enumerate([(whole.metadata, names[:3]), ({}, names[3:])]):
        split = {**metadata, "split.no": number, "split.count": 2}
        refs = {name: whole.tensors[name] for name in some}
        lathe_gguf.write(folder / f"a-0000{number + 1}-of-00002.gguf", split, refs, lambda name, ref: "F32")
    for place in (folder, folder / "a-00001-of-00002.gguf", folder / "a-00002-of-00002.gguf"):
        found = checkpoint.open(place)
        assert found.spec == families.read(config)
        assert all(torch.equal(found.tensors[name].read(), memory[name].read()) for name in memory)
