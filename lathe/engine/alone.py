"""One text is read by itself, in pieces and in room of its own; between two of them, requests may go on.

What is made of it is a generator that stops after each piece and returns its result at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.engine.choosing import Chooser, reported
from lathe.engine.pages import Pages
from lathe.engine.runner import Piece, Runner
from lathe.engine.sampling import Sampling, Token
from lathe.engine.scheduler import Sequence
from lathe.model.decoder import Decoder

T = TypeVar("T")
Steps = Generator[None, None, T]


def read(decoder: Decoder, pool: Pages, tokens: list[int], extent: int, most: Callable[[], int]) -> Iterator[Tensor]:
    """Hidden states of a text, n D at a time.

    pool: where room is taken as, and none is taken from. extent: how long the text counts as. most: how many tokens
    the next piece may have.
    """
    layers = len(decoder.spec.layers)
    shapes, places = pool.shapes[:layers], pool.places[:layers]
    pages = Pages(shapes, len(tokens), size=pool.size, device=pool.device, dtype=pool.dtype, places=places)
    text = Sequence(tokens, extent, frozenset(), Chooser(Sampling(), (), decoder.spec.vocab), [])
    pages.reserve(text.lease, len(tokens), len(tokens))
    runner = Runner(decoder, pages, graphs=False)  # for one text it is not worth it
    while text.pending:
        piece = Piece(text, text.cached, tokens[text.cached :][: most()])
        yield runner.run([piece])
        text.cached += len(piece.tokens)


@torch.inference_mode()
def embedded(pieces: Iterable[Tensor]) -> Steps[list[float]]:
    """The mean of hidden states, scaled to length 1. Returns D numbers."""
    total = torch.zeros(())
    for hidden in pieces:
        total = total.to(hidden.device) + hidden.float().sum(0)  # D
        yield
    return F.normalize(total, dim=0).tolist()


@torch.inference_mode()
def judged(decoder: Decoder, pieces: Iterable[Tensor], tokens: list[int], first: int, top: int) -> Steps[list[Token]]:
    """How probable a text's tokens are, from number `first` on, with the `top` likeliest in the place of each.

    pieces: hidden states of all but the last.
    """
    said: list[Token] = []
    start = 0
    for hidden in pieces:
        rows = hidden[max(first - 1 - start, 0) :]
        start, at = start + len(hidden), first + len(said)
        if len(rows):
            said += reported(decoder.logits(rows).float(), tokens[at : at + len(rows)], [top] * len(rows))
        yield
    return said


def finished(steps: Steps[T]) -> T:
    """What a generator returns, with nothing between its pieces."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
