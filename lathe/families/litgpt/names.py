"""LitGPT's names for tensors become our names, and back, derived from the parts of a Spec; knows no family."""

from __future__ import annotations

from lathe.model.spec import Attention, Experts, Gated, Mlp, Order, Spec
from lathe.weights.rules import Adopt, Prefix, Rename, Rule, Split, Stack, Twin

DISK, MEMORY = "transformer.h.{i}.", "model.layers.{i}."

NORMS: dict[Order, dict[str, str]] = {
    "pre": {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"},
    "parallel": {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"},
    "post": {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"},
    "sandwich": {
        "norm_1": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "norm_2": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    },
}
ATTENTION = {"attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm", "attn.proj": "self_attn.o_proj"}
LATENT = {
    "attn.q_a_proj": "self_attn.q_a_proj",
    "attn.q_a_norm": "self_attn.q_a_layernorm",
    "attn.q_b_proj": "self_attn.q_b_proj",
    "attn.kv_a_proj_with_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn.kv_a_norm": "self_attn.kv_a_layernorm",
    "attn.kv_b_proj": "self_attn.kv_b_proj",
    "attn.proj": "self_attn.o_proj",
}
GATED = {"fc_1": "gate_proj", "fc_2": "up_proj", "proj": "down_proj"}
PLAIN = {"fc": "up_proj", "proj": "down_proj"}


def rules(spec: Spec) -> list[Rule]:
    """What LitGPT's files call the tensors of `spec`; `lm_head` has the same name in both hands."""
    mixer, names = spec.layers[0].mixer, dict(NORMS[spec.layers[0].order])
    # torch.compile leaves its mark on the names of what it has wrapped.
    found: list[Rule] = [
        Adopt("_orig_mod.", ""),
        Prefix("transformer.wte.", "model.embed_tokens."),
        Prefix("transformer.ln_f.", "model.norm."),
    ]
    if isinstance(mixer, Attention):
        names |= ATTENTION
        rows = (mixer.heads * mixer.channels, *(mixer.kv_heads * mixer.channels,) * 2)
        for end in ("weight", "bias"):
            parts = tuple(f"{MEMORY}self_attn.{part}_proj.{end}" for part in "qkv")
            found.append(Split(f"{DISK}attn.qkv.{end}", parts, rows))
    else:
        names |= LATENT
    for mlp in dict.fromkeys(layer.mlp for layer in spec.layers):
        names |= _mlp(mlp)
        if isinstance(mlp, Experts):
            found += [
                Rename(DISK + "mlp.gate.e_score_correction_bias", MEMORY + "mlp.gate.e_score_correction_bias"),
                *(
                    Stack(f"{DISK}mlp.experts.{{e}}.{a}.weight", f"{MEMORY}mlp.experts.{b}.weight", mlp.router.count)
                    for a, b in GATED.items()
                ),
            ]
    for end in ("weight", "bias"):
        found += [Rename(f"{DISK}{disk}.{end}", f"{MEMORY}{memory}.{end}") for disk, memory in names.items()]
    if spec.tied:
        found.append(Twin("model.embed_tokens.weight", "lm_head.weight"))
    return found


def _mlp(mlp: Mlp) -> dict[str, str]:
    if isinstance(mlp, Experts):
        shared = {f"mlp.shared_experts.{disk}": f"mlp.shared_experts.{memory}" for disk, memory in GATED.items()}
        return {"mlp.gate": "mlp.gate", **(shared if mlp.shared else {})}
    return {f"mlp.{disk}": f"mlp.{memory}" for disk, memory in (GATED if isinstance(mlp, Gated) else PLAIN).items()}
