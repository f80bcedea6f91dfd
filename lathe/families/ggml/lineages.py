"""Each lineage that llama.cpp writes: what its keys mean in Hugging Face's words, and what it does to tensors.

Where a file leaves something out, it means what llama.cpp, whose format it is, takes for granted. A new lineage is one
row of LINEAGES, and a function if its keys are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lathe.errors import ConfigError, did_you_mean
from lathe.families import find as family
from lathe.families.ggml.header import Config, Header, dense, named, rope, sizes, turning, windows
from lathe.model.spec import Experts, Spec

Facts = dict[str, Any]
SCORES = {"softmax": 1, "sigmoid": 2}  # ggml's numbers for what a router makes of its logits


@dataclass(frozen=True)
class Lineage:
    """One `general.architecture`.

    architectures: what Hugging Face calls it. config: what its keys mean; tell: keys of its own, back from the parts.
    paired: rows of queries and keys lie in the order in which they turn, neighbour with neighbour. qkv, gate_up: these
    are one tensor.
    """

    architectures: tuple[str, ...]
    config: Callable[[Header], Config]
    tell: Callable[[Mapping[str, Any], Spec], Facts] = lambda config, spec: {}
    paired: bool = False
    qkv: bool = False
    gate_up: bool = False


def config(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The `config.json` of the model in a GGUF file.

    metadata: the file's, and, under their own names, the values of those tensors in SETTINGS that it has. shapes: of
    all its tensors, in torch's order (rows first).

    Raises:
        ConfigError: the architecture is not known, or a key of it is missing, not understood or makes no sense.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in LINEAGES:
        raise ConfigError(
            f'The GGUF file holds a model of the architecture "{arch}", which this version of Lathe does not know.',
            f"It knows {', '.join(LINEAGES)}.",
            did_you_mean(str(arch), LINEAGES),
        )
    header = Header.of(arch, metadata, shapes)
    found = LINEAGES[arch].config(header)
    header.keys.check()
    return found


def find(config: Mapping[str, Any]) -> tuple[str, Lineage]:
    """What llama.cpp calls the architecture of a configuration in Hugging Face's words, and its habits.

    Raises:
        ConfigError: it has no such architecture.
    """
    architecture = family(config).architecture
    for arch, lineage in LINEAGES.items():
        if architecture in lineage.architectures:
            return arch, lineage
    raise ConfigError(f"There is no way to write {architecture} in GGUF.", "llama.cpp does not know it.")


def _llama(header: Header) -> Config:
    """Windows are Mistral's, and llama.cpp itself does not heed them."""
    keys = header.keys
    mixed = keys.size("expert_count", 0, least=0)
    found = dense(header, "MixtralForCausalLM" if mixed else "LlamaForCausalLM")
    window, local = windows(header, found["num_hidden_layers"])
    if window and not all(local):
        raise keys.wrong("attention.sliding_window_pattern", local, "the same for all layers")
    if mixed:
        keys.expect("expert_feed_forward_length", found["intermediate_size"])
        return {**found, "num_local_experts": mixed, **_chosen(header), "sliding_window": window or None}
    keys.expect("expert_used_count", 0)
    if window:
        mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
        return {**found, **mistral, "sliding_window": window}
    return found


def _qwen(header: Header, architecture: str) -> Config:
    """Windows in some layers, which llama.cpp itself does not heed."""
    found = dense(header, architecture)
    window, local = windows(header, found["num_hidden_layers"])
    if not window:
        return found
    return {**found, "use_sliding_window": True, "sliding_window": window, "layer_types": named(local)}


def _chosen(header: Header, norm: bool = True) -> Config:
    """Scores are a softmax, and the weights of the chosen experts sum to 1, or, without `norm`, are what they are."""
    keys = header.keys
    keys.expect("expert_gating_func", SCORES["softmax"])
    keys.expect("expert_weights_norm", norm)
    keys.expect("expert_weights_scale", 1.0)
    return {"num_experts_per_tok": keys.size("expert_used_count")}


def _granite(header: Header) -> Config:
    found, keys = dense(header, "GraniteForCausalLM"), header.keys
    return {
        **found,
        "attention_multiplier": keys.real("attention.scale", found["head_dim"] ** -0.5),
        "embedding_multiplier": keys.real("embedding_scale", 1.0),
        "residual_multiplier": keys.real("residual_scale", 1.0),
        "logits_scaling": keys.real("logit_scale", 1.0),
    }


def _granite_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return {
        "attention.scale": spec.layers[0].mixer.scale,
        "embedding_scale": spec.embed_scale,
        "residual_scale": spec.layers[0].residual,
        "logit_scale": 1 / spec.logit_scale,
    }


def _qwen3moe(header: Header) -> Config:
    keys = header.keys
    found = dense(header, "Qwen3MoeForCausalLM")
    window, local = windows(header, found["num_hidden_layers"])
    if window and not all(local):
        raise keys.wrong("attention.sliding_window_pattern", local, "the same for all layers")
    return {
        **found,
        **({"use_sliding_window": True, "sliding_window": window} if window else {}),
        **_chosen(header),
        "num_experts": keys.size("expert_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _gemma(header: Header) -> Config:
    act = "gelu_pytorch_tanh"
    return {**dense(header, "GemmaForCausalLM"), "hidden_act": act, "hidden_activation": act}


def _gemma2(header: Header) -> Config:
    keys = header.keys
    found = dense(header, "Gemma2ForCausalLM")
    return {
        **found,
        **_gemma_windows(header, found, every=2, window=4096),
        "query_pre_attn_scalar": _gemma_scalar(found, largest=46),
        "attn_logit_softcapping": keys.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.real("final_logit_softcapping", 30.0),
    }


def _gemma3(header: Header) -> Config:
    keys = header.keys
    found = dense(header, "Gemma3ForCausalLM")
    return {
        **found,
        **_gemma_windows(header, found, every=6, window=0),
        "query_pre_attn_scalar": _gemma_scalar(found, largest=62),
        "final_logit_softcapping": keys.real_or_none("final_logit_softcapping"),
        "rope_local_base_freq": keys.real("rope.freq_base_swa", 10_000.0),
    }


def _gemma_windows(header: Header, found: Config, every: int, window: int) -> Config:
    window, local = windows(header, found["num_hidden_layers"], every, window)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": named(local),
        **({"sliding_window": window} if window else {}),
    }


def _gemma_scalar(found: Config, largest: int) -> int:
    """What queries are scaled by is not in the file: llama.cpp tells the largest of a generation by its layers."""
    own = found["hidden_size"] // found["num_attention_heads"]
    return own if found["num_hidden_layers"] == largest else found["head_dim"]


def _phi3(header: Header) -> Config:
    found, keys = sizes(header, "Phi3ForCausalLM"), header.keys
    turned, share = turning(header, found["head_dim"])
    found |= {
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "partial_rotary_factor": share,
        "sliding_window": keys.size("attention.sliding_window", 0, least=0) or None,
        **rope(header, turned),
    }
    if found["rope_scaling"]:  # Phi-3 keeps this one outside
        original = found["rope_scaling"].pop("original_max_position_embeddings", found["max_position_embeddings"])
        found["original_max_position_embeddings"] = original
    return found


def _olmo2(header: Header) -> Config:
    return dense(header, "Olmo2ForCausalLM")


def _alike(header: Header, architecture: str) -> tuple[Config, int]:
    """Sizes where all heads, of queries, keys and values, are alike; and how many channels each has."""
    found = sizes(header, architecture)
    heads, channels = found["num_attention_heads"], found["hidden_size"] // found["num_attention_heads"]
    for name, expected in (("num_key_value_heads", heads), ("head_dim", channels)):
        if found.pop(name) != expected:
            raise ConfigError(f"GGUF metadata has another {name} than {expected}, which {architecture} cannot have.")
    return found, channels


def _neox(header: Header) -> Config:
    """Its activation is not in the file: some have the tanh form, to which llama.cpp rounds the others."""
    keys = header.keys
    found, channels = _alike(header, "GPTNeoXForCausalLM")
    turned, share = turning(header, channels)
    turns = rope(header, turned)
    return {
        **found,
        "layer_norm_eps": keys.real("attention.layer_norm_epsilon"),
        "hidden_act": "gelu",
        "rotary_emb_base": turns["rope_theta"],
        "rotary_pct": share,
        "rope_scaling": turns["rope_scaling"],
        "use_parallel_residual": keys.flag("use_parallel_residual"),
        "attention_bias": "blk.0.attn_qkv.bias" in header.shapes,
    }


def _neox_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return {"use_parallel_residual": spec.layers[0].order == "parallel"}


def _gpt2(header: Header) -> Config:
    found, _ = _alike(header, "GPT2LMHeadModel")
    words = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
    }
    return {
        **{key: value for key, value in found.items() if key not in words.values()},
        **{word: found[key] for word, key in words.items()},
        "layer_norm_epsilon": header.keys.real("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


def _deepseek2(header: Header) -> Config:
    """DeepSeek V3. Attention's keys count the latent as the one key of all heads, except in the oldest files."""
    keys = header.keys
    score, sigmoid = keys.take("expert_gating_func", SCORES["softmax"]), SCORES["sigmoid"]
    if score != sigmoid:
        raise keys.wrong("expert_gating_func", score, f"{sigmoid}, as in DeepSeek V3")
    rank, turned = keys.size("attention.kv_lora_rank"), keys.size("rope.dimension_count")
    key, value = keys.size("attention.key_length"), keys.size("attention.value_length")
    key, value = keys.size("attention.key_length_mla", key), keys.size("attention.value_length_mla", value)
    if key <= turned:
        raise keys.wrong("attention.key_length", key, f"more than the {turned} channels that turn")
    keys.ignore("attention.head_count_kv")
    scaled = rope(header, turned)
    stretch = keys.real("rope.scaling.yarn_log_multiplier", 0.0) * 10
    if scaled["rope_scaling"] and stretch:
        scaled["rope_scaling"] |= {"mscale": stretch, "mscale_all_dim": stretch}
    found = sizes(header, "DeepseekV3ForCausalLM", head_dim=False)
    return {
        **found,
        **scaled,
        "num_experts_per_tok": keys.size("expert_used_count"),
        "num_key_value_heads": found["num_attention_heads"],
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "q_lora_rank": keys.size_or_none("attention.q_lora_rank"),
        "kv_lora_rank": rank,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": key - turned,
        "v_head_dim": value,
        "n_routed_experts": keys.size("expert_count"),
        "n_shared_experts": keys.size("expert_shared_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "n_group": keys.size("expert_group_count", 1),
        "topk_group": keys.size("expert_group_used_count", 1),
        "first_k_dense_replace": keys.size("leading_dense_block_count", 0, least=0),
        "routed_scaling_factor": keys.real("expert_weights_scale", 1.0),
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
    }


def _deepseek2_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    mixtures = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    # YaRN's correction is in the scale of the scores alone, not in what turns.
    found: Facts = {
        "leading_dense_block_count": len(spec.layers) - len(mixtures),
        "rope.scaling.yarn_attn_factor": None,
    }
    stretch = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("mscale_all_dim")
    if stretch:
        found["rope.scaling.yarn_log_multiplier"] = stretch / 10
    if mixtures:
        router, each, shared = mixtures[0].router, mixtures[0].each, mixtures[0].shared
        found |= {
            "expert_shared_count": shared.width // each.width if shared else 0,
            "expert_group_count": router.groups,
            "expert_group_used_count": router.top_groups,
        }
    return found


LINEAGES: dict[str, Lineage] = {
    "llama": Lineage(("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"), _llama, paired=True),
    "granite": Lineage(("GraniteForCausalLM",), _granite, _granite_tells, paired=True),
    "smollm3": Lineage(("SmolLM3ForCausalLM",), partial(dense, architecture="SmolLM3ForCausalLM"), paired=True),
    "qwen2": Lineage(("Qwen2ForCausalLM",), partial(_qwen, architecture="Qwen2ForCausalLM")),
    "qwen3": Lineage(("Qwen3ForCausalLM",), partial(_qwen, architecture="Qwen3ForCausalLM")),
    "qwen3moe": Lineage(("Qwen3MoeForCausalLM",), _qwen3moe),
    "gemma": Lineage(("GemmaForCausalLM",), _gemma),
    "gemma2": Lineage(("Gemma2ForCausalLM",), _gemma2),
    "gemma3": Lineage(("Gemma3ForCausalLM",), _gemma3),
    "phi3": Lineage(("Phi3ForCausalLM",), _phi3, qkv=True, gate_up=True),
    "olmo2": Lineage(("Olmo2ForCausalLM",), partial(dense, architecture="Olmo2ForCausalLM")),
    "gptneox": Lineage(("GPTNeoXForCausalLM",), _neox, _neox_tells, qkv=True),
    "gpt2": Lineage(("GPT2LMHeadModel",), _gpt2, qkv=True),
    "deepseek2": Lineage(("DeepseekV3ForCausalLM",), _deepseek2, _deepseek2_tells),
}
