"""A text and a model become what the model makes of it, and how two differ: perplexity, and where they go on alike.

What is measured is what rounding did to weights: both models compute in the same type of number, by PyTorch's own
products, which kernels for a CPU come near to (docs/quantize.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lathe.errors import DataError, MissingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lathe.checkpoint import Checkpoint
    from lathe.tokenizer import Tokenizer

ROW = 512  # tokens that a model sees at once
LOGITS = 256  # rows of scores in memory
BYTES = 24  # of a text, more than a token ever has on average


@dataclass(frozen=True)
class Quality:
    """loss: mean of the negative log-probability of each token after a row's first. likeliest: the token that the model
    would have written in its place."""

    loss: float
    likeliest: Tensor

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)

    def agrees(self, other: Quality) -> float:
        """The part of places in which both would write the same."""
        return float((self.likeliest == other.likeliest).double().mean())


def rows(file: Path, tokenizer: Tokenizer, context: int, tokens: int, end: bool = False) -> list[list[int]]:
    """The first tokens of a text, or its last, in rows; each begins as texts do.

    Raises:
        MissingError: there is no such file.
        DataError: it has no two tokens.
    """
    if not file.is_file():
        raise MissingError(f"{file} is not a file.", "It should be a text.")
    with file.open("rb") as text:
        if end:
            text.seek(max(file.stat().st_size - tokens * BYTES, 0))
        ids = tokenizer.encode(text.read(tokens * BYTES).decode(errors="ignore"), special=False)
    ids = ids[-tokens:] if end else ids[:tokens]
    before = tokenizer.encode("")[:1]  # what ends a text is none of its beginning
    before = before if before and before[0] == tokenizer.bos_id else []
    length = max(min(context, ROW) - len(before), 2)
    found = [[*before, *ids[start : start + length]] for start in range(0, len(ids), length)]
    found = [row for row in found if len(row) > 1]
    if not found:
        raise DataError(f"{file} has {len(ids)} tokens.", "It should be a text of some length.")
    return found


def measure(
    found: Checkpoint, texts: Sequence[Sequence[int]], dtype: torch.dtype, quantize: str | None = None
) -> Quality:
    """What a model makes of rows of tokens."""
    import torch
    import torch.nn.functional as F

    from lathe.model.layout import Layout

    decoder, losses, best = found.load(dtype=dtype, quantize=quantize), [], []
    with torch.inference_mode():
        for row in texts:
            ids = torch.tensor(row)
            hidden = decoder(ids, Layout.of([len(row)]))
            for some, wanted in zip(hidden[:-1].split(LOGITS), ids[1:].split(LOGITS), strict=True):
                scores = decoder.logits(some).float()
                losses.append(F.cross_entropy(scores, wanted, reduction="none").double())
                best.append(scores.argmax(-1))
    return Quality(float(torch.cat(losses).mean()), torch.cat(best))
