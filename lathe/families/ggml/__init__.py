"""ggml's hand, for every family at once: the metadata of a GGUF file, its names for tensors, and the types they get."""

from __future__ import annotations

from lathe.families.ggml.header import SETTINGS
from lathe.families.ggml.kinds import KINDS, described, mix
from lathe.families.ggml.lineages import config
from lathe.families.ggml.names import rules
from lathe.families.ggml.telling import check, metadata, settings
from lathe.families.ggml.unheeded import unheeded

__all__ = ["KINDS", "SETTINGS", "check", "config", "described", "metadata", "mix", "rules", "settings", "unheeded"]
