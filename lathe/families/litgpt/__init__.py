"""LitGPT's hand, for every family at once: its `model_config.yaml` and its names for tensors."""

from __future__ import annotations

from lathe.families.litgpt.names import rules
from lathe.families.litgpt.settings import config

__all__ = ["config", "rules"]
