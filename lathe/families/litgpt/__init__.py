"""LitGPT's hand, for every family at once: its `model_config.yaml`, its names for tensors, its prompt styles' names."""

from __future__ import annotations

from lathe.families.litgpt.configuration import DERIVED, config
from lathe.families.litgpt.names import bare, plain, rules
from lathe.families.litgpt.parts import settings
from lathe.families.litgpt.styles import STYLES, style

__all__ = ["DERIVED", "STYLES", "bare", "config", "plain", "rules", "settings", "style"]
