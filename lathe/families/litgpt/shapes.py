"""The shapes of block that LitGPT builds, by the classes of norm and MLP that its configuration names."""

from __future__ import annotations

from collections.abc import Callable

from lathe.families.keys import Keys
from lathe.families.litgpt import layernorm, rms
from lathe.families.litgpt.sizes import Config

SHAPES: dict[tuple[str, str], Callable[[Keys], Config]] = {
    ("RMSNorm", "LLaMAMLP"): rms.llama,
    ("RMSNorm", "LLaMAMoE"): rms.mixed,
    ("RMSNorm", "GemmaMLP"): rms.gemma,
    ("LayerNorm", "GptNeoxMLP"): layernorm.plain,
    ("LayerNorm", "LLaMAMLP"): layernorm.gated,
}
