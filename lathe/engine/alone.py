"""A text for which the pool has no room is read by itself, in pieces and in room of its own, and judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lathe.engine.choosing import Chooser, reported
from lathe.engine.pages import Pages
from lathe.engine.runner import Piece, Runner
from lathe.engine.sampling import Sampling, Token
from lathe.engine.scheduler import Sequence
from lathe.model.decoder import Decoder


def read(decoder: Decoder, pool: Pages, tokens: list[int], extent: int, most: int) -> Iterator[Tensor]:
    """Hidden states of a text, n D at a time.

    pool: where room is taken as, and none is taken from. extent: how long the text counts as. most: how many tokens
    a piece has.
    """
    layers = len(decoder.spec.layers)
    shapes, places = pool.shapes[:layers], pool.places[:layers]
    pages = Pages(shapes, len(tokens), size=pool.size, device=pool.device, dtype=pool.dtype, places=places)
    text = Sequence(tokens, extent, frozenset(), Chooser(Sampling(), (), decoder.spec.vocab), [])
    pages.reserve(text.lease, len(tokens), len(tokens))
    runner = Runner(decoder, pages, graphs=False)  # for one text it is not worth it
    while text.pending:
        piece = Piece(text, text.cached, tokens[text.cached :][:most])
        yield runner.run([piece])
        text.cached += len(piece.tokens)


@torch.inference_mode()
def judged(decoder: Decoder, pieces: Iterable[Tensor], tokens: list[int], first: int, top: int) -> list[Token]:
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
    return said
