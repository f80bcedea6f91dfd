"""gpt-oss: sinks, windows in every other layer, experts with biases and a clamped gate; MXFP4. arXiv:2508.10925"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, model, norm, windows
from lathe.families.positions import mscale
from lathe.model.spec import Clamped, Experts, Layer, Rope, Router, Spec, Yarn
from lathe.weights.rules import Microscaled, Rename, Reorder, Rule, Split, Transpose

PACKED = ("quantization_config",)


def gpt_oss(keys: Keys) -> Spec:
    keys.ignore("router_aux_loss_coef", "output_router_logits")
    keys.ignore("experts_per_token", "initial_context_length")  # said again, under the names below
    keys.expect("hidden_act", "silu")
    packed = keys.part("quantization_config")  # of the experts alone; what is not there is stored as it is
    packed.expect("quant_method", "mxfp4")
    packed.ignore("modules_to_not_convert", "dequantize")
    bias = keys.flag("attention_bias", True)
    part = attention(keys, head_dim=64, base=150_000.0, qkv_bias=bias, out_bias=bias, sinks=True)
    if not any(keys.part(name).config for name in ("rope_parameters", "rope_scaling")):
        part = replace(part, rope=_taken_for_granted(part.channels))
    window = keys.size("sliding_window", 128)
    seen = windows(keys, [i % 2 == 0 for i in range(depth(keys))], window)
    count = keys.size("num_local_experts", 128)
    mixed = Experts(
        each=Clamped(
            keys.size("intermediate_size"),
            limit=keys.real("swiglu_limit", 7.0, above=0),
            alpha=keys.real("swiglu_alpha", 1.702),
        ),
        # A softmax over the chosen is that over all, renormalised.
        router=Router(count, keys.size("num_experts_per_tok", 4, most=count), bias=True),
    )
    layers = [Layer(replace(part, window=w), mixed, norm(keys, 1e-5)) for w in seen]
    return model(keys, layers, norm(keys, 1e-5))


def _taken_for_granted(channels: int) -> Rope:
    return Rope(150_000.0, channels, Yarn(32.0, 4096, 32.0, 1.0, mscale(32.0), truncate=False))


def gpt_oss_rules(spec: Spec) -> Sequence[Rule]:
    """Experts are stacked, gate and up in turn; in bfloat16 rows and columns are exchanged, in MXFP4 they are not."""
    disk, memory = "model.layers.{i}.mlp.", "model.layers.{i}.mlp.experts."
    width = next(layer.mlp.each.width for layer in spec.layers if isinstance(layer.mlp, Experts))
    found: list[Rule] = [Rename(f"{disk}router.{end}", f"{disk}gate.{end}") for end in ("weight", "bias")]
    for name in ("gate_up_proj", "down_proj"):
        whole = f"{disk}experts.{name}"
        found += [
            Rename(whole, f"{whole}.weight"),
            Rename(f"{whole}_bias", f"{whole}.bias"),
            Transpose(f"{whole}.weight"),
            Microscaled(f"{whole}_blocks", f"{whole}_scales", f"{whole}.weight"),
        ]
    for end in ("weight", "bias"):
        both = f"{memory}gate_up_proj.{end}"
        parts = (f"{memory}gate_proj.{end}", f"{memory}up_proj.{end}")
        found += [Reorder(both, (width, 2), (1, 0), 1), Split(both, parts, (width, width), 1)]
    return found
