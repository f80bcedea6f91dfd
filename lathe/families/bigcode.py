"""StarCoder 1 and SantaCoder (GPT-BigCode: GPT-2 with one key head for all), and StarCoder 2: biases, plain MLPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.families.gpt import LAYER, QKV, gpt2
from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, model
from lathe.model.spec import Attention, Layer, LayerNorm, Plain, Spec
from lathe.weights.rules import Adopt, Drop, Prefix, Rename, Reorder, Rule, Split


def gpt_bigcode(keys: Keys) -> Spec:
    keys.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner", "max_batch_size")
    keys.ignore("max_sequence_length", "pad_key_length", "pre_allocate_kv_cache", "validate_runner_input")
    keys.ignore("num_key_value_heads")  # follows from the next
    one = keys.flag("multi_query", True)
    spec = gpt2(keys, act="gelu_pytorch_tanh")
    mixer = spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    layer = replace(spec.layers[0], mixer=replace(mixer, kv_heads=1 if one else mixer.heads))
    return replace(spec, layers=(layer,) * len(spec.layers))


def gpt_bigcode_rules(spec: Spec) -> Sequence[Rule]:
    mixer = spec.layers[0].mixer
    assert isinstance(mixer, Attention)
    disk, queries, keys = "transformer.h.{i}.", mixer.heads * mixer.channels, mixer.kv_heads * mixer.channels
    rules: list[Rule] = [
        *(Adopt(part, "transformer." + part) for part in ("h.", "wte.", "wpe.", "ln_f.")),
        Drop(disk + "attn.bias"),
        Prefix("transformer.wte.", "model.embed_tokens."),
        Prefix("transformer.wpe.", "model.embed_positions."),
        Prefix("transformer.ln_f.", "model.norm."),
    ]
    names = {
        "attn.c_proj": "self_attn.o_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
    }
    for end in ("weight", "bias"):
        fused = disk + "attn.c_attn." + end
        if mixer.kv_heads > 1:  # one head's q, k and v lie together
            rules.append(Reorder(fused, (mixer.heads, 3, mixer.channels), (1, 0, 2)))
        rules.append(Split(fused, tuple(part + end for part in QKV), (queries, keys, keys)))
        rules += [Rename(f"{disk}{a}.{end}", f"{LAYER}{b}.{end}") for a, b in names.items()]
    return rules


def starcoder2(keys: Keys) -> Spec:
    # Left over from StarCoder 1, whose words these were.
    keys.ignore("activation_function", "layer_norm_epsilon")
    keys.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    keys.expect("mlp_type", "default")
    keys.expect("norm_type", "layer_norm")
    keys.expect("scale_attn_weights", True)
    norm, bias = LayerNorm(keys.real("norm_epsilon", 1e-5)), keys.flag("use_bias", True)
    mixer = attention(keys, qkv_bias=bias, out_bias=bias, window=keys.size_or_none("sliding_window"))
    mlp = Plain(keys.size("intermediate_size"), keys.activation("hidden_act", "gelu_pytorch_tanh"), bias)
    return model(keys, [Layer(mixer, mlp, norm)] * depth(keys), norm, tied=True)


def starcoder2_rules(spec: Spec) -> Sequence[Rule]:
    mlp = LAYER + "mlp."
    names = {"c_fc": "up_proj", "c_proj": "down_proj"}
    return [Rename(f"{mlp}{a}.{end}", f"{mlp}{b}.{end}") for a, b in names.items() for end in ("weight", "bias")]
