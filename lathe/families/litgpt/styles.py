"""LitGPT's `prompt_style.yaml` becomes the name of a prompt style; the class that it names is never imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.errors import ConfigError, did_you_mean

# The class in litgpt.prompts -> the style's name. LitGPT names all but Default, Falcon3, R1Base and ChatML itself.
STYLES = {
    "Default": "default",
    "Alpaca": "alpaca",
    "FLAN": "flan",
    "Longform": "longform",
    "StableLMAlpha": "stablelm-alpha",
    "StableLMZephyr": "stablelm-zephyr",
    "Falcon": "falcon",
    "Falcon3": "falcon3",
    "Llama2FunctionCalling": "llama2-function-calling",
    "Llama2": "llama2",
    "Llama3": "llama3",
    "R1Base": "r1-base",
    "FreeWilly2": "freewilly2",
    "Platypus": "platypus",
    "StableCode": "stablecode",
    "CodeLlama": "codellama",
    "Phi1": "phi-1",
    "Phi2": "phi-2",
    "Phi3": "phi-3",
    "Phi4": "phi-4",
    "Phi4Reasoning": "phi-4-reasoning",
    "Phi4Mini": "phi-4-mini",
    "Phi4MiniReasoning": "phi-4-mini-reasoning",
    "TinyLlama": "tinyllama",
    "Gemma": "gemma",
    "OLMo": "olmo",
    "ChatML": "chatml",
    "Qwen2_5": "qwen2.5",
    "Qwen2_5_Math": "qwen2.5-math",
    "QwQ": "qwq",
    "Qwen3": "qwen3",
    "SmolLM2": "smollm2",
    "Salamandra": "salamandra",
}


def style(told: Mapping[str, Any]) -> str:
    """The name of the style whose class a parsed `prompt_style.yaml` gives.

    Raises:
        ConfigError: it is none of LitGPT's own classes.
    """
    path = told.get("class_path")
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if module not in ("litgpt.prompts", "lit_gpt.prompts") or name not in STYLES:
        raise ConfigError(
            f"prompt_style.yaml names the class {path!r:.200}, which is none of LitGPT's prompt styles.",
            "It is Python, and nothing of it was run.",
            did_you_mean(name, STYLES) or "Choose a style by name, or write it as a chat template.",
        )
    return STYLES[name]
