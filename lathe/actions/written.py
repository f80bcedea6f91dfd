"""Options that say how rows of data become examples that a model learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ROW = 2048  # tokens of an example, by default, where the model has as many positions


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the actions have in common that read examples."""

    columns: tuple[str, ...] = ()
    """What columns are called here and in the data: prompt=question,completion=answer."""
    prompt_style: str | None = None
    """Write conversations in LitGPT's prompt style of this name instead of the model's chat template; none for plain
    text. By default alpaca for a model that has no template."""
    loss_on: Literal["assistant", "last", "all"] = "assistant"
    """What is learned: every answer of a conversation, only the last one, or all of the text."""
    max_repeats: float = 0.3
    """The part of the rows that may say what an earlier one says."""
