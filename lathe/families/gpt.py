"""GPT-2 and GPT-NeoX: LayerNorm, biases everywhere, q, k and v in one tensor (whole after whole, or head by head)."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.families.keys import Keys
from lathe.families.llama import context, depth, model
from lathe.families.positions import rope
from lathe.model.spec import Attention, Layer, LayerNorm, Plain, Spec
from lathe.weights.rules import Adopt, Drop, Prefix, Rename, Reorder, Rule, Split, Transpose

LAYER = "model.layers.{i}."
QKV = tuple(LAYER + f"self_attn.{name}_proj." for name in "qkv")


def neox(keys: Keys) -> Spec:
    norm = LayerNorm(keys.real("layer_norm_eps", 1e-5))
    heads, width = keys.size("num_attention_heads"), keys.size("hidden_size")
    channels, bias = width // heads, keys.flag("attention_bias", True)
    base, partial = keys.real("rotary_emb_base", 10_000.0, above=1), keys.real("rotary_pct", 0.25, above=0)
    turn = rope(keys, channels, context(keys), base=base, partial=partial)
    mixer = Attention(heads, heads, channels, channels**-0.5, turn, bias, bias)
    mlp = Plain(keys.size("intermediate_size"), keys.activation("hidden_act", "gelu"))
    parallel = keys.flag("use_parallel_residual", True)
    return model(keys, [Layer(mixer, mlp, norm, "parallel" if parallel else "pre")] * depth(keys), norm)


def neox_rules(spec: Spec) -> Sequence[Rule]:
    mixer = spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    disk = "gpt_neox.layers.{i}."
    rules: list[Rule] = [
        Drop(disk + "attention.bias"),
        Drop(disk + "attention.masked_bias"),
        Drop(disk + "attention.rotary_emb.inv_freq"),
        Rename("gpt_neox.embed_in.weight", "model.embed_tokens.weight"),
        Rename("embed_out.weight", "lm_head.weight"),
    ]
    for end in ("weight", "bias"):
        fused = disk + "attention.query_key_value." + end
        rules += [
            # One head's q, k and v lie together.
            Reorder(fused, (mixer.heads, 3, mixer.channels), (1, 0, 2)),
            Split(fused, tuple(part + end for part in QKV), (mixer.heads * mixer.channels,) * 3),
            Rename(disk + "attention.dense." + end, LAYER + "self_attn.o_proj." + end),
            Rename(disk + "mlp.dense_h_to_4h." + end, LAYER + "mlp.up_proj." + end),
            Rename(disk + "mlp.dense_4h_to_h." + end, LAYER + "mlp.down_proj." + end),
            Rename(disk + "input_layernorm." + end, LAYER + "input_layernorm." + end),
            Rename(disk + "post_attention_layernorm." + end, LAYER + "post_attention_layernorm." + end),
            Rename("gpt_neox.final_layer_norm." + end, "model.norm." + end),
        ]
    return rules


def gpt2(keys: Keys, act: str = "gelu_new") -> Spec:
    keys.ignore("n_ctx", "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout")
    keys.ignore("summary_proj_to_labels", "reorder_and_upcast_attn")
    keys.expect("scale_attn_by_inverse_layer_idx", False)
    heads, width, positions = keys.size("n_head"), keys.size("n_embd"), keys.size("n_positions", 1024)
    channels = width // heads
    scale = channels**-0.5 if keys.flag("scale_attn_weights", True) else 1.0
    norm = LayerNorm(keys.real("layer_norm_epsilon", 1e-5))
    mlp = Plain(keys.size_or_none("n_inner") or 4 * width, keys.activation("activation_function", act))
    mixer = Attention(heads, heads, channels, scale, rope=None, qkv_bias=True, out_bias=True)
    return Spec(
        vocab=keys.size("vocab_size"),
        width=width,
        layers=(Layer(mixer, mlp, norm),) * keys.size("n_layer"),
        norm=norm,
        context=positions,
        tied=keys.flag("tie_word_embeddings", True),
        learned_positions=positions,
    )


def gpt2_rules(spec: Spec) -> Sequence[Rule]:
    disk = "transformer.h.{i}."
    rules: list[Rule] = [
        *(Adopt(part, "transformer." + part) for part in ("h.", "wte.", "wpe.", "ln_f.")),
        Drop(disk + "attn.bias"),
        Drop(disk + "attn.masked_bias"),
        Prefix("transformer.wte.", "model.embed_tokens."),
        Prefix("transformer.wpe.", "model.embed_positions."),
        Prefix("transformer.ln_f.", "model.norm."),
        # Conv1D keeps a matrix as inputs x outputs.
        *(Transpose(disk + name + ".weight") for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    ]
    for end in ("weight", "bias"):
        rules += [
            Split(disk + "attn.c_attn." + end, tuple(part + end for part in QKV), (spec.width,) * 3),
            Rename(disk + "attn.c_proj." + end, LAYER + "self_attn.o_proj." + end),
            Rename(disk + "mlp.c_fc." + end, LAYER + "mlp.up_proj." + end),
            Rename(disk + "mlp.c_proj." + end, LAYER + "mlp.down_proj." + end),
            Rename(disk + "ln_1." + end, LAYER + "input_layernorm." + end),
            Rename(disk + "ln_2." + end, LAYER + "post_attention_layernorm." + end),
        ]
    return rules
