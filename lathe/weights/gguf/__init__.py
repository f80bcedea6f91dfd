"""GGUF: a file becomes metadata and Refs, and metadata and Refs become a file; knows no model."""

from __future__ import annotations

from lathe.weights.gguf.parts import models, whole
from lathe.weights.gguf.reading import Gguf, open
from lathe.weights.gguf.writing import write

__all__ = ["Gguf", "models", "open", "whole", "write"]
