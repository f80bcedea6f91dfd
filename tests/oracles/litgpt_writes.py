"""Record what LitGPT makes of small models, for test_hands.py: configuration, names, shapes and logits.

    python tests/oracles/litgpt_writes.py

in an environment with litgpt 0.5.13 (which needs none of Lathe). Writes tests/data/litgpt.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from litgpt import GPT, Config
from litgpt.config import configs

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from patterned import pattern  # noqa: E402

TOKENS = [1, 5, 9, 30, 2, 2, 17, 8, 11, 4, 27, 3]  # longer than the windows
KEPT = 3  # the last positions, whose logits are recorded
TINY = {"block_size": 64, "vocab_size": 29, "padded_vocab_size": 32, "n_embd": 32, "n_head": 4, "intermediate_size": 24}
PAIRS = {"n_layer": 2, "n_query_groups": 2}
GEMMA = {**PAIRS, "head_size": 12, "n_layer": 3, "attention_scores_scalar": 10, "sliding_window_size": 5}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16}
EXPERTS = {"n_expert": 6, "n_expert_per_token": 2, "moe_intermediate_size": 20}
LATENT = {"q_lora_rank": 20, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}
GROUPED = {"n_shared_expert": 1, "n_expert_groups": 3, "n_topk_groups": 2, "n_topk_scores_per_group": 2}

# a name for the test -> (a published configuration, changes that make it small)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "neox": ("pythia-14m", {"n_layer": 2}),
    "neox-sequential": ("pythia-14m", {"n_layer": 2, "parallel_residual": False, "gelu_approximate": "tanh"}),
    "stablelm": ("stablelm-3b-4e1t", PAIRS),
    "stablelm-beside": ("stablelm-3b-4e1t", {
        **PAIRS, "parallel_residual": True, "shared_attention_norm": True, "attn_bias": True,
    }),
    "falcon-7b": ("falcon-7b", {"n_layer": 2, "n_query_groups": 1}),
    "falcon-40b": ("falcon-40b", {**PAIRS, "bias": True}),
    "falcon-one-norm": ("falcon-40b", {**PAIRS, "shared_attention_norm": True}),
    "falcon-sequential": ("falcon-7b", {
        "n_layer": 2, "n_query_groups": 4, "parallel_residual": False, "shared_attention_norm": False,
    }),
    "phi-2": ("phi-2", {"n_layer": 2, "rotary_percentage": 0.5}),
    "phi-normed": ("phi-1_5", {**PAIRS, "norm_qk": True}),
    "olmo": ("OLMo-1B-hf", PAIRS),
    "llama-2": ("Llama-2-7b-hf", {"n_layer": 2}),
    "llama-3": ("Llama-3.2-1B", {**PAIRS, "rope_adjustments": LLAMA3}),
    "llama-32k": ("LLaMA-2-7B-32K", {"n_layer": 2, "rope_adjustments": {"factor": 1.5}}),
    "llama-biased": ("Llama-3.2-1B", {**PAIRS, "rope_adjustments": None, "bias": True}),
    "mistral": ("Mistral-7B-v0.1", {**PAIRS, "sliding_window_size": 5}),
    "mixtral": ("Mixtral-8x7B-v0.1", {**PAIRS, "n_expert": 5}),
    "phi-3": ("Phi-3-mini-4k-instruct", {"n_layer": 2, "sliding_window_size": 5}),
    "phi-4-mini": ("Phi-4-mini-instruct", PAIRS),
    "qwen-2.5": ("Qwen2.5-0.5B", PAIRS),
    "qwen-3": ("Qwen3-0.6B", {**PAIRS, "head_size": 12}),
    "qwen-3-moe": ("Qwen3-30B-A3B", {**PAIRS, **EXPERTS, "head_size": 12, "n_layer": 3, "first_k_dense_replace": 1}),
    "olmo-2": ("OLMo-2-1124-7B", PAIRS),
    "gemma": ("Gemma-2b", {"n_layer": 2, "head_size": 12, "n_query_groups": 1}),
    "gemma-2": ("Gemma-2-2b", {**GEMMA, "attention_logit_softcapping": 0.5, "final_logit_softcapping": 2.0}),
    "gemma-3": ("Gemma-3-1b-it", {
        **GEMMA, "sliding_window_indices": [1, 0, 1], "rope_indices": [1, 0, 1], "rope_adjustments": {"factor": 8.0},
    }),
    "deepseek-v3": ("Qwen3-30B-A3B", {
        **EXPERTS, **GROUPED, "n_layer": 3, "n_query_groups": 4, "head_size": None,
        "norm_qk": False, "latent_attention": LATENT, "first_k_dense_replace": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 2.5, "rope_interleave": True,
    }),
}  # fmt: skip


def record(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    config = Config.from_name(name, **{**TINY, **changes})
    model = GPT(config).eval()
    for key, tensor in model.state_dict().items():
        tensor.copy_(pattern(key, tensor.shape))
    with torch.inference_mode():
        logits = model(torch.tensor([TOKENS]))[0, -KEPT:]
    return {
        "config": asdict(config),
        "tensors": {key: list(tensor.shape) for key, tensor in model.state_dict().items()},
        "logits": [[float(f"{x:.7g}") for x in row] for row in logits.tolist()],
    }


def published() -> dict[str, dict[str, Any]]:
    """Every configuration that LitGPT has a name for: what differs from what a key left out means."""
    plain = {field.name: field.default for field in fields(Config)}
    found = {}
    for row in configs:
        whole = asdict(Config(**row))
        found[row["name"]] = {key: value for key, value in whole.items() if value != plain[key] and key != "hf_config"}
    return found


torch.set_grad_enabled(False)
rows = [f'"{name}": {json.dumps(record(*case))}' for name, case in CASES.items()]
known = [f'"{name}": {json.dumps(config)}' for name, config in published().items()]
(TESTS / "data" / "litgpt.json").write_text(
    f'{{"tokens": {TOKENS},\n"models": {{\n'
    + ",\n".join(rows)
    + '\n},\n"published": {\n'
    + ",\n".join(known)
    + "\n}}\n"
)
