"""LitGPT's and GGUF's hands, against what LitGPT and llama.cpp's converter wrote and answered (see oracles/)."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from families import CASES, REFUSED, Case
from patterned import digest, pattern
from published import PUBLISHED
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lathe import checkpoint, families
from lathe.checkpoint.saving import save
from lathe.errors import ConfigError
from lathe.families import FAMILIES, ggml, litgpt
from lathe.model import rope
from lathe.model.blank import blank, slots
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.model.spec import LongRope, RMSNorm, Spec
from lathe.weights import rules
from lathe.weights.rules import Rule
from lathe.weights.tensors import Ref

DATA = Path(__file__).parent / "data"
LITGPT = json.loads((DATA / "litgpt.json").read_text())
LLAMA_CPP = json.loads((DATA / "llama_cpp.json").read_text())

Tensors = dict[str, Ref]


def patterned(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    return {name: Ref.of(pattern(name, shape)) for name, shape in shapes.items()}


def in_memory(spec: Spec) -> Tensors:
    """Tensors for every slot of a decoder."""
    return patterned({name: tuple(tensor.shape) for name, tensor in slots(blank(spec))})


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].read(), b[name].read()) for name in a)


def there_and_back(hand: list[Rule], memory: Tensors) -> Tensors:
    return rules.into(hand, rules.back(hand, memory))


# ---- LitGPT ---------------------------------------------------------------------------------------------------------
@pytest.fixture(params=LITGPT["models"])
def theirs(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A small model as LitGPT built it: configuration, tensors, and the logits of the last tokens."""
    return LITGPT["models"][request.param]


def litgpt_tensors(model: dict[str, Any]) -> Tensors:
    return patterned({name: tuple(shape) for name, shape in model["tensors"].items()})


def close(found: Tensor, model: dict[str, Any]) -> bool:
    want = torch.tensor(model["logits"])
    return bool((found[-len(want) :] - want).abs().max() < 1e-5 * want.std())


def test_litgpt_models_answer_as_they_do_there(theirs):
    spec = families.read(litgpt.config(theirs["config"]))
    disk = litgpt_tensors(theirs)
    memory = rules.into(litgpt.rules(spec), disk)
    decoder = Decoder(spec)
    decoder.load_state_dict({name: ref.read() for name, ref in memory.items()})
    tokens = torch.tensor(LITGPT["tokens"])
    with torch.inference_mode():
        assert close(decoder.logits(decoder(tokens, Layout.of([len(tokens)]))), theirs)
    assert same(rules.back(litgpt.rules(spec), memory), disk)


def test_litgpt_models_are_saved_for_transformers(theirs, tmp_path):
    config = litgpt.config(theirs["config"])
    spec = families.read(config)
    save(tmp_path / "model", rules.into(litgpt.rules(spec), litgpt_tensors(theirs)), config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        assert close(model.eval()(torch.tensor([LITGPT["tokens"]]), use_cache=False).logits[0], theirs)


def test_every_configuration_that_litgpt_publishes():
    """All 210 of them; and each, described again, is the same."""
    found = {name: litgpt.config(config) for name, config in LITGPT["published"].items()}
    for name, config in found.items():
        spec = families.read(config)
        assert families.read(litgpt.config(litgpt.settings(config, spec))) == spec, name
    by_architecture = {config["architectures"][0] for config in found.values()}
    assert by_architecture == {
        "GPTNeoXForCausalLM", "StableLmForCausalLM", "FalconForCausalLM", "LlamaForCausalLM", "MistralForCausalLM",
        "MixtralForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM",
        "Gemma3ForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
    }  # fmt: skip
    assert len(found) == 210


@pytest.mark.parametrize(
    ("ours", "hub", "but"),
    [
        ("Llama-2-7b-hf", "Llama-2-7b-hf", {}),
        ("Llama-3.2-1B", "Llama-3.2-1B-Instruct", {}),
        ("Mistral-7B-v0.1", "Mistral-7B-v0.1", {"context": 4096}),
        ("Mixtral-8x7B-v0.1", "Mixtral-8x7B-v0.1", {}),
        ("Qwen2.5-0.5B", "Qwen2.5-0.5B", {}),
        ("Qwen3-0.6B", "Qwen3-0.6B", {}),
        ("Qwen3-30B-A3B", "Qwen3-30B-A3B", {}),
        ("OLMo-2-1124-7B", "OLMo-2-1124-7B", {}),
        ("pythia-160m", "pythia-160m", {}),
        ("falcon-7b", "falcon-7b", {}),
        ("falcon-40b", "falcon-40b", {}),
        ("phi-2", "phi-2", {}),
        ("OLMo-1B-hf", "OLMo-1B-hf", {}),
        ("SmolLM2-135M", "SmolLM2-135M", {}),
    ],
)
def test_the_same_model_under_two_descriptions(ours, hub, but):
    """What the hub's config.json says, but for the tied head that LitGPT has no word for."""
    found = families.read(litgpt.config(LITGPT["published"][ours]))
    assert found == replace(families.read(PUBLISHED[hub].config), tied=False, **but)


WRONG_LITGPT = {
    "unknown": ({"clip_qkv": 8.0}, "clip_qkv"),
    "unknown inside": ({"rope_adjustments": {"factor": 2.0, "truncate": True}}, "rope_adjustments.truncate"),
    "norm": ({"norm_class_name": "FusedRMSNorm"}, "FusedRMSNorm and LLaMAMLP"),
    "offset by name": ({"name": "Gemma-of-mine"}, "Gemma"),
    "switch": ({"shared_attention_norm": True}, "shared_attention_norm"),
    "pattern": ({"sliding_window_size": 4, "sliding_window_indices": [1, 0]}, "sliding_window_indices"),
    "scale": ({"attention_scores_scalar": 3}, "attention_scores_scalar"),
    "bias": ({"lm_head_bias": True}, "lm_head_bias"),
    "two scalings": ({"rope_condense_ratio": 2, "rope_adjustments": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16,
    }}, "rope_condense_ratio"),
    "size": ({"n_embd": "big"}, "n_embd"),
    "many": ({"n_layer": 2**40}, "n_layer"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_LITGPT)
def test_what_a_litgpt_configuration_cannot_say(name):
    changes, words = WRONG_LITGPT[name]
    with pytest.raises(ConfigError, match=f"model_config.yaml.*{words}"):
        litgpt.config({**LITGPT["models"]["llama-2"]["config"], **changes})


def test_litgpt_yarn_is_read_as_its_paper_has_it():
    stretch = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_seq_len": 16}
    config = litgpt.config({**LITGPT["models"]["llama-2"]["config"], "rope_adjustments": stretch})
    assert config["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 16,
    }  # fmt: skip


def test_a_model_that_litgpt_built_is_described_as_it_was(theirs):
    """All fields of its configuration, but for names, padding, and what says the same in other words."""
    config = litgpt.config(theirs["config"])
    spec = families.read(config)
    told = litgpt.settings(config, spec)
    assert told.keys() == theirs["config"].keys()
    assert families.read(litgpt.config(told)) == spec
    other = {name for name, value in theirs["config"].items() if told[name] != value}
    assert other <= {
        "name", "hf_config", "vocab_size", "padding_multiple",
        "rope_condense_ratio", "rope_adjustments",  # one factor or two
        "moe_intermediate_size", "norm_topk_prob",  # null for the other size; not asked, where the softmax is last
        "head_size",  # nothing is made of it beside latent attention
    }  # fmt: skip


# Why LitGPT cannot have some of the models that it is refused; all others it can.
WHY = {
    "llama-dynamic": "no Dynamic",
    "llama-yarn": "YaRN", "llama-yarn-attention-betas": "YaRN", "llama-yarn-mscale": "YaRN",
    "llama-yarn-untruncated": "YaRN", "qwen2-yarn": "YaRN", "deepseek-v3": "YaRN",
    "phi3-longrope": "no LongRope", "phi4-mini": "no LongRope",
    "smollm3": "without rotary", "smollm3-window": "without rotary",
    "granite": "attention_scores_scalar",
    "qwen3-moe-some-dense": "renormalise is False",
    "gpt2": "without rotary", "gpt2-wide-unscaled": "without rotary",
    "deepseek-v3-plain": "norm_eps",
    "stablelm-parallel-normed-heads": "each head's own", "olmo": r"clip is 0\.5",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_model_is_described_to_litgpt_or_refused_with_the_reason(case: Case):
    config = families.plain(case.config)
    spec = families.read(config)
    if case.name in REFUSED["litgpt"]:
        with pytest.raises(ConfigError, match=f"LitGPT cannot express.*{WHY.get(case.name, '')}"):
            litgpt.settings(config, spec)
        return
    told = litgpt.settings(config, spec)
    assert families.read(litgpt.config(told)) == replace(spec, tied=False)
    offset = spec.norm.offset if isinstance(spec.norm, RMSNorm) else 0
    assert ("Gemma" in told["name"]) == (offset == 1)


def test_a_tied_head_is_written_under_both_names():
    config = PUBLISHED["Llama-3.2-1B-Instruct"].config
    spec = families.read(config)
    tensor = Ref.of(torch.zeros(2, 2))
    disk = rules.back(litgpt.rules(spec), {"model.embed_tokens.weight": tensor})
    assert disk == {"transformer.wte.weight": tensor, "lm_head.weight": tensor}


def test_a_real_finetune_by_litgpt(shared):
    """LoRA, merged: the tensors are those of the model that was finetuned, and those it left alone are equal."""
    base = checkpoint.open(shared / "data/models/stories260K-hf")
    tuned = checkpoint.open(shared / "data/formats/litgpt-lora-finetune/final")
    assert tuned.spec == base.spec
    assert {n: ref.shape for n, ref in tuned.tensors.items()} == {n: ref.shape for n, ref in base.tensors.items()}
    equal = {name for name, ref in base.tensors.items() if torch.equal(ref.read(), tuned.tensors[name].read())}
    assert {name for name in base.tensors if "norm" in name or "embed" in name} <= equal != base.tensors.keys()


# ---- GGUF -----------------------------------------------------------------------------------------------------------
@pytest.fixture(params=LLAMA_CPP)
def converted(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A small model: config.json, and metadata and tensors of the GGUF file that llama.cpp's converter made of it."""
    return LLAMA_CPP[request.param]


def shapes(model: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, (*shape, _) in model["tensors"].items()}


def hugging_face_memory(config: dict[str, Any], spec: Spec) -> Tensors:
    """What patterned tensors in the family's own file become in memory."""
    hand = families.rules(config, spec)
    disk = rules.back(hand, in_memory(spec))
    return rules.into(hand, patterned({name: ref.shape for name, ref in disk.items()}))


def turns(spec: Spec) -> tuple[list[Tensor], list[Any]]:
    """How fast each pair of channels turns, layer by layer, and all else that is said of it."""
    ropes = [layer.mixer.rope for layer in spec.layers]
    speeds = [rope.frequencies(r, extent) for r in ropes if r is not None for extent in (8, 200)]
    rest = [r and (r.base, r.channels, r.interleaved, getattr(r.scaling, "attention", 1.0)) for r in ropes]
    return speeds, rest


def unturned(spec: Spec) -> Spec:
    return replace(spec, layers=tuple(replace(la, mixer=replace(la.mixer, rope=None)) for la in spec.layers))


def rounded(value: Any) -> Any:
    """Every real number in it as float32 has it."""
    if isinstance(value, float):
        return torch.tensor(value).item()
    if isinstance(value, Spec):
        return rounded(asdict(value))
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


def test_gguf_metadata_says_what_config_json_said(converted):
    """Equal in every number; rotary speeds, which a file may hold as a tensor of float32, equal in float32."""
    config = ggml.config(converted["metadata"], shapes(converted))
    found, want = families.read(config), families.read(converted["config"])
    assert rounded(unturned(found)) == rounded(unturned(want))
    (speeds, rest), (want_speeds, want_rest) = turns(found), turns(want)
    torch.testing.assert_close(speeds, want_speeds, rtol=1e-6, atol=0)
    assert rounded(rest) == rounded(want_rest)
    if not isinstance(getattr(found.layers[0].mixer.rope, "scaling", None), LongRope):
        assert rounded(found) == rounded(want)


def test_transformers_understands_what_was_made_of_gguf_metadata(converted):
    config = ggml.config(converted["metadata"], shapes(converted))
    theirs = AutoConfig.for_model(**copy.deepcopy(config)).to_dict()
    assert families.read(theirs) == families.read(config)


def without_ones(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A first dimension of 1 is none to ggml."""
    return {name: row[1:] if row[0] == 1 else row for name, row in rows.items()}


def test_gguf_tensors_are_what_the_converter_makes(converted):
    """Names, shapes and bytes; and what we read is what Hugging Face's file gives, bit for bit."""
    config = converted["config"]
    spec = families.read(config)
    memory = hugging_face_memory(config, spec)
    hand = ggml.rules(config, spec)
    disk = rules.back(hand, memory)
    recorded = {name: row for name, row in converted["tensors"].items() if name not in ggml.SETTINGS}
    ours = {name: [*ref.shape, digest(ref.read())] for name, ref in disk.items()}
    assert without_ones(ours) == without_ones(recorded)
    settings = patterned({n: tuple(shape) for n, (*shape, _) in converted["tensors"].items() if n in ggml.SETTINGS})
    assert same(rules.into(hand, {**disk, **settings}), memory)


AHEAD = {
    f"nextn.{name}" for name in ("eh_proj", "embed_tokens", "enorm", "hnorm", "shared_head_head", "shared_head_norm")
}
# What MODEL_TENSORS lists and the recorded files lack: tested below (fused or not, older forms), dropped, or unused.
ABSENT = {
    "llama": {"attn_rot_embd"},
    "smollm3": {"attn_rot_embd", "output", "rope_freqs"},
    "qwen2": {"rope_freqs"},
    "qwen3": {"output", "rope_freqs"},
    "granite": {"output"},
    "gemma3": {"output"},
    "phi3": {"attn_q", "attn_k", "attn_v"},
    "phi2": {"attn_qkv", "ffn_norm"},
    "olmo": {"output"},
    "ernie4_5": {"output"},
    "hunyuan-dense": {"output"},
    "mistral3": {
        "attn_rot_embd",
        "output",
        "rope_freqs",
        "ffn_gate_inp",
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
    },
    "glm4": {"attn_qkv", "rope_freqs", *AHEAD},
    "starcoder": {"output"},
    "starcoder2": {"attn_rot_embd", "output", "rope_freqs"},
    "stablelm": {"attn_q_norm", "attn_k_norm", "rope_freqs"},
    "nemotron": {"attn_rot_embd", "rope_freqs"},
    "gpt2": {"output"},
    "chatglm": {"attn_qkv", "rope_freqs"},
    "glm4moe": AHEAD,
    "ernie4_5-moe": {"output"},
    "granitemoe": {"output", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"},  # the last three with shared experts
    "phimoe": {"attn_qkv"},
    "llama4": {"attn_rot_embd"},
    "deepseek2": {"attn_kv_b", "attn_k", "attn_v", "attn_rot_embd", "rope_freqs"},
}


@pytest.mark.parametrize("lineage", ggml.lineages.LINEAGES)
def test_every_tensor_that_llama_cpp_knows_of_a_lineage_has_been_met(lineage):
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == lineage)
    known = {gguf.TENSOR_NAMES[tensor].removeprefix("blk.{bid}.") for tensor in gguf.MODEL_TENSORS[arch]}
    models = [model for model in LLAMA_CPP.values() if model["metadata"]["general.architecture"] == lineage]
    names = [name.rsplit(".", 1)[0] for model in models for name in model["tensors"]]
    met = {name.split(".", 2)[-1] for name in names}
    assert known - met == ABSENT.get(lineage, set())
    assert met <= known


def written(name: str) -> tuple[Spec, list[Rule], Tensors, Tensors]:
    """A recorded model: its spec, hand, tensors in memory and in the file."""
    config = LLAMA_CPP[name]["config"]
    spec = families.read(config)
    memory = hugging_face_memory(config, spec)
    hand = ggml.rules(config, spec)
    return spec, hand, memory, rules.back(hand, memory)


@pytest.mark.parametrize("name", ["qwen2", "llama-3.2", "gemma3"])
def test_queries_keys_and_values_in_one_tensor(name):
    """As the converter writes them with --fuse-qkv: one below the other, as they would be apart."""
    spec, hand, memory, disk = written(name)
    for layer in range(len(spec.layers)):
        for end in ("weight", "bias"):
            parts = [f"blk.{layer}.attn_{part}.{end}" for part in "qkv"]
            if parts[0] in disk:
                joined = torch.cat([disk.pop(part).read() for part in parts])
                disk[f"blk.{layer}.attn_qkv.{end}"] = Ref.of(joined)
    assert same(rules.into(hand, disk), memory)


def test_queries_keys_and_values_apart_where_they_are_usually_one():
    spec, hand, memory, disk = written("phi3-window")
    for layer, part in enumerate(spec.layers):
        whole = disk.pop(f"blk.{layer}.attn_qkv.weight").read()
        rows = [part.mixer.heads, part.mixer.kv_heads, part.mixer.kv_heads]
        for name, rows_of in zip("qkv", whole.split([n * part.mixer.channels for n in rows]), strict=True):
            disk[f"blk.{layer}.attn_{name}.weight"] = Ref.of(rows_of)
    assert same(rules.into(hand, disk), memory)


def test_the_first_files_of_deepseek():
    """Their keys and values unfold from one matrix, and their metadata count heads before folding."""
    spec, hand, memory, disk = written("deepseek-v3")
    for layer in range(len(spec.layers)):
        for name in ("k_b", "v_b"):
            del disk[f"blk.{layer}.attn_{name}.weight"]
        disk[f"blk.{layer}.attn_kv_b.weight"] = memory[f"model.layers.{layer}.self_attn.kv_b_proj.weight"]
    assert same(rules.into(hand, disk), memory)
    metadata = dict(LLAMA_CPP["deepseek-v3"]["metadata"])
    for kind in ("key", "value"):
        metadata[f"deepseek2.attention.{kind}_length"] = metadata.pop(f"deepseek2.attention.{kind}_length_mla")
    assert families.read(ggml.config(metadata, shapes(LLAMA_CPP["deepseek-v3"]))) == spec


def test_a_correction_may_be_a_matrix_of_one_row():
    _, hand, memory, disk = written("ernie-moe-to-the-end")
    for name in [name for name in disk if name.endswith("exp_probs_b.bias")]:
        disk[name] = disk[name].stack()
    assert same(rules.into(hand, disk), memory)


def test_a_layer_that_predicts_further_ahead_is_dropped():
    """The converter counts it among the layers; here the file has its tensors too."""
    model = LLAMA_CPP["glm4-moe"]
    spec, hand, memory, disk = written("glm4-moe")
    assert model["metadata"]["glm4moe.block_count"] == len(spec.layers) + 1
    ahead = {
        f"blk.{len(spec.layers)}.{name}": Ref.of(torch.ones(2)) for name in ("nextn.enorm.weight", "attn_norm.weight")
    }
    assert same(rules.into(hand, {**disk, **ahead}), memory)


def test_a_tensor_of_frequencies_is_llama_3s_scaling_where_it_can_be():
    model = LLAMA_CPP["llama-3.2"]
    assert ggml.config(model["metadata"], shapes(model))["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def test_a_window_in_a_llama_file_is_mistrals():
    model = LLAMA_CPP["mistral"]
    config = ggml.config({**model["metadata"], "llama.attention.sliding_window": 8}, shapes(model))
    assert config["architectures"] == ["MistralForCausalLM"]
    assert {layer.mixer.window for layer in families.read(config).layers} == {8}


WRONG_GGUF = {
    "architecture": ("llama-2", {"general.architecture": "llamma"}, 'Did you mean "llama"'),
    "nameless": ("llama-2", {"general.architecture": None}, "None"),
    "unknown": ("llama-2", {"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv"),
    "missing": ("llama-2", {"llama.attention.head_count": None}, "llama.attention.head_count"),
    "per layer": ("llama-2", {"llama.attention.head_count": [4, 2]}, "llama.attention.head_count"),
    "layers": ("llama-2", {"llama.block_count": 2**40}, "llama.block_count"),
    "partial": ("llama-2", {"llama.rope.dimension_count": 8}, "llama.rope.dimension_count"),
    "scaling": ("llama-linear", {"llama.rope.scaling.type": "ntk"}, "llama.rope.scaling.type"),
    "two scalings": ("llama-3.2", {"llama.rope.scaling.factor": 2.0}, "llama.rope.scaling.factor"),
    "no factors": ("llama-2", {"llama.rope.scaling.type": "longrope"}, "rope_factors_short.weight"),
    "few factors": ("llama-3.2", {"rope_freqs.weight": [1.0, 2.0]}, "rope_freqs.weight"),
    "heads": ("neox", {"gptneox.attention.head_count_kv": 2}, "num_key_value_heads"),
    "router": ("deepseek-v3", {"deepseek2.expert_gating_func": 3}, "deepseek2.expert_gating_func"),
    "pattern": (
        "gemma3",
        {"gemma3.attention.sliding_window_pattern": [True]},
        "gemma3.attention.sliding_window_pattern",
    ),
}


@pytest.mark.parametrize("name", WRONG_GGUF)
def test_what_gguf_metadata_cannot_say(name):
    model, changes, words = WRONG_GGUF[name]
    with pytest.raises(ConfigError, match=words):
        ggml.config({**LLAMA_CPP[model]["metadata"], **changes}, shapes(LLAMA_CPP[model]))


def test_a_file_without_an_embedding():
    model = LLAMA_CPP["llama-2"]
    with pytest.raises(ConfigError, match=r"token_embd\.weight"):
        ggml.config(model["metadata"], {n: s for n, s in shapes(model).items() if n != "token_embd.weight"})


# ---- both -----------------------------------------------------------------------------------------------------------
IN_GGUF = {name for row in ggml.lineages.LINEAGES.values() for name in row.architectures}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_names_go_there_and_back(case: Case):
    """Every case of every family, through each hand that has it: no name of ours is left, nothing is lost."""
    config = families.plain(case.config)
    if config["model_type"] == "gpt_neox":
        config.pop("num_key_value_heads", None)  # which it has no word for
    spec = families.read(config)
    memory = in_memory(spec)
    hands = [ggml.rules(config, spec)] if families.find(config).architecture in IN_GGUF else []
    hands += [] if case.name in REFUSED["litgpt"] else [litgpt.rules(spec)]
    for hand in hands:
        assert not [name for name in rules.back(hand, memory) if name.startswith("model.")]
        assert same(there_and_back(hand, memory), memory)


def test_a_family_without_a_lineage_is_refused():
    assert {*FAMILIES} >= IN_GGUF
    far = {case.name for case in CASES if families.find(families.plain(case.config)).architecture not in IN_GGUF}
    assert far <= REFUSED["gguf"]


ODD = [None, -1, 0, 1, 3, 2**40, 1.5, -0.5, float("nan"), float("inf"), 1e30, "", "x", "yarn", "linear", True, False]
ODD += [[], [1], [1.0, "x"], {}, {"factor": 2.0}, {"name": 3}, [[1]]]


def changed(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    config = dict(config)
    for key in rng.sample(sorted(config), rng.randrange(1, 4)):
        config[key] = rng.choice(ODD)
    return config


def test_odd_values_are_refused_in_words():
    """Whatever a file says, it gives a configuration or a ConfigError, and so does reading that."""
    rng = random.Random(0)
    gguf_models, litgpt_models = [*LLAMA_CPP.values()], [*LITGPT["models"].values()]
    read = 0
    for _ in range(10_000):
        model = rng.choice(gguf_models)
        for make in (
            lambda m=model: ggml.config(changed(m["metadata"], rng), shapes(m)),
            lambda: litgpt.config(changed(rng.choice(litgpt_models)["config"], rng)),
        ):
            try:
                families.read(make())
                read += 1
            except ConfigError as error:
                assert "\n" not in str(error)
    assert read > 100
