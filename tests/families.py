"""The cases of the family suite: published configurations made tiny, with random weights, as transformers writes them.

One row of CASES is a model; everything that test_families.py proves, it proves for each row.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from published import PUBLISHED
from published_towers import TINY_TOWERS
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

ORIGINAL, WINDOW = 16, 8  # the first training's length and the window; LENGTHS lie on both sides
LENGTHS = (1, 7, 13, 40, 40)  # ascending: transformers' dynamic rope remembers the longest sequence it has seen

EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
TINY = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    # Falcon's and GPT-2's own words
    "num_kv_heads": 2,
    "ffn_hidden_size": 80,
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 64,
    "n_ctx": 64,
    "vocab_size": 96,
    **dict.fromkeys(EPS, 0.03),  # so large that another would show
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Case:
    """A published configuration and what is changed in it, or in that of its text model, beyond its size."""

    name: str
    published: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """As config.json would say it, in the dialect the checkpoint was published in."""
        published = copy.deepcopy(PUBLISHED[self.published].config)
        if "text_config" in published:
            text = published["text_config"]
            text |= {key: TINY[key] for key in TINY.keys() & text.keys()} | self.changes
            return published | TINY_TOWERS[published["model_type"]]
        tiny = {key: TINY[key] for key in TINY.keys() & {*published, "pad_token_id"}}
        return {**published, **tiny, **TINY_TOWERS.get(published["model_type"], {}), **copy.deepcopy(self.changes)}


def scaled(kind: str, **rest: Any) -> dict[str, Any]:
    """A Llama whose `max_position_embeddings` and `rope_scaling` say how it outgrew its first training."""
    return {"max_position_embeddings": 64, "rope_scaling": {"rope_type": kind, **rest}}


YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
# Lengths and speeds at which the bounds of YaRN's ramp fall inside a head, those it takes for granted and others.
RAMP = {"head_dim": 32}, {"factor": 4.0, "original_max_position_embeddings": 512}
STEEP = {"rope_theta": 100.0}, {**YARN, "beta_fast": 2, "beta_slow": 0.5}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0], "long_factor": [1.0, 1.5, 2.3, 4.0, 9.0, 20.0]}
LONG_8 = {name: [*factors, 3.0, 30.0] for name, factors in LONG.items()}
EXPERTS = {"moe_intermediate_size": 48, "num_experts_per_tok": 2}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0}  # low enough to bend most scores
GEMMA = {"head_dim": 24, "sliding_window": WINDOW, "query_pre_attn_scalar": 20, "num_hidden_layers": 3}
DEEPSEEK = {
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 24,
    "q_lora_rank": 40,
    "num_key_value_heads": 4,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
}
GPT_OSS = {
    "num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 24, "sliding_window": WINDOW, "swiglu_limit": 0.5,
    "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_scaling": {**YARN, "rope_type": "yarn", "beta_fast": 2, "beta_slow": 0.5, "truncate": False},
}  # fmt: skip
DEEPSEEK_YARN = {**YARN, "type": "yarn", "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.7}

CASES = [
    Case("llama-2", "Llama-2-7b-hf", {"num_key_value_heads": 4}),
    Case("llama-3.2-tied-llama3-rope", "Llama-3.2-1B-Instruct", {
        "head_dim": 24,
        "rope_scaling": {**PUBLISHED["Llama-3.2-1B-Instruct"].config["rope_scaling"],
                         "original_max_position_embeddings": ORIGINAL},
    }),
    Case("llama-linear", "Llama-2-7b-hf", scaled("linear", factor=4.0)),
    Case("llama-dynamic", "Llama-2-7b-hf", scaled("dynamic", factor=2.0) | {"max_position_embeddings": ORIGINAL}),
    Case("llama-yarn", "Llama-2-7b-hf", RAMP[0] | scaled("yarn", **RAMP[1])),
    Case("llama-yarn-attention-betas", "Llama-2-7b-hf", STEEP[0] | scaled("yarn", **STEEP[1], attention_factor=1.3)),
    Case("llama-yarn-mscale", "Llama-2-7b-hf", RAMP[0] | scaled("yarn", **RAMP[1], mscale=0.7, mscale_all_dim=0.3)),
    Case("llama-yarn-untruncated", "Llama-2-7b-hf", STEEP[0] | scaled("yarn", **STEEP[1], truncate=False)),
    Case("llama-biased", "Meta-Llama-3-8B", {"attention_bias": True, "mlp_bias": True}),
    Case("smollm2", "SmolLM2-135M", {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48}),
    Case("mistral-window", "Mistral-7B-v0.1", {"sliding_window": WINDOW}),
    Case("mistral", "Mistral-7B-v0.3"),
    Case("mixtral", "Mixtral-8x7B-v0.1", {"num_local_experts": 4}),
    Case("mixtral-window", "Mixtral-8x7B-v0.1", {"num_local_experts": 4, "sliding_window": WINDOW}),
    Case("smollm3", "SmolLM3-3B",
         {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "layer_types": ["full_attention"] * 4}),
    Case("smollm3-window", "SmolLM3-3B", {
        "num_hidden_layers": 2, "no_rope_layers": [0, 1], "layer_types": None,
        "use_sliding_window": True, "sliding_window": WINDOW,
    }),
    Case("granite", "granite-3.1-2b-instruct", {"attention_multiplier": 0.2}),
    Case("qwen2", "Qwen2.5-0.5B", {"max_window_layers": 2}),
    Case("qwen2-window", "Qwen2.5-7B", {
        "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "num_hidden_layers": 3,
    }),
    Case("qwen2-yarn", "Qwen2.5-7B", {"rope_scaling": {**YARN, "type": "yarn"}}),
    Case("qwen3", "Qwen3-0.6B", {"head_dim": 24}),
    Case("qwen3-moe", "Qwen3-30B-A3B", {**EXPERTS, "num_experts": 6, "head_dim": 24}),
    Case("qwen3-moe-some-dense", "Qwen3-30B-A3B", {
        **EXPERTS, "num_experts": 6, "head_dim": 16, "num_hidden_layers": 4, "mlp_only_layers": [1],
        "decoder_sparse_step": 2, "norm_topk_prob": False, "use_sliding_window": True, "sliding_window": WINDOW,
    }),
    Case("qwen2-moe", "Qwen1.5-MoE-A2.7B", {**EXPERTS, "num_experts": 6, "shared_expert_intermediate_size": 56}),
    Case("qwen2-moe-window", "Qwen1.5-MoE-A2.7B", {
        **EXPERTS, "num_experts": 6, "shared_expert_intermediate_size": 56, "num_hidden_layers": 4,
        "mlp_only_layers": [1], "norm_topk_prob": True, "use_sliding_window": True, "sliding_window": WINDOW,
        "max_window_layers": 2,
    }),
    Case("olmoe", "OLMoE-1B-7B-0924", {"num_experts": 6, "num_experts_per_tok": 2, "clip_qkv": 0.9}),
    Case("gemma", "gemma-2b", {"head_dim": 24, "num_key_value_heads": 1}),
    Case("gemma2", "gemma-2-2b", {**GEMMA, **CAPS, "query_pre_attn_scalar": 24}),
    Case("gemma3", "gemma-3-1b-it", {**GEMMA, "sliding_window_pattern": 2, "num_key_value_heads": 1}),
    Case("gemma3-linear", "gemma-3-270m", {
        **GEMMA, "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }),
    Case("gemma3-tower", "gemma-3-4b-it", {
        **GEMMA, "query_pre_attn_scalar": 24, "vocab_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 0.03,
        "max_position_embeddings": 64, "sliding_window_pattern": 2,
    }),
    Case("qwen2-vl", "Qwen2-VL-2B-Instruct", {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}),
    Case("qwen2.5-vl", "Qwen2.5-VL-3B-Instruct", {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}),
    Case("qwen3-vl", "Qwen3-VL-4B-Instruct", {
        "head_dim": 24,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 4, 4], "rope_type": "default"},
    }),
    Case("mistral3", "Mistral-Small-3.1-24B-Instruct-2503", {"head_dim": 24}),
    Case("llama-3.2-vision", "Llama-3.2-11B-Vision-Instruct",
         {"num_hidden_layers": 5, "cross_attention_layers": [1, 3]}),
    Case("phi3-window", "Phi-3-mini-4k-instruct", {"sliding_window": WINDOW, "num_key_value_heads": 4}),
    Case("phi3-longrope", "Phi-3-mini-128k-instruct",
         {"original_max_position_embeddings": ORIGINAL, "rope_scaling": {**LONG_8, "type": "longrope"}}),
    Case("phi4-mini", "Phi-4-mini-instruct",
         {"original_max_position_embeddings": ORIGINAL, "rope_scaling": {**LONG, "type": "longrope"}}),
    Case("stablelm", "stablelm-2-1_6b"),
    Case("stablelm-parallel-normed-heads", "stablelm-2-12b", {"partial_rotary_factor": 0.5}),
    Case("falcon-7b", "falcon-7b", {"max_position_embeddings": 64}),
    Case("falcon-40b", "falcon-40b", {"bias": True}),
    Case("falcon-11b", "falcon-11B"),
    Case("falcon-one-after-the-other", "falcon-7b", {"parallel_attn": False, "multi_query": False}),
    Case("phi-2", "phi-2"),
    Case("phi-normed-heads", "phi-1_5", {"qk_layernorm": True, "num_key_value_heads": 2}),
    Case("cohere", "c4ai-command-r-v01", {"logit_scale": 0.5, "attention_bias": True}),
    Case("cohere-normed-heads", "c4ai-command-r-plus"),
    Case("cohere2", "c4ai-command-r7b-12-2024", {
        "num_hidden_layers": 3, "head_dim": 16, "sliding_window": WINDOW, "sliding_window_pattern": 2,
    }),
    Case("nemotron", "Minitron-4B-Base", {"head_dim": 24}),
    Case("gpt-bigcode", "starcoder", {"n_inner": 80}),
    Case("gpt-bigcode-all-heads", "starcoder", {"n_inner": None, "multi_query": False}),
    Case("starcoder2", "starcoder2-3b", {"sliding_window": WINDOW}),
    Case("olmo", "OLMo-1B-hf", {"clip_qkv": 0.5}),
    Case("olmo-unclipped", "OLMo-1B-hf"),
    Case("olmo3-yarn", "Olmo-3-1025-7B", {
        "num_hidden_layers": 3, "sliding_window": WINDOW, "num_key_value_heads": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_scaling": {**YARN, "rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.3},
    }),
    Case("glm", "glm-4-9b-chat-hf", {"head_dim": 24}),
    Case("glm4", "GLM-4-9B-0414", {"head_dim": 16, "attention_bias": False}),
    Case("exaone4", "EXAONE-4.0-32B", {
        "head_dim": 16, "num_hidden_layers": 3, "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_scaling": {**PUBLISHED["EXAONE-4.0-32B"].config["rope_scaling"],
                         "original_max_position_embeddings": ORIGINAL},
    }),
    Case("exaone4-global", "EXAONE-4.0-1.2B", {"head_dim": 16, "layer_types": ["full_attention"] * 2}),
    Case("seed-oss", "Seed-OSS-36B-Instruct", {"head_dim": 24, "attention_out_bias": True}),
    Case("ernie", "ERNIE-4.5-0.3B-PT", {"head_dim": 24, "use_bias": True}),
    Case("hunyuan", "Hunyuan-7B-Instruct", {"head_dim": 24}),
    Case("ministral", "Ministral-8B", {
        "head_dim": 24, "num_hidden_layers": 3, "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }),
    Case("ministral3", "Ministral-3-3B", {
        "head_dim": 24,
        "rope_parameters": {**PUBLISHED["Ministral-3-3B"].config["rope_parameters"], **YARN,
                            "llama_4_scaling_beta": 0.4},
    }),
    Case("olmo2", "OLMo-2-1124-7B"),
    Case("neox", "pythia-160m"),
    Case("neox-one-after-the-other", "pythia-160m", {"use_parallel_residual": False, "rotary_pct": 1.0}),
    Case("granite-moe", "granite-3.0-1b-a400m-base", {
        "attention_multiplier": 0.2, "num_local_experts": 5, "num_experts_per_tok": 2,
    }),
    Case("glm4-moe", "GLM-4.5-Air", {
        "head_dim": 16, "moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 2,
        "routed_scaling_factor": 1.7, "num_hidden_layers": 3,
    }),
    Case("glm4-moe-normed", "GLM-4.5-Air", {
        "head_dim": 16, "moe_intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "use_qk_norm": True, "attention_bias": False, "norm_topk_prob": False,
    }),
    Case("minimax-m2", "MiniMax-M2", {
        "head_dim": 16, "rotary_dim": 8, "num_local_experts": 6, "num_experts_per_tok": 2, "attn_type_list": [1, 1],
    }),
    Case("ernie-moe", "ERNIE-4.5-21B-A3B-PT", {
        "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 48, "num_hidden_layers": 4,
        "moe_layer_start_index": 1, "moe_layer_end_index": 2,
    }),
    Case("ernie-moe-to-the-end", "ERNIE-4.5-21B-A3B-PT", {
        "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 48, "num_hidden_layers": 3,
        "moe_layer_end_index": 2,
    }),
    Case("phi-moe", "Phi-3.5-MoE-instruct", {
        "num_local_experts": 5, "original_max_position_embeddings": ORIGINAL, "sliding_window": None,
        # Transformers takes the short factors for long sequences too, unlike the model's own code: here they are one.
        "rope_scaling": {**LONG_8, "long_factor": LONG_8["short_factor"], "type": "longrope", "short_mscale": 1.3,
                         "long_mscale": 1.3, "original_max_position_embeddings": ORIGINAL},
    }),
    Case("llama4", "Llama-4-Scout-17B-16E-Instruct, text", {
        "head_dim": 16, "intermediate_size_mlp": 96, "num_hidden_layers": 4, "num_local_experts": 4,
        "attention_chunk_size": WINDOW, "no_rope_layers": [1, 1, 1, 0], "interleave_moe_layer_step": 2,
        "floor_scale": 8, "num_experts_per_tok": 2,
        "rope_scaling": {**PUBLISHED["Llama-4-Scout-17B-16E-Instruct, text"].config["rope_scaling"],
                         "original_max_position_embeddings": ORIGINAL},
    }),
    Case("llama4-tower", "Llama-4-Scout-17B-16E-Instruct", {
        "head_dim": 16, "num_local_experts": 4, "attention_chunk_size": WINDOW, "no_rope_layers": [1, 0],
        "rope_scaling": None,
    }),
    Case("gpt2", "gpt2"),
    Case("gpt2-wide-unscaled", "gpt2", {"n_inner": 96, "scale_attn_weights": False}),
    Case("gpt-oss", "gpt-oss-20b", GPT_OSS),
    Case("deepseek-v2-lite", "DeepSeek-V2-Lite", {
        **DEEPSEEK, "q_lora_rank": None, "rope_scaling": DEEPSEEK_YARN,
    }),
    Case("deepseek-v2", "DeepSeek-V2-Lite", {
        **DEEPSEEK, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.7, "rope_scaling": None,
    }),
    Case("deepseek-v3", "DeepSeek-V3", {**DEEPSEEK, "rope_scaling": DEEPSEEK_YARN}),
    Case("deepseek-v3-plain", "DeepSeek-V3", {
        **DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 2, "norm_topk_prob": False,
        "rope_scaling": None, "attention_bias": True, "rope_interleave": False,
    }),
    Case("kimi-k2", "Kimi-K2-Instruct", {
        **DEEPSEEK, "model_type": "kimi_k2", "n_routed_experts": 12, "n_group": 1, "topk_group": 1,
        "num_hidden_layers": 3,
        "rope_scaling": {**PUBLISHED["Kimi-K2-Instruct"].config["rope_scaling"],
                         "original_max_position_embeddings": ORIGINAL},
    }),
]  # fmt: skip

# Mixtures that are not in LitGPT.
MIXED = {
    "granite-moe", "glm4-moe", "glm4-moe-normed", "minimax-m2", "ernie-moe", "ernie-moe-to-the-end", "phi-moe",
    "llama4", "llama4-tower",
}  # fmt: skip
# Cases that another program has no words for, whatever its hand is asked to write.
FAR = {
    "stablelm", "stablelm-parallel-normed-heads", "falcon-7b", "falcon-40b", "falcon-11b", "falcon-one-after-the-other",
    "phi-2", "phi-normed-heads", "olmo", "olmo-unclipped", "cohere", "cohere-normed-heads", "cohere2", "nemotron",
    "gpt-bigcode", "gpt-bigcode-all-heads", "starcoder2", "olmo3-yarn", "glm", "glm4", "exaone4", "exaone4-global",
    "seed-oss", "ernie", "hunyuan", "ministral",
        "ministral3",
}  # fmt: skip
# Families that neither of them knows, or knows under names that Lathe does not write yet.
SPARSE = {"qwen2-moe", "qwen2-moe-window", "olmoe", "gpt-oss", "deepseek-v2", "deepseek-v2-lite"}
IN_LITGPT = {"stablelm", "phi-2", "phi-normed-heads", "olmo-unclipped"}
REFUSED: dict[str, set[str]] = {
    "litgpt": {
        # its heads are all normed by the same weights, and it does not clip
        *(name for name in FAR if "falcon" not in name and name not in IN_LITGPT),
        *SPARSE,
        *MIXED,
        # its YaRN runs the wrong way
        "llama-yarn", "llama-yarn-attention-betas", "llama-yarn-mscale", "llama-yarn-untruncated", "qwen2-yarn",
        "llama-dynamic", "phi3-longrope", "phi4-mini",
        "smollm3", "smollm3-window", "granite", "gpt2", "gpt2-wide-unscaled",
        "qwen3-moe-some-dense",  # its chosen experts' weights sum to 1
        "deepseek-v3", "deepseek-v3-plain", "kimi-k2",  # its norms all have the latents' epsilon
    },
    "gguf": {
        "ernie-moe",  # a dense layer after the mixtures
        "llama4-tower",  # positions are missing from every fourth layer
        "llama-dynamic", "llama-yarn-untruncated", "smollm3-window", "gpt2-wide-unscaled",
        "qwen3-moe-some-dense",  # its chosen experts' weights sum to 1
        "qwen2-moe-window",  # and here they do not
        "olmoe",  # clipped
        "gemma3",  # what queries are scaled by follows from the sizes
        # Biases: llama.cpp's converter fails on Falcon's, and llama.cpp on what it makes of the others.
        "falcon-40b", "cohere", "seed-oss", "ernie",
        "falcon-one-after-the-other",
        "phi-normed-heads",
        "gpt-oss",  # its clamp is 7
        "deepseek-v2-lite", "deepseek-v3", "deepseek-v3-plain",  # two corrections of a stretch; pairs apart
    },
}  # fmt: skip

# What transformers calls a type of model that has another name where it came from.
KNOWN_AS = {"kimi_k2": "deepseek_v3"}


@dataclass(frozen=True)
class Reference:
    """A tiny model as transformers wrote it, and what transformers answers."""

    case: Case
    folder: Path
    sequences: list[Tensor]
    logits: list[Tensor]  # of each sequence, N V, float32
    half: list[Tensor]  # the same from the weights and the arithmetic of bfloat16

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())


def reference(case: Case, folder: Path) -> Reference:
    """Build the model with random weights, save it to `folder`, and ask it."""
    torch.manual_seed(0)
    config = case.config
    kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    known = config | {"model_type": KNOWN_AS.get(config["model_type"], config["model_type"])}
    theirs = kind.from_config(AutoConfig.for_model(**known), attn_implementation="eager", dtype=torch.float32).eval()
    randomise(theirs)
    theirs.save_pretrained(folder)
    sequences = [torch.randint(TINY["vocab_size"], (n,)) for n in LENGTHS]
    logits = [ask(theirs, sequence) for sequence in sequences]
    half = kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16).eval()
    found = Reference(case, folder, sequences, logits, [ask(half, sequence) for sequence in sequences])
    (folder / "config.json").write_text(json.dumps(found.config | {"model_type": config["model_type"]}))
    return found


def ask(model: PreTrainedModel, sequence: Tensor) -> Tensor:
    if model.config.model_type == "llama4":  # which fails in transformers 5.24 where there is no image
        model = model.language_model
    with torch.inference_mode():
        return model(sequence[None], use_cache=False).logits[0].float()


def randomise(model: PreTrainedModel) -> None:
    """Weights that make every part matter: no zero bias, no norm of one, scores that differ."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(std=0.15)
            elif name.endswith("bias"):
                tensor.normal_(std=0.1)
            else:
                tensor.add_(torch.randn(tensor.shape) * 0.2)  # norms, about one or (Gemma) about zero
