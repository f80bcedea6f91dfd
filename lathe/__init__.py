"""Lathe, the workshop for open language models: the public names, and nothing else (importing this is cheap)."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "LatheError", "__version__"]

if TYPE_CHECKING:
    from lathe.errors import LatheError
    from lathe.llm import LLM, Completion


def __getattr__(name: str) -> object:
    # Loaded on first use: `import lathe` must not pay for torch.
    if name in ("LLM", "Completion"):
        from lathe import llm

        return getattr(llm, name)
    if name == "LatheError":
        from lathe.errors import LatheError

        return LatheError
    raise AttributeError(f"module 'lathe' has no attribute {name!r}")
