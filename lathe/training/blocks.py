"""A decoder's blocks become ones that compute twice what they would have to remember, or are compiled.

Both are put on from outside, block by block: parameters keep their names, and results stay what they were.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lathe.model.attention import Attention, LatentAttention
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout
from lathe.model.mlps import Experts


def compiled(decoder: Decoder, backend: str = "inductor") -> Decoder:
    """Compile the blocks, one code for all that are alike, and for any number of tokens.

    What depends on where the seams are, attention and the ways of tokens to experts, stays as it is, because it would
    be compiled anew for every ribbon. Before `checkpointed`, where both are wanted.
    """
    compile_ = partial(torch.compile, dynamic=True, backend=backend)
    for module in decoder.modules():
        if isinstance(module, Attention):
            module.project = compile_(module.project)  # type: ignore[method-assign]
        if isinstance(module, Attention | LatentAttention):
            module.forward = torch.compiler.disable(partial(_seeing, module.forward))  # type: ignore[method-assign]
        if isinstance(module, Experts):
            module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    for block in decoder.model.layers:
        block.forward = partial(_unseeing, compile_(block.forward))
    return decoder


class Unseen:
    """A layout that compiled code passes on without looking: PyTorch 2.11 compiles anew for other fields of it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout


def _unseeing(forward: Any, x: Tensor, layout: Layout, *cache: Any) -> Any:
    return forward(x, Unseen(layout), *cache)


def _seeing(forward: Any, x: Tensor, unseen: Unseen, *cache: Any) -> Any:
    return forward(x, unseen.layout, *cache)


def checkpointed(decoder: Decoder) -> Decoder:
    """Keep only what goes into each block for the way back, and compute the rest of it again there. Chen et al.,
    arXiv:1604.06174. Takes a third more time, and about a tenth of the memory."""
    for block in decoder.model.layers:
        block.forward = partial(_twice, block.forward)
    return decoder


def _twice(forward: Any, *args: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)
