"""Falcon: attention and MLP side by side; one key head for all (7B), or groups, and a norm for each (40B)."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.families.keys import Keys
from lathe.families.llama import context
from lathe.families.positions import rope
from lathe.model.spec import Attention, Layer, LayerNorm, Order, Plain, Spec
from lathe.weights.rules import Adopt, Drop, Prefix, Rename, Reorder, Rule, Split

OLDER = ("RWForCausalLM", "RefinedWebModel", "RefinedWeb")


def falcon(keys: Keys) -> Spec:
    """Also in the words of the first files, `RefinedWeb`, where only a model of the new kind has `n_head_kv`."""
    if keys.flag("alibi", False):
        raise keys.wrong("alibi", True, "false: Lathe has no positions that are added to the scores (ALiBi)")
    keys.expect("apply_residual_connection_post_layernorm", False)
    keys.ignore("ff_factor")  # of which `ffn_hidden_size` is what came
    norm = LayerNorm(keys.real("layer_norm_epsilon", 1e-5))
    width, heads = keys.size("hidden_size"), keys.size(_word(keys, "num_attention_heads", "n_head"))
    kv = keys.size("num_kv_heads", keys.size("n_head_kv", heads))
    grouped = keys.flag("new_decoder_architecture", "n_head_kv" in keys.config)
    if keys.flag("multi_query", True) and not grouped:
        kv = 1
    if heads % kv:
        raise keys.wrong("num_kv_heads", kv, f"a divisor of the {heads} attention heads")
    channels, bias = width // heads, keys.flag("bias", False)
    mixer = Attention(
        heads, kv, channels, channels**-0.5, rope(keys, channels, context(keys)), qkv_bias=bias, out_bias=bias
    )
    mlp = Plain(keys.size("ffn_hidden_size", 4 * width), keys.activation("activation", "gelu"), bias)
    layer = Layer(mixer, mlp, norm, _order(keys, grouped))
    return Spec(
        vocab=keys.size("vocab_size"),
        width=width,
        layers=(layer,) * keys.size(_word(keys, "num_hidden_layers", "n_layer")),
        norm=norm,
        context=context(keys),
        tied=keys.flag("tie_word_embeddings", True),
    )


def _word(keys: Keys, new: str, old: str) -> str:
    return old if old in keys.config and new not in keys.config else new


def _order(keys: Keys, grouped: bool) -> Order:
    beside = keys.flag("parallel_attn", True)
    norms = keys.size("num_ln_in_parallel_attn", 2 if grouped else 1, most=2)
    if grouped and norms == 2:
        return "parallel"
    return "shared" if grouped or beside else "pre"


def falcon_rules(spec: Spec) -> Sequence[Rule]:
    layer = spec.layers[0]
    assert isinstance(layer.mixer, Attention)
    disk, memory = "transformer.h.{i}.", "model.layers.{i}."
    sided = layer.order == "parallel"
    names = {
        "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
        "ln_attn" if sided else "input_layernorm": "input_layernorm",
        "ln_mlp" if sided else "post_attention_layernorm": "post_attention_layernorm",
    }
    rules: list[Rule] = [
        *(Adopt(part, "transformer." + part) for part in ("h.", "word_embeddings.", "ln_f.")),
        Drop(disk + "self_attention.rotary_emb.inv_freq"),
        Prefix("transformer.word_embeddings.", "model.embed_tokens."),
        Prefix("transformer.ln_f.", "model.norm."),
    ]
    for end in ("weight", "bias"):
        rules += _queries(
            layer.mixer, disk + "self_attention.query_key_value." + end, memory + "self_attn.{p}_proj." + end
        )
        rules += [Rename(f"{disk}{a}.{end}", f"{memory}{b}.{end}") for a, b in names.items()]
    return rules


def _queries(mixer: Attention, fused: str, apart: str) -> list[Rule]:
    """The queries of one group lie before its key and value, then those of the next group."""
    groups, each, channels = mixer.kv_heads, mixer.heads // mixer.kv_heads, mixer.channels
    parts = tuple(apart.replace("{p}", part) for part in "qkv")
    rules: list[Rule] = [Split(fused, parts, (groups * each * channels, *(groups * channels,) * 2))]
    if groups > 1:
        rules.insert(0, Reorder(fused, (groups, each + 2, channels), (1, 0, 2)))
        if each > 1:
            rules.append(Reorder(parts[0], (each, groups, channels), (1, 0, 2)))
    return rules
