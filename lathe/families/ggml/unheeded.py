"""What a GGUF file says of a model and llama.cpp, reading it, passes over: there its answers are not the model's.

From llama.cpp 0.5.0 (in llama-cpp-python 0.3.36), which tests/oracles asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.families.ggml.telling import metadata
from lathe.model.spec import Spec

WINDOWED = {"cohere2", "gemma2", "gemma3", "gpt-oss", "llama4", "olmo2"}  # and Exaone 4 where there are 64 layers
CHUNK = 8192  # which it takes every Llama 4 to have
RAMP = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}


def unheeded(config: Mapping[str, Any], spec: Spec) -> list[str]:
    """What it passes over, a few words each. config: in Hugging Face's words, of a model that GGUF has words for."""
    told = metadata(config, spec)
    arch = told["general.architecture"]
    own = {key.removeprefix(arch + "."): value for key, value in told.items()}
    window, found = own.get("attention.sliding_window", 0), []
    heeds = arch in WINDOWED or (arch == "exaone4" and len(spec.layers) == 64)
    if 0 < window < spec.context and not heeds:
        found.append(f"its windows of {window} tokens")
    if arch == "llama4" and window not in (0, CHUNK):
        found.append(f"its chunks of {window} tokens (taken to be {CHUNK})")
    if own.get("attention.temperature_length", CHUNK) != CHUNK:
        found.append(
            f"the {own['attention.temperature_length']} tokens after which it looks sharper (taken to be {CHUNK})"
        )
    if (factor := own.get("rope.scaling.yarn_attn_factor")) is not None:
        found.append(f"YaRN's attention factor of {factor:g}")
    ramp = {key: own.get(f"rope.scaling.{key}", usual) for key, usual in RAMP.items()}
    if ramp != RAMP and arch != "mistral3":
        found.append(
            f"YaRN's ramp from {ramp['yarn_beta_fast']:g} to {ramp['yarn_beta_slow']:g} turns (taken to be 32 to 1)"
        )
    if arch == "phimoe":
        found += ["the means that its LayerNorms take away", "how its two experts are weighed"]
    return found
