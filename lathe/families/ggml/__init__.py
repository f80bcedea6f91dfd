"""ggml's hand, for every family at once: the metadata of a GGUF file and its names for tensors."""

from __future__ import annotations

from lathe.families.ggml.header import SETTINGS
from lathe.families.ggml.lineages import config
from lathe.families.ggml.names import rules

__all__ = ["SETTINGS", "config", "rules"]
