"""LitGPT's `model_config.yaml` becomes the Hugging Face configuration of the same model; knows no tensor.

The architecture is found by structure alone: norms, MLP, experts. LitGPT decides one thing by a model's name, whether
RMSNorm adds one to its weights; a file whose name and structure disagree on that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.errors import ConfigError
from lathe.families.keys import Keys
from lathe.families.litgpt.shapes import SHAPES
from lathe.families.litgpt.sizes import MOST_LAYERS, Config, named

FILE = "model_config.yaml"
# What a key that the file leaves out means to LitGPT, where that is not null.
DEFAULTS: Config = {
    "name": "",
    "hf_config": {},
    "block_size": 4096,
    "n_layer": 16,
    "n_embd": 4096,
    "vocab_size": 50254,
    "padding_multiple": 512,
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "norm_1": True,
    "norm_2": True,
    "parallel_residual": True,
    "shared_attention_norm": False,
    "n_head": 32,
    "rope_base": 10_000,
    "rotary_percentage": 0.25,
    "bias": True,
    "mlp_class_name": "GptNeoxMLP",
}

# Keys that change the model, with the value that says "not here". A shape that has no use for one insists on that.
OFF: Config = {
    "norm_1": True,
    "norm_2": True,
    "norm_qk": False,
    "post_attention_norm": False,
    "post_mlp_norm": False,
    "parallel_residual": False,
    "shared_attention_norm": False,
    "bias": False,
    "attn_bias": False,
    "lm_head_bias": False,
    "scale_embeddings": False,
    "rotary_percentage": 1.0,
    "rope_interleave": False,
    "rope_condense_ratio": 1,
    "rope_local_base_freq": None,
    "sliding_window_size": None,
    "attention_scores_scalar": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "latent_attention": None,
    "n_expert": 0,
    "n_shared_expert": 0,
    "n_expert_groups": None,
    "first_k_dense_replace": 0,
    "routed_scaling_factor": 1.0,
}
# Keys that mean nothing by themselves: another, in OFF or in the shape, must first be on.
IDLE = """
    vocab_size padding_multiple norm_qk_type sliding_window_indices rope_indices gelu_approximate moe_intermediate_size
    n_expert_per_token n_topk_groups n_topk_scores_per_group norm_topk_prob
""".split()


# What LitGPT works out from the rest, and keeps with an object that was saved whole.
DERIVED = frozenset(
    "rope_n_elem q_lora_rank kv_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim qk_head_dim".split()
)
# Words of older versions, when they were Lit-GPT: the key that came after.
RENAMED = {"_norm_class": "norm_class_name", "_mlp_class": "mlp_class_name", "condense_ratio": "rope_condense_ratio"}


def _modern(old: Mapping[str, Any]) -> Config:
    """The same configuration in the words of LitGPT 0.5.13."""
    told = {RENAMED.get(name, name): value for name, value in old.items() if name != "rope_n_elem"}
    if "org" in told:
        told["hf_config"] = {"org": told.pop("org"), "name": told.get("name")}
    # How often a layer has a window, and from which layer on: a word, or a number, or (for some days) a family.
    placing = told.pop("sliding_window_layer_placing", None)
    if placing in (None, "all", "interleaved"):
        placing = 2 if placing == "interleaved" else 1
    stride = told.pop("sliding_window_layer_stride", None) or placing
    offset = told.pop("sliding_window_offset", None) or int(told.pop("sliding_window_type", None) == "gemma3")
    if told.get("sliding_window_size") is not None and told.get("sliding_window_indices") is None:
        keys = Keys({"sliding_window_layer_placing": stride, "sliding_window_offset": offset}, file=FILE)
        step, first = keys.size("sliding_window_layer_placing"), keys.size("sliding_window_offset", least=0)
        layers = Keys({**DEFAULTS, **told}, file=FILE).size("n_layer", most=MOST_LAYERS)
        told["sliding_window_indices"] = [int((layer + first) % step == 0) for layer in range(layers)]
    return told


def config(model_config: Mapping[str, Any]) -> Config:
    """The `config.json` of the model that a parsed `model_config.yaml` describes.

    LitGPT has no tied embeddings, so neither has the result: both tensors are in the file.

    Raises:
        ConfigError: a key is missing, unknown, or has a value that no known architecture has in this combination.
    """
    keys = Keys({**DEFAULTS, **_modern(model_config)}, file=FILE, noise=())
    shape = (str(keys.take("norm_class_name")), str(keys.take("mlp_class_name")))
    read = SHAPES.get(shape)
    if read is None:
        raise ConfigError(
            f"model_config.yaml describes blocks of {' and '.join(shape)}.",
            f"This version of Lathe knows {'; '.join(' and '.join(known) for known in SHAPES)}.",
        )
    _check_name(keys, *shape)
    found = read(keys)
    for name, off in OFF.items():
        value = None if name in keys.taken else keys.take(name, None)
        if value is not None and value != off:
            raise keys.wrong(name, value, f"{off!r} in {found['architectures'][0]}, which the rest describes")
    keys.ignore(*IDLE)
    keys.check()
    return found


def _check_name(keys: Keys, norm: str, mlp: str) -> None:
    """LitGPT's RMSNorm adds one to its weights exactly where the model's name contains "Gemma"."""
    name = named(keys)
    if norm == "RMSNorm" and ("Gemma" in name) != (mlp == "GemmaMLP"):
        raise ConfigError(
            f'{FILE} describes blocks of {norm} and {mlp} with the name "{name}".',
            'LitGPT adds one to the norms\' weights only where the name contains "Gemma", and only Gemma needs it.',
        )
    if norm == "LayerNorm" and "OLMo" in name and mlp != "LLaMAMLP":
        raise ConfigError(
            f'{FILE} describes blocks of {norm} and {mlp} with the name "{name}".',
            'LitGPT gives LayerNorms no weights where the name contains "OLMo", and OLMo has another MLP.',
        )
