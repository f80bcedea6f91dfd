"""Hunyuan, dense: each head of queries and keys is normed after it has turned; a stretched base for long contexts."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.families import positions
from lathe.families.keys import Keys
from lathe.families.llama import attention, context, depth, gated, model, norm
from lathe.model.spec import Layer, QKNorm, Rope, Spec
from lathe.weights.rules import Rename, Rule


def hunyuan(keys: Keys) -> Spec:
    # What the larger models of the lineage have, and these have not.
    keys.expect("use_cla", False)
    keys.expect("num_experts", 1)
    keys.expect("add_classification_head", False)
    keys.expect("use_qk_norm", True)
    keys.expect("use_rotary_pos_emb", True)
    keys.expect("norm_type", "rms")
    keys.ignore("attention_head_dim", "cla_share_factor", "class_num", "dense_list", "pool_type", "mask_init_id")
    keys.ignore("eod_token_id", "pad_id", "im_start_id", "im_end_id", "im_newline_id", "text_start_id", "text_end_id")
    keys.ignore("org_vocab_size", "moe_topk", "moe_intermediate_size")
    mixer = attention(keys, turn=_turn, qk_norm=QKNorm(norm(keys, 1e-5), turned=True))
    return model(keys, [Layer(mixer, gated(keys), norm(keys, 1e-5))] * depth(keys), norm(keys, 1e-5))


def _turn(keys: Keys, channels: int) -> Rope:
    """Called "dynamic" in the files, but with `alpha` the base is stretched once, whatever the length."""
    new, old = keys.part("rope_parameters"), keys.part("rope_scaling")
    part = new if new.config else old
    alpha = part.real_or_none("alpha", above=0)
    if alpha is None:
        return positions.rope(keys, channels, context(keys))
    part.expect("type", "dynamic")
    part.expect("rope_type", "dynamic")
    part.ignore("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
    base = part.real("rope_theta", keys.real("rope_theta", 10_000.0, above=1), above=1)
    return Rope(base * alpha ** (channels / (channels - 2)), channels)


def hunyuan_rules(spec: Spec) -> Sequence[Rule]:
    mixer = "model.layers.{i}.self_attn."
    names = {"query_layernorm": "q_norm", "key_layernorm": "k_norm"}
    return [Rename(f"{mixer}{a}.weight", f"{mixer}{b}.weight") for a, b in names.items()]
