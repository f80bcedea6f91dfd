"""LitGPT's hand, for every family at once: its `model_config.yaml` and its names for tensors."""

from __future__ import annotations

from lathe.families.litgpt.configuration import config
from lathe.families.litgpt.names import rules
from lathe.families.litgpt.parts import settings

__all__ = ["config", "rules", "settings"]
