"""Texts become how probable the model finds their tokens; what several have in common is read once; knows no words.

It goes as `Engine.step` does, by scheduler, pages and runner; but nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from lathe.engine import scheduler
from lathe.engine.runner import Piece, Runner
from lathe.engine.sampling import Token, reported
from lathe.engine.scheduler import Scheduler


@dataclass(eq=False)
class Text(scheduler.Sequence):
    """A text but for its last token, which is judged and not read.

    whole: all of it. first: the number of the first token that is judged. judged: those so far.
    """

    whole: list[int] = field(default_factory=list)
    first: int = 1
    judged: list[Token] = field(default_factory=list)

    @property
    def reusable(self) -> int:
        return self.first + len(self.judged) - 1  # what is said behind this token is to be known next

    def piece(self, length: int) -> Piece:
        """The next tokens to be read; the last `due` of them stand before tokens that are judged."""
        end = self.cached + length
        return Piece(self, self.cached, self.tokens[self.cached : end], max(end - self.reusable, 0))


def judge(texts: Sequence[Text], seats: Scheduler, runner: Runner, top: int) -> None:
    """Judge every text, with the `top` likeliest tokens in the place of each token. seats: has the pool for itself."""
    for text in texts:
        seats.add(text)
    try:
        while seats.waiting or seats.running:
            reading = [(text := cast("Text", part.sequence), text.piece(part.length)) for part in seats.pick()]
            pieces = [piece for _, piece in reading]
            hidden, ids = runner.run(pieces), [id for text, piece in reading for id in _judged(text, piece)]
            rows = iter(reported(runner.scores(hidden, pieces), ids, [top] * len(ids)) if ids else ())
            for text, piece in reading:
                text.judged += [next(rows) for _ in range(piece.due)]
                seats.advance(text, len(piece.tokens))
                if not text.pending:
                    seats.remove(text)
    finally:
        for left in (*seats.waiting, *seats.running):
            seats.remove(left)


def _judged(text: Text, piece: Piece) -> list[int]:
    """The tokens that a piece judges."""
    return text.whole[text.reusable + 1 :][: piece.due]
