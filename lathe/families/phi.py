"""Phi 1, 1.5 and 2; Phi-3 and its successors of the same shape: q, k, v in one tensor, gate and up in another."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm
from lathe.model.spec import Attention, Gated, Layer, LayerNorm, Plain, QKNorm, Spec
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
