"""GLM-4 9B: half of each head turns, neighbour with neighbour; gate and up in one tensor. GLM-4 0414: four norms."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.families.deepseek import corrected
from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm
from lathe.families.phi import gate_up
from lathe.model.spec import Layer, Order, QKNorm, Spec
from lathe.weights.rules import Rename, Rule

EPS = 0.00000015625


def glm(keys: Keys) -> Spec:
    return _glm(keys, "pre")


def glm4(keys: Keys) -> Spec:
    return _glm(keys, "sandwich")


def _glm(keys: Keys, order: Order) -> Spec:
    bias = keys.flag("attention_bias", True)
    mixer = attention(keys, head_dim=128, partial=0.5, interleaved=True, qkv_bias=bias, out_bias=False)
    return model(keys, [Layer(mixer, gated(keys), norm(keys, EPS), order)] * depth(keys), norm(keys, EPS))


def glm4_moe(keys: Keys) -> Spec:
    """GLM 4.5: half of each head turns, half apart; experts as DeepSeek V3 chooses them. arXiv:2508.06471"""
    # Tensors of the extra layers that predict further ahead are dropped, as in `v3_rules`.
    keys.ignore("num_nextn_predict_layers", "num_mtp_layers", "router_aux_loss_coef", "output_router_logits")
    bias = keys.flag("attention_bias", False)
    normed = QKNorm(norm(keys, 1e-5)) if keys.flag("use_qk_norm", False) else None
    mixer = attention(keys, partial=0.5, qkv_bias=bias, out_bias=False, qk_norm=normed)
    mlps = corrected(keys, each=1408, count=128, groups=1, top=1, scale=1.0, first=1)
    return model(keys, [Layer(mixer, mlp, norm(keys, 1e-5)) for mlp in mlps], norm(keys, 1e-5))


def glm_rules(spec: Spec) -> Sequence[Rule]:
    return [gate_up(spec)]


def glm4_rules(spec: Spec) -> Sequence[Rule]:
    names = {  # in an order in which no name is taken twice
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "post_self_attn_layernorm": "post_attention_layernorm",
        "post_mlp_layernorm": "post_feedforward_layernorm",
    }
    layer = "model.layers.{i}."
    return [gate_up(spec), *(Rename(f"{layer}{a}.weight", f"{layer}{b}.weight") for a, b in names.items())]
