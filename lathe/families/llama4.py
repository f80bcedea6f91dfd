"""Llama 4: chunks with rotary positions, whole contexts without; a shared expert and one chosen, which is given less.

https://ai.meta.com/blog/llama-4-multimodal-intelligence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, model, norm
from lathe.model.spec import Experts, Gated, Layer, QKNorm, RMSNorm, Router, Spec, Temperature
from lathe.weights.rules import Rename, Rule, Split, Transpose

CHUNKED, FULL = KINDS = ("chunked_attention", "full_attention")


def llama4(keys: Keys) -> Spec:
    keys.ignore("router_aux_loss_coef", "output_router_logits", "router_jitter_noise", "for_llm_compressor")
    layers, every = depth(keys), keys.size("no_rope_layer_interval", 4)
    usual = [int((i + 1) % every != 0) for i in range(layers)]
    turns = keys.numbers("no_rope_layers", usual) or usual  # 1: has rope
    if len(turns) != layers:
        raise keys.wrong("no_rope_layers", list(turns), f"a list of {layers} numbers")
    chunk = keys.size_or_none("attention_chunk_size", 8192)
    kinds = keys.choices("layer_types", KINDS, layers, [CHUNKED if t and chunk else FULL for t in turns])
    part = attention(keys, head_dim=128, base=500_000.0, interleaved=True)
    # A norm without weights, after the turn, and only where there is one.
    normed = (
        QKNorm(RMSNorm(norm(keys, 1e-5).eps, affine=False), turned=True) if keys.flag("use_qk_norm", True) else None
    )
    heat = Temperature(keys.real("attn_scale", 0.1), keys.size("floor_scale", 8192), ahead=1)
    turned = replace(part, qk_norm=normed)
    still = replace(part, rope=None, temperature=heat if keys.take("attn_temperature_tuning", True) else None)
    mixers = [
        replace(turned if t else still, chunk=chunk if kind == CHUNKED else None)
        for t, kind in zip(turns, kinds, strict=True)
    ]
    step, act = keys.size("interleave_moe_layer_step", 1), keys.activation("hidden_act", "silu")
    mixed_at = keys.numbers("moe_layers", list(range(step - 1, layers, step)))
    dense, each = (
        Gated(keys.size("intermediate_size_mlp", 16384), act),
        Gated(keys.size("intermediate_size", 8192), act),
    )
    count = keys.size("num_local_experts", 16)
    router = Router(count, keys.size("num_experts_per_tok", 1, most=count), score="sigmoid", renormalise=False)
    mixed = Experts(each, router, shared=each, weighs="input")
    mlps = [mixed if i in mixed_at else dense for i in range(layers)]
    made = [Layer(mixer, mlp, norm(keys, 1e-5)) for mixer, mlp in zip(mixers, mlps, strict=True)]
    return model(keys, made, norm(keys, 1e-5))


def llama4_rules(spec: Spec) -> Sequence[Rule]:
    """Experts are stacked, with rows and columns exchanged, each one's gate beside its up."""
    disk, memory = "model.layers.{i}.feed_forward.", "model.layers.{i}.mlp."
    mixed = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    names = ("gate_proj", "up_proj", "down_proj")
    found: list[Rule] = [
        Rename(disk + "router.weight", memory + "gate.weight"),
        *(Rename(f"{disk}{w}.weight", f"{memory}{w}.weight") for w in names),
        *(Rename(f"{disk}shared_expert.{w}.weight", f"{memory}shared_experts.{w}.weight") for w in names),
    ]
    for name in ("gate_up_proj", "down_proj"):
        whole = f"{memory}experts.{name}.weight"
        found += [Rename(f"{disk}experts.{name}", whole), Transpose(whole)]
    for mlp in mixed[:1]:
        parts = tuple(f"{memory}experts.{name}.weight" for name in names[:2])
        found.append(Split(f"{memory}experts.gate_up_proj.weight", parts, (mlp.each.width,) * 2, 1))
    return found
