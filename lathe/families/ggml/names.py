"""ggml's names and layouts of tensors become ours, and back, derived from a Spec's parts and a lineage's habits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.families.ggml.header import SETTINGS
from lathe.families.ggml.lineages import Lineage, find
from lathe.model.spec import Attention, Experts, Gated, LatentAttention, Mlp, Norm, Order, Spec
from lathe.weights.rules import Drop, Inverse, Old, Prefix, Rename, Reorder, Rule, Shift, Split, Stack, Transpose

DISK, MEMORY = "blk.{i}.", "model.layers.{i}."

NORMS: dict[Order, dict[str, str]] = {
    "pre": {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    "parallel": {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    "shared": {"attn_norm": "input_layernorm"},
    "post": {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
    "sandwich": {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
ATTENTION = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "attn_output": "self_attn.o_proj"}
CORRECTION = DISK + "exp_probs_b.bias", MEMORY + "mlp.gate.e_score_correction_bias"
SINKS = DISK + "attn_sinks.weight", MEMORY + "self_attn.sinks"
LATENT = {
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_output": "self_attn.o_proj",
}
GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
PLAIN = {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}


def rules(config: Mapping[str, Any], spec: Spec) -> list[Rule]:
    """What a GGUF file calls the tensors of `spec`. config: in Hugging Face's words, as `config` gives it.

    Raises:
        ConfigError: llama.cpp has no such architecture.
    """
    _, lineage = find(config)
    mixer, order = spec.layers[0].mixer, spec.layers[0].order
    names, found = dict(lineage.norms.get(order, NORMS[order])), _alone()
    if lineage.ahead:
        found.append(Drop(f"blk.{len(spec.layers)}.*"))
    if isinstance(mixer, Attention):
        names |= ATTENTION
        found += _attention(mixer, lineage)
    else:
        names |= LATENT
        found += _latent(mixer)
    for mlp in dict.fromkeys(layer.mlp for layer in spec.layers):
        if isinstance(mlp, Gated) and lineage.gate_up:
            parts = (f"{MEMORY}mlp.gate_proj.weight", f"{MEMORY}mlp.up_proj.weight")
            found.append(Split(DISK + "ffn_up.weight", parts, (mlp.width, mlp.width)))
            names["ffn_down"] = "mlp.down_proj"
        else:
            names |= _mlp(mlp)
    for end in ("weight", "bias"):
        found += [Rename(f"{DISK}{disk}.{end}", f"{MEMORY}{memory}.{end}") for disk, memory in names.items()]
    return [*found, *_shifts(spec.norm, names)]


def _alone() -> list[Rule]:
    """What has a name of its own, outside the layers and in them."""
    return [
        *(Drop(name) for name in (*SETTINGS, DISK + "attn_rot_embd.weight")),
        Rename(*SINKS),
        # Some converters make it a matrix of one row, which is the same to llama.cpp.
        Old(Inverse(Stack(CORRECTION[1] + ".{e}", CORRECTION[0], 1))),
        Old(Rename(CORRECTION[1] + ".0", CORRECTION[1])),
        Rename(*CORRECTION),
        Prefix("token_embd.", "model.embed_tokens."),
        Prefix("position_embd.", "model.embed_positions."),
        Prefix("output_norm.", "model.norm."),
        Prefix("output.", "lm_head."),
    ]


def _attention(mixer: Attention, lineage: Lineage) -> list[Rule]:
    """Queries, keys and values are read together or apart; the last of two ways to write is the one that is used."""
    heads = {"q": mixer.heads, "k": mixer.kv_heads, "v": mixer.kv_heads}
    found: list[Rule] = []
    for end in ("weight", "bias"):
        memory = {part: f"{MEMORY}self_attn.{part}_proj.{end}" for part in heads}
        rows = tuple(count * mixer.channels for count in heads.values())
        together: list[Rule] = [Split(f"{DISK}attn_qkv.{end}", tuple(memory.values()), rows)]
        apart: list[Rule] = [Rename(f"{DISK}attn_{part}.{end}", name) for part, name in memory.items()]
        found += apart + together if lineage.qkv else together + apart
        if lineage.paired:
            # Rows of a head: pairs by two on disk, two halves in memory.
            found += [Reorder(memory[p], (heads[p], mixer.channels // 2, 2), (0, 2, 1)) for p in "qk"]
    return found


def _latent(mixer: LatentAttention) -> list[Rule]:
    """The unfolding of keys, transposed, and of values, each stacked by heads; in old files, as in memory."""
    whole, keys, values = f"{MEMORY}self_attn.kv_b_proj.weight", f"{DISK}k_b.{{e}}.weight", f"{DISK}v_b.{{e}}.weight"
    parts = [part.replace("{e}", str(head)) for head in range(mixer.heads) for part in (keys, values)]
    return [
        Rename(DISK + "attn_kv_b.weight", whole),
        Inverse(Stack(keys, DISK + "attn_k_b.weight", mixer.heads)),
        Inverse(Stack(values, DISK + "attn_v_b.weight", mixer.heads)),
        Transpose(keys),
        Inverse(Split(whole, tuple(parts), (mixer.plain_channels, mixer.value_channels) * mixer.heads)),
    ]


def _mlp(mlp: Mlp) -> dict[str, str]:
    if isinstance(mlp, Experts):
        return EXPERTS
    return GATED if isinstance(mlp, Gated) else PLAIN


def _shifts(norm: Norm, names: dict[str, str]) -> list[Rule]:
    """llama.cpp has no norm that adds something to its weights: what it adds is in them."""
    if not norm.offset:
        return []
    norms = [MEMORY + name for name in names.values() if name.endswith("norm")]
    return [Shift(f"{name}.weight", norm.offset) for name in ("model.norm", *norms)]
