"""DeepSeek V2 and V3: latent attention, experts chosen in groups, some dense layers first.

arXiv:2405.04434, arXiv:2412.19437
"""

from __future__ import annotations

from collections.abc import Sequence

from lathe.families import positions
from lathe.families.keys import Keys
from lathe.families.llama import context, depth, gated, model, norm
from lathe.families.qwen import expert_rules
from lathe.model.spec import Experts, Gated, LatentAttention, Layer, RMSNorm, Router, Spec, Yarn
from lathe.weights.rules import Drop, Rule


def v3(keys: Keys) -> Spec:
    keys.expect("moe_layer_freq", 1)
    keys.expect("topk_method", "noaux_tc")
    keys.expect("scoring_func", "sigmoid")
    # Tensors of the extra layers that predict further ahead are dropped below.
    keys.ignore("num_nextn_predict_layers", "num_mtp_layers", "ep_size", "aux_loss_alpha", "seq_aux")
    keys.ignore("num_key_value_heads", "head_dim", "qk_head_dim", "output_router_logits", "router_aux_loss_coef")
    mlps = corrected(keys, each=2048, count=256, groups=8, top=4, scale=2.5, first=3)
    return model(keys, [Layer(latent(keys), mlp, norm(keys)) for mlp in mlps], norm(keys))


def corrected(
    keys: Keys, *, each: int, count: int, groups: int, top: int, scale: float, first: int
) -> list[Gated | Experts]:
    """The MLP of each layer: after some dense ones, experts chosen by sigmoids and a correction, in groups. The
    arguments are what the family takes for granted."""
    dense = gated(keys)
    each = keys.size("moe_intermediate_size", each)
    count, groups = keys.size("n_routed_experts", count), keys.size("n_group", groups)
    if count % groups or count < 2 * groups:  # a group is judged by its two best experts
        raise keys.wrong("n_group", groups, f"a number of groups, of 2 or more, that {count} experts fall into")
    top = keys.size("topk_group", top, most=groups)
    mixed = Experts(
        each=Gated(each, dense.act),
        router=Router(
            count=count,
            chosen=keys.size("num_experts_per_tok", 8, most=count // groups * top),
            score="sigmoid",
            renormalise=keys.flag("norm_topk_prob", True),
            groups=groups,
            top_groups=top,
            correction=True,
            scale=keys.real("routed_scaling_factor", scale),
        ),
        shared=Gated(each * keys.size("n_shared_experts", 1), dense.act),
    )
    first = keys.size("first_k_dense_replace", first, least=0)
    return [dense if i < first else mixed for i in range(depth(keys))]


def v2(keys: Keys) -> Spec:
    """Scores are a softmax, groups are judged by their best expert, and weights are not made to sum to 1."""
    keys.expect("moe_layer_freq", 1)
    keys.expect("scoring_func", "softmax")
    keys.expect("norm_topk_prob", False)
    keys.expect("rope_interleave", True)
    keys.ignore("ep_size", "aux_loss_alpha", "seq_aux", "output_router_logits", "router_aux_loss_coef")
    keys.ignore("num_key_value_heads", "head_dim", "qk_head_dim", "n_group", "topk_group")
    keys.expect("topk_method", "greedy", "group_limited_greedy")
    dense = gated(keys)
    each, count = keys.size("moe_intermediate_size", 1407), keys.size("n_routed_experts", 64)
    groups = top = 1
    if keys.config.get("topk_method") == "group_limited_greedy":
        groups = keys.size("n_group", most=count)
        top = keys.size("topk_group", most=groups)
        if count % groups:
            raise keys.wrong("n_group", groups, f"a number of groups that {count} experts fall into")
    router = Router(
        count=count,
        chosen=keys.size("num_experts_per_tok", 6, most=count // groups * top),
        renormalise=False,
        groups=groups,
        top_groups=top,
        judges=1,
        scale=keys.real("routed_scaling_factor", 1.0),
    )
    shared = Gated(each * keys.size("n_shared_experts", 2), dense.act, dense.bias)
    mixed = Experts(Gated(each, dense.act), router, shared)
    first = keys.size("first_k_dense_replace", 0, least=0)
    mlps = [dense if i < first else mixed for i in range(depth(keys))]
    return model(keys, [Layer(latent(keys), mlp, norm(keys)) for mlp in mlps], norm(keys))


def latent(keys: Keys) -> LatentAttention:
    plain, turned = keys.size("qk_nope_head_dim", 128), keys.size("qk_rope_head_dim", 64)
    rope = positions.rope(keys, turned, context(keys), interleaved=keys.flag("rope_interleave", True))
    scale = (plain + turned) ** -0.5
    if isinstance(rope.scaling, Yarn):
        weight = sum(keys.part(name).real("mscale_all_dim", 0.0) for name in ("rope_parameters", "rope_scaling"))
        scale *= positions.mscale(rope.scaling.factor, weight) ** 2
    return LatentAttention(
        heads=keys.size("num_attention_heads"),
        q_rank=keys.size_or_none("q_lora_rank", 1536),
        kv_rank=keys.size("kv_lora_rank", 512),
        plain_channels=plain,
        value_channels=keys.size("v_head_dim", 128),
        scale=scale,
        rope=rope,
        norm=RMSNorm(1e-6),  # the latents' own norms do not follow rms_norm_eps
        bias=keys.flag("attention_bias", False),
    )


def v3_rules(spec: Spec) -> Sequence[Rule]:
    return [Drop(f"model.layers.{len(spec.layers)}.*"), *expert_rules(spec)]
