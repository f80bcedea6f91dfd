"""How each lineage writes itself down: `config.json` becomes a Spec and rules for the tensors' names. Data, no torch.

A family is a function from keys to a Spec and, where its names on disk are not the Llama lineage's, a function from the
Spec to rules. A new Llama-shaped family is one function in one file and one row in the table below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.errors import ConfigError, did_you_mean
from lathe.families import (
    bigcode,
    cohere,
    deepseek,
    ernie,
    exaone,
    falcon,
    gemma,
    glm,
    gpt,
    gptoss,
    hunyuan,
    llama,
    llama4,
    ministral,
    nemotron,
    olmo,
    phi,
    qwen,
    seed,
    sparse,
    stablelm,
    towers,
)
from lathe.families.keys import Family, Keys
from lathe.model.spec import Spec
from lathe.weights.rules import Adopt, Drop, Rule, Tie

__all__ = ["FAMILIES", "Family", "Keys", "find", "read", "rules", "tie"]

# architecture (config.json's `architectures`) -> (model_type, family)
FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        Family("LlamaForCausalLM", "llama", llama.llama),
        Family("MistralForCausalLM", "mistral", llama.mistral),
        Family("MixtralForCausalLM", "mixtral", llama.mixtral, llama.mixtral_rules),
        Family("SmolLM3ForCausalLM", "smollm3", llama.smollm3),
        Family("GraniteForCausalLM", "granite", llama.granite),
        Family("Qwen2ForCausalLM", "qwen2", qwen.qwen2),
        Family("Qwen3ForCausalLM", "qwen3", qwen.qwen3),
        Family("Qwen3MoeForCausalLM", "qwen3_moe", qwen.qwen3_moe, qwen.expert_rules),
        Family("Qwen2MoeForCausalLM", "qwen2_moe", sparse.qwen2_moe, sparse.qwen2_moe_rules),
        Family("GemmaForCausalLM", "gemma", gemma.gemma),
        Family("Gemma2ForCausalLM", "gemma2", gemma.gemma2),
        Family("Gemma3ForCausalLM", "gemma3_text", gemma.gemma3),
        Family("CohereForCausalLM", "cohere", cohere.cohere),
        Family("Cohere2ForCausalLM", "cohere2", cohere.cohere2),
        Family("NemotronForCausalLM", "nemotron", nemotron.nemotron),
        Family("GlmForCausalLM", "glm", glm.glm, glm.glm_rules),
        Family("Glm4ForCausalLM", "glm4", glm.glm4, glm.glm4_rules),
        Family("Exaone4ForCausalLM", "exaone4", exaone.exaone4),
        Family("SeedOssForCausalLM", "seed_oss", seed.seed_oss),
        Family("Ernie4_5ForCausalLM", "ernie4_5", ernie.ernie, older=("Ernie4_5_ForCausalLM",)),
        Family("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", hunyuan.hunyuan, hunyuan.hunyuan_rules),
        Family("MinistralForCausalLM", "ministral", ministral.ministral),
        Family("Ministral3ForCausalLM", "ministral3", ministral.ministral3),
        Family("StableLmForCausalLM", "stablelm", stablelm.stablelm, stablelm.stablelm_rules),
        Family("FalconForCausalLM", "falcon", falcon.falcon, falcon.falcon_rules, older=falcon.OLDER),
        Family("PhiForCausalLM", "phi", phi.phi, phi.phi_rules),
        Family("Phi3ForCausalLM", "phi3", phi.phi3, phi.phi3_rules),
        Family("OlmoForCausalLM", "olmo", olmo.olmo),
        Family("Olmo3ForCausalLM", "olmo3", olmo.olmo3),
        Family("Olmo2ForCausalLM", "olmo2", olmo.olmo2),
        Family("GPTNeoXForCausalLM", "gpt_neox", gpt.neox, gpt.neox_rules),
        Family("GPT2LMHeadModel", "gpt2", gpt.gpt2, gpt.gpt2_rules),
        Family("OlmoeForCausalLM", "olmoe", sparse.olmoe, qwen.expert_rules),
        Family("GptOssForCausalLM", "gpt_oss", gptoss.gpt_oss, gptoss.gpt_oss_rules, spent=gptoss.PACKED),
        Family("DeepseekV2ForCausalLM", "deepseek_v2", deepseek.v2, qwen.expert_rules),
        Family("GPTBigCodeForCausalLM", "gpt_bigcode", bigcode.gpt_bigcode, bigcode.gpt_bigcode_rules),
        Family("Starcoder2ForCausalLM", "starcoder2", bigcode.starcoder2, bigcode.starcoder2_rules),
        Family("DeepseekV3ForCausalLM", "deepseek_v3", deepseek.v3, deepseek.v3_rules, alias=("kimi_k2",)),
        Family("Glm4MoeForCausalLM", "glm4_moe", glm.glm4_moe, deepseek.v3_rules),
        Family("GraniteMoeForCausalLM", "granitemoe", sparse.granite_moe, sparse.granite_moe_rules),
        Family("MiniMaxM2ForCausalLM", "minimax_m2", sparse.minimax_m2, sparse.minimax_m2_rules),
        Family("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", ernie.ernie_moe, ernie.ernie_moe_rules),
        Family("PhimoeForCausalLM", "phimoe", phi.phimoe, llama.mixtral_rules, older=("PhiMoEForCausalLM",)),
        Family("Llama4ForCausalLM", "llama4_text", llama4.llama4, llama4.llama4_rules),
    )
}


def find(config: Mapping[str, Any]) -> Family:
    """The family a configuration names: by `architectures`, or, where that is missing, by `model_type`.

    Raises:
        ConfigError: it names none, or one that is not known.
    """
    named = config.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(
            f'config.json has "architectures": {named!r}.', 'It should be a list of names, as in ["LlamaForCausalLM"].'
        )
    by_type = {family.model_type: family for family in FAMILIES.values()}
    older = {name: family for family in FAMILIES.values() for name in (*family.older, *family.alias)}
    for name in named:
        if name in FAMILIES or name in older:
            return FAMILIES.get(name) or older[name]
    name = named[0] if named else config.get("model_type")
    if isinstance(name, str) and not named and (name in by_type or name in older):
        return by_type.get(name) or older[name]
    if name is None:
        raise ConfigError(
            "The configuration names no architecture.",
            'config.json should have "architectures", as in ["LlamaForCausalLM"].',
            "Check that the folder holds a language model.",
        )
    raise ConfigError(
        f'The architecture "{name}" is not known to this version of Lathe.',
        f"It knows {len(FAMILIES) + len(towers.TABLE)} families; `lathe models` lists them.",
        did_you_mean(str(name), [*FAMILIES, *towers.TABLE, *by_type]),
    )


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the text model alone, whose tensors are as they are in memory: what Lathe writes.

    Raises:
        ConfigError: it names no model that is known, or has keys outside its text model that are not understood.
    """
    text, _ = _text(config)
    family = find(text)
    known = {"model_type": family.model_type} if text.get("model_type") in family.alias else {}
    return {key: value for key, value in text.items() if key not in (*family.spent, "quantization_config")} | known


def _text(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """What a configuration says of its text model, and what stands before its keys in messages."""
    tower = _tower(config)
    if tower is None:
        return config, ""
    text, inside = tower.plain(config)
    by_type = {family.model_type: family for family in FAMILIES.values()}
    kind = text["model_type"]
    if not isinstance(kind, str) or kind not in by_type:
        raise Keys(text, inside).wrong("model_type", kind, f"one of {', '.join(by_type)}")
    return {**text, "architectures": [by_type[kind].architecture]}, inside


def _tower(config: Mapping[str, Any]) -> towers.Tower | None:
    """The multimodal lineage that a configuration names, if it is one."""
    names = config.get("architectures") or [config.get("model_type")]
    return next((tower for tower in towers.TABLE.values() if names in ([tower.architecture], [tower.model_type])), None)


def read(config: Mapping[str, Any]) -> Spec:
    """The Spec a configuration describes.

    Raises:
        ConfigError: a key is missing, has a value that makes no sense, or is not understood: a model never answers
            wrongly because a switch was dropped.
    """
    text, inside = _text(config)
    keys = Keys(text, inside)
    spec = find(text).spec(keys)
    keys.check()
    return spec


def rules(config: Mapping[str, Any], spec: Spec) -> list[Rule]:
    """What the family's files call the tensors of `spec`, in the Hugging Face hand."""
    common: list[Rule] = [
        # Saved from the model without its head: the same names without the prefix.
        *(Adopt(part, "model." + part) for part in ("layers.", "embed_tokens.", "norm.")),
        Drop("model.layers.{i}.self_attn.rotary_emb.inv_freq"),
    ]
    tower = _tower(config)
    of_images = tower.into(config) if tower else []
    return [*of_images, *common, *find(_text(config)[0]).rules(spec), *tie(spec)]


def tie(spec: Spec) -> list[Rule]:
    """A tied head is stored once or twice, and is one parameter in memory, whoever wrote the file."""
    return [Tie("model.embed_tokens.weight", "lm_head.weight")] if spec.tied else []
