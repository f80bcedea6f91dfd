"""Turns a checkpoint into a list of what is wrong with it, a sentence each; knows no page."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from lathe.errors import LatheError

if TYPE_CHECKING:
    from lathe.checkpoint import Checkpoint
    from lathe.weights.tensors import Ref

SENTENCE = "A lathe turns; 3.14 is π, naïve 日本語 🙂.\n"


def check(found: Checkpoint) -> list[str]:
    """What does not fit together, a sentence each."""
    from lathe import checkpoint

    problems = []
    try:
        checkpoint.fit(checkpoint.blank(found.spec), found.tensors, found.path)
    except LatheError as error:
        problems.append(str(error))
    try:
        tokenizer = found.tokenizer()
        if tokenizer.vocab_size > found.spec.vocab:
            size = f"The tokenizer has {tokenizer.vocab_size} tokens, the model rows for {found.spec.vocab}."
            problems.append(f"{size} Texts with the last ones cannot be run.")
        # A vocabulary without some of these characters loses them; one that has them all gives the sentence back.
        again = tokenizer.decode(tokenizer.encode(tokenizer.decode(tokenizer.encode(SENTENCE))))
        if again != tokenizer.decode(tokenizer.encode(SENTENCE)):
            problems.append(f"The tokenizer does not give back what it was given: {again!r} for {SENTENCE!r}.")
        if tokenizer.has_template:
            tokenizer.render([{"role": "user", "content": "Hello"}])
    except LatheError as error:
        problems.append(str(error))
    return problems


def faults(found: Checkpoint) -> list[str]:
    """What is wrong with the numbers themselves, a sentence each; reads every tensor, some rows at a time."""
    problems = []
    for name, ref in found.tensors.items():
        try:
            problem = fault(ref)
        except (LatheError, OSError) as error:
            problem = f"cannot be read: {error}"
        if problem:
            problems.append(f"{name} {problem} ({ref.source}).")
    return problems


def fault(ref: Ref) -> str | None:
    """What is wrong with one tensor. A vector of zeros is a bias that nobody trained; a matrix of zeros is a loss."""
    import torch

    if not ref.dtype.is_floating_point or not prod(ref.shape):
        return None
    zero, start = len(ref.shape) > 1, 0
    for piece in ref.pieces():
        if not piece.isfinite().all():
            n = torch.count_nonzero(~piece.isfinite())
            return f"holds {n} numbers that are infinite or none, the first from row {start} on"
        zero = zero and not bool(piece.any())
        start += len(piece) if ref.shape else 0
    return "is zero everywhere" if zero else None


def mismatch(found: Checkpoint, draft: Checkpoint) -> list[str]:
    """Why a draft cannot guess for a model."""
    from lathe import source

    try:
        source.same_vocabulary(draft, found.tokenizer(), found.path)
    except LatheError as error:
        return [str(error)]
    return []
