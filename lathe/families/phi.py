"""Phi 1, 1.5 and 2; Phi-3 and its successors of the same shape: q, k, v in one tensor, gate and up in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.families import positions
from lathe.families.keys import Keys
from lathe.families.llama import attention, context, depth, gated, model, norm
from lathe.model.spec import (
    Attention,
    Experts,
    Gated,
    Layer,
    LayerNorm,
    LongRope,
    Plain,
    QKNorm,
    Rope,
    SparseMixer,
    Spec,
)
from lathe.weights.rules import Prefix, Rename, Rule, Split


def phi(keys: Keys) -> Spec:
    norm = LayerNorm(keys.real("layer_norm_eps", 1e-5))
    normed = QKNorm(norm) if keys.flag("qk_layernorm", False) else None
    mixer = attention(keys, partial=0.5, qkv_bias=True, out_bias=True, qk_norm=normed)
    mlp = Plain(keys.size("intermediate_size"), keys.activation("hidden_act", "gelu_new"))
    return model(keys, [Layer(mixer, mlp, norm, "shared")] * depth(keys), norm, head_bias=True)


def phi_rules(spec: Spec) -> Sequence[Rule]:
    layer = "model.layers.{i}."
    names = {
        "self_attn.dense": "self_attn.o_proj",
        "self_attn.q_layernorm": "self_attn.q_norm",
        "self_attn.k_layernorm": "self_attn.k_norm",
        "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
    }
    ends = ("weight", "bias")
    return [
        Prefix("model.final_layernorm.", "model.norm."),
        *(Rename(f"{layer}{a}.{end}", f"{layer}{b}.{end}") for a, b in names.items() for end in ends),
    ]


def phi3(keys: Keys) -> Spec:
    keys.expect("full_attn_mod", 1)  # Phi-4-mini's switches, at their neutral values
    keys.expect("interpolate_factor", 1)
    keys.expect("lm_head_bias", False)
    layer = Layer(attention(keys, window=keys.size_or_none("sliding_window")), gated(keys), norm(keys, 1e-5))
    return model(keys, [layer] * depth(keys), norm(keys, 1e-5))


def phi3_rules(spec: Spec) -> Sequence[Rule]:
    mixer = spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    layer = "model.layers.{i}."
    queries, keys = mixer.heads * mixer.channels, mixer.kv_heads * mixer.channels
    return [
        Split(
            layer + "self_attn.qkv_proj.weight",
            tuple(layer + f"self_attn.{name}_proj.weight" for name in "qkv"),
            (queries, keys, keys),
        ),
        gate_up(spec),
    ]


def gate_up(spec: Spec) -> Rule:
    """Both in one tensor, the gate first."""
    mlp, name = spec.layers[0].mlp, "model.layers.{i}.mlp."
    assert isinstance(mlp, Gated)
    return Split(name + "gate_up_proj.weight", (name + "gate_proj.weight", name + "up_proj.weight"), (mlp.width,) * 2)


def phimoe(keys: Keys) -> Spec:
    """Phi-3.5-MoE: LayerNorm, a biased head, two experts chosen one after the other."""
    keys.ignore("router_aux_loss_coef", "output_router_logits", "input_jitter_noise")
    count = keys.size("num_local_experts", 16)
    chosen = keys.size("num_experts_per_tok", 2, most=min(count, 2))
    router = SparseMixer(count, chosen, keys.real("router_jitter_noise", 0.01))
    mixer = attention(keys, turn=_stretched, window=keys.size_or_none("sliding_window"))
    keys.expect("mlp_bias", False)
    normed = LayerNorm(keys.real("rms_norm_eps", 1e-5))
    layer = Layer(mixer, Experts(gated(keys), router), normed)
    bias = keys.flag("lm_head_bias", False)
    return model(keys, [layer] * depth(keys), normed, head_bias=bias)


def _stretched(keys: Keys, channels: int) -> Rope:
    """Positions, whose cosines and sines have one factor for short sequences and one for long; we know them equal."""
    part = next((keys.part(n) for n in ("rope_parameters", "rope_scaling") if keys.part(n).config), keys.part("rope"))
    short, long = part.real_or_none("short_mscale"), part.real_or_none("long_mscale")
    turn = positions.rope(keys, channels, context(keys), base=1e6)
    if short != long:
        raise part.wrong("long_mscale", long, f"{short}, as short_mscale")
    if short is None or not isinstance(turn.scaling, LongRope):
        return turn
    return replace(turn, scaling=replace(turn.scaling, attention=short))
