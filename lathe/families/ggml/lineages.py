"""Each lineage that llama.cpp writes: what its keys mean in Hugging Face's words, and what it does to tensors.

Where a file leaves something out, it means what llama.cpp, whose format it is, takes for granted. A new lineage is one
row of LINEAGES, and a function if its keys are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lathe.errors import ConfigError, did_you_mean
from lathe.families import find as family
from lathe.families.ggml import corrected, experts, gemmas, gpts, llamas, rotary
from lathe.families.ggml.header import Config, Facts, Header
from lathe.model.spec import Order, Spec


@dataclass(frozen=True)
class Lineage:
    """One `general.architecture`.

    architectures: what Hugging Face calls it. config: what its keys mean; tell: keys of its own, back from the parts.
    paired: rows of queries and keys lie in the order in which they turn, neighbour with neighbour. qkv, gate_up: these
    are one tensor. norms: what a layer's are called, where it is not as NORMS has it. ahead: a file may have one layer
    more, which predicts further ahead and is dropped.
    """

    architectures: tuple[str, ...]
    config: Callable[[Header], Config]
    tell: Callable[[Mapping[str, Any], Spec], Facts] = lambda config, spec: {}
    paired: bool = False
    qkv: bool = False
    gate_up: bool = False
    norms: Mapping[Order, Mapping[str, str]] = field(default_factory=dict)
    ahead: bool = False


def config(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The `config.json` of the model in a GGUF file.

    metadata: the file's, and, under their own names, the values of those tensors in SETTINGS that it has. shapes: of
    all its tensors, in torch's order (rows first).

    Raises:
        ConfigError: the architecture is not known, or a key of it is missing, not understood or makes no sense.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in LINEAGES:
        raise ConfigError(
            f'The GGUF file holds a model of the architecture "{arch}", which this version of Lathe does not know.',
            f"It knows {', '.join(LINEAGES)}.",
            did_you_mean(str(arch), LINEAGES),
        )
    header = Header.of(arch, metadata, shapes)
    found = LINEAGES[arch].config(header)
    header.keys.check()
    return found


def find(config: Mapping[str, Any]) -> tuple[str, Lineage]:
    """What llama.cpp calls the architecture of a configuration in Hugging Face's words, and its habits.

    Raises:
        ConfigError: it has no such architecture.
    """
    architecture = family(config).architecture
    for arch, lineage in LINEAGES.items():
        if architecture in lineage.architectures:
            return arch, lineage
    raise ConfigError(f"There is no way to write {architecture} in GGUF.", "llama.cpp does not know it.")


# A second norm under another name, and Falcon's two.
AFTER: dict[Order, dict[str, str]] = {
    "pre": {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
}
TWO: dict[Order, dict[str, str]] = {
    "parallel": {"attn_norm_2": "input_layernorm", "attn_norm": "post_attention_layernorm"}
}

LINEAGES: dict[str, Lineage] = {
    "llama": Lineage(
        ("LlamaForCausalLM", "MistralForCausalLM", "MinistralForCausalLM", "MixtralForCausalLM"),
        llamas.llama,
        paired=True,
    ),
    "mistral3": Lineage(("Ministral3ForCausalLM",), llamas.ministral3, llamas.ministral3_tells, paired=True),
    "granite": Lineage(("GraniteForCausalLM",), llamas.granite, llamas.granite_tells, paired=True),
    "smollm3": Lineage(("SmolLM3ForCausalLM",), partial(llamas.dense, architecture="SmolLM3ForCausalLM"), paired=True),
    "qwen2": Lineage(("Qwen2ForCausalLM",), partial(llamas.qwen, architecture="Qwen2ForCausalLM")),
    "qwen3": Lineage(("Qwen3ForCausalLM",), partial(llamas.qwen, architecture="Qwen3ForCausalLM")),
    "qwen3moe": Lineage(("Qwen3MoeForCausalLM",), experts.qwen3moe),
    "gemma": Lineage(("GemmaForCausalLM",), gemmas.gemma),
    "gemma2": Lineage(("Gemma2ForCausalLM",), gemmas.gemma2),
    "gemma3": Lineage(("Gemma3ForCausalLM",), gemmas.gemma3),
    "phi3": Lineage(("Phi3ForCausalLM",), llamas.phi3, qkv=True, gate_up=True),
    "olmo": Lineage(("OlmoForCausalLM",), rotary.olmo, paired=True),
    "olmo2": Lineage(("Olmo2ForCausalLM", "Olmo3ForCausalLM"), llamas.olmo2),
    "exaone4": Lineage(("Exaone4ForCausalLM",), llamas.exaone4),
    "seed_oss": Lineage(("SeedOssForCausalLM",), llamas.seed_oss, norms=AFTER),
    "ernie4_5": Lineage(("Ernie4_5ForCausalLM",), llamas.ernie),
    "hunyuan-dense": Lineage(
        ("HunYuanDenseV1ForCausalLM",), partial(llamas.dense, architecture="HunYuanDenseV1ForCausalLM")
    ),
    "glm4": Lineage(("Glm4ForCausalLM",), partial(llamas.glm, architecture="Glm4ForCausalLM"), gate_up=True),
    "chatglm": Lineage(("GlmForCausalLM",), partial(llamas.glm, architecture="GlmForCausalLM"), gate_up=True),
    "gptneox": Lineage(("GPTNeoXForCausalLM",), gpts.neox, gpts.neox_tells, qkv=True),
    "gpt2": Lineage(("GPT2LMHeadModel",), gpts.gpt2, qkv=True),
    "starcoder": Lineage(("GPTBigCodeForCausalLM",), gpts.starcoder, qkv=True),
    "starcoder2": Lineage(("Starcoder2ForCausalLM",), rotary.starcoder2),
    "falcon": Lineage(("FalconForCausalLM",), rotary.falcon, rotary.falcon_tells, qkv=True, norms=TWO),
    "stablelm": Lineage(("StableLmForCausalLM",), rotary.stablelm, rotary.stablelm_tells),
    "phi2": Lineage(("PhiForCausalLM",), rotary.phi2),
    "nemotron": Lineage(("NemotronForCausalLM",), rotary.nemotron),
    "command-r": Lineage(("CohereForCausalLM",), rotary.cohere, rotary.cohere_tells),
    "cohere2": Lineage(("Cohere2ForCausalLM",), rotary.cohere2, rotary.cohere_tells),
    "qwen2moe": Lineage(("Qwen2MoeForCausalLM",), experts.qwen2moe, experts.qwen2moe_tells),
    "olmoe": Lineage(("OlmoeForCausalLM",), experts.olmoe),
    "gpt-oss": Lineage(("GptOssForCausalLM",), experts.gpt_oss, norms=AFTER),
    "deepseek2": Lineage(
        ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), corrected.deepseek2, corrected.deepseek2_tells
    ),
    "glm4moe": Lineage(("Glm4MoeForCausalLM",), corrected.glm4moe, corrected.glm4moe_tells, norms=AFTER, ahead=True),
    "ernie4_5-moe": Lineage(("Ernie4_5_MoeForCausalLM",), corrected.ernie_moe, corrected.ernie_moe_tells),
    "minimax-m2": Lineage(("MiniMaxM2ForCausalLM",), corrected.minimax_m2),
    "granitemoe": Lineage(("GraniteMoeForCausalLM",), experts.granitemoe, llamas.granite_tells, paired=True),
    "phimoe": Lineage(("PhimoeForCausalLM",), experts.phimoe, experts.phimoe_tells),
    "llama4": Lineage(("Llama4ForCausalLM",), experts.llama4, experts.llama4_tells),
}
