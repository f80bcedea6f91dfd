"""LitGPT's names for tensors become our names, and back, derived from the parts of a Spec; knows no family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from lathe.model.spec import Attention, Experts, Gated, Mlp, Order, Spec
from lathe.weights.rules import Old, Prefix, Rename, Reorder, Rule, Split, Stack, Twin

T = TypeVar("T")

# What stands in a name where something was wrapped around a module: torch.compile, FSDP, activation checkpointing, DDP,
# Lightning, and LitGPT's LoRA and adapters, in which the layer itself is called so.
WRAPPERS = frozenset("_orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module module _forward_module linear".split())
ANCHOR = "transformer.wte.weight"  # of every model, so it shows what stands before all names

DISK, MEMORY = "transformer.h.{i}.", "model.layers.{i}."

NORMS: dict[Order, dict[str, str]] = {
    "pre": {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"},
    "parallel": {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"},
    "shared": {"norm_1": "input_layernorm"},
    "post": {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"},
    "sandwich": {
        "norm_1": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "norm_2": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    },
}
ATTENTION = {"attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm", "attn.proj": "self_attn.o_proj"}
LATENT = {
    "attn.q_a_proj": "self_attn.q_a_proj",
    "attn.q_a_norm": "self_attn.q_a_layernorm",
    "attn.q_b_proj": "self_attn.q_b_proj",
    "attn.kv_a_proj_with_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn.kv_a_norm": "self_attn.kv_a_layernorm",
    "attn.kv_b_proj": "self_attn.kv_b_proj",
    "attn.proj": "self_attn.o_proj",
}
GATED = {"fc_1": "gate_proj", "fc_2": "up_proj", "proj": "down_proj"}
PLAIN = {"fc": "up_proj", "proj": "down_proj"}


def plain(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors by LitGPT's own names, without what wrappers put into them, or a Trainer's module before them.

    What stands outside of the module that the model is, as an optimizer's state, is left out.
    """
    found = {bare(name): tensors[name] for name in tensors}
    roots = [name.removesuffix(ANCHOR) for name in found if name == ANCHOR or name.endswith("." + ANCHOR)]
    if len(found) < len(tensors) or len(roots) != 1:
        return dict(tensors)  # not one model by LitGPT's names: whoever misses its tensors says which
    return {name.removeprefix(roots[0]): ref for name, ref in found.items() if name.startswith(roots[0])}


def bare(name: str) -> str:
    """A tensor's name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def rules(spec: Spec) -> list[Rule]:
    """What LitGPT's files call the tensors of `spec`; `lm_head` has the same name in both hands."""
    mixer, names = spec.layers[0].mixer, dict(NORMS[spec.layers[0].order])
    found: list[Rule] = [
        Prefix("transformer.wte.", "model.embed_tokens."),
        Prefix("transformer.ln_f.", "model.norm."),
    ]
    if isinstance(mixer, Attention):
        names |= ATTENTION
        rows = (mixer.heads * mixer.channels, *(mixer.kv_heads * mixer.channels,) * 2)
        for end in ("weight", "bias"):
            parts = tuple(f"{MEMORY}self_attn.{part}_proj.{end}" for part in "qkv")
            found += [*_interleaved(mixer, end), Split(f"{DISK}attn.qkv.{end}", parts, rows)]
    else:
        names |= LATENT
    for mlp in dict.fromkeys(layer.mlp for layer in spec.layers):
        names |= _mlp(mlp)
        if isinstance(mlp, Experts):
            found += [
                Rename(DISK + "mlp.gate.e_score_correction_bias", MEMORY + "mlp.gate.e_score_correction_bias"),
                *(
                    Stack(f"{DISK}mlp.experts.{{e}}.{a}.weight", f"{MEMORY}mlp.experts.{b}.weight", mlp.router.count)
                    for a, b in GATED.items()
                ),
            ]
    for end in ("weight", "bias"):
        found += [Rename(f"{DISK}{disk}.{end}", f"{MEMORY}{memory}.{end}") for disk, memory in names.items()]
    if spec.tied:
        found.append(Twin("model.embed_tokens.weight", "lm_head.weight"))
    return found


def _interleaved(mixer: Attention, end: str) -> list[Rule]:
    """Until the end of 2024 the queries of one group lay before its key and value, then those of the next."""
    groups, each, channels = mixer.kv_heads, mixer.heads // mixer.kv_heads, mixer.channels
    disk = f"{DISK}attn.attn.{end}"
    parts = tuple(f"{DISK}attn.attn.{part}.{end}" for part in "qkv")
    laws: list[Rule] = [
        Reorder(disk, (groups, each + 2, channels), (1, 0, 2)),
        Split(disk, parts, (groups * each * channels, *(groups * channels,) * 2)),
        Reorder(parts[0], (each, groups, channels), (1, 0, 2)),
        *(Rename(name, f"{MEMORY}self_attn.{part}_proj.{end}") for name, part in zip(parts, "qkv", strict=True)),
    ]
    return [Old(law) for law in laws]


def _mlp(mlp: Mlp) -> dict[str, str]:
    if isinstance(mlp, Experts):
        shared = {f"mlp.shared_experts.{disk}": f"mlp.shared_experts.{memory}" for disk, memory in GATED.items()}
        return {"mlp.gate": "mlp.gate", **(shared if mlp.shared else {})}
    return {f"mlp.{disk}": f"mlp.{memory}" for disk, memory in (GATED if isinstance(mlp, Gated) else PLAIN).items()}
