"""Texts become how probable the model finds their tokens; what several have in common is read once; knows no words.

It goes as `Engine.step` does, by scheduler, pages and runner; but nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

from torch import Tensor

from lathe.engine import scheduler
from lathe.engine.runner import Piece, Runner
from lathe.engine.sampling import Token, reported
from lathe.engine.scheduler import Scheduler

AHEAD = 2  # texts that wait for each seat
SCORES = 1 << 26  # that are in memory at once: a vocabulary of them for each token that is judged


@dataclass(eq=False)
class Text(scheduler.Sequence):
    """A text but for its last token, which is judged and not read.

    number: what it is told by. whole: all of it. first: the number of the first token that is judged. judged: those so
    far.
    """

    number: int = 0
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


def judge(texts: Iterable[Text], seats: Scheduler, runner: Runner, top: int) -> Iterator[Text]:
    """Judge texts, with the `top` likeliest tokens in the place of each token, and give each when it is done.

    texts: taken as there is room for them; one that has nothing to be read is given as it is. seats: has the pool for
    itself. Raises LatheError where there is not enough memory for one.
    """
    coming, begun = iter(texts), set[Text]()
    try:
        while True:
            for text in islice(coming, max(AHEAD * seats.seats - len(seats.waiting), 0)):
                if text.pending:
                    begun.add(text)
                    seats.add(text)
                else:
                    yield text
            if not begun:
                return
            yield from _pass(begun, seats, runner, top)
    finally:
        for left in (*seats.waiting, *seats.running):
            seats.remove(left)


def _pass(begun: set[Text], seats: Scheduler, runner: Runner, top: int) -> list[Text]:
    """One pass over a part of every text that runs. Returns those that are done, which are taken out of `begun`."""
    reading = [(text := cast("Text", part.sequence), text.piece(part.length)) for part in seats.pick()]
    if failed := next((text for text in begun if text.failure), None):
        assert failed.failure is not None
        raise failed.failure
    pieces = [piece for _, piece in reading]
    hidden, ids = runner.run(pieces), [id for text, piece in reading for id in _judged(text, piece)]
    found = _reported(hidden, pieces, ids, runner, top)
    done = []
    for text, piece in reading:
        text.judged += islice(found, piece.due)
        seats.advance(text, len(piece.tokens))
        if not text.pending:
            seats.remove(text)
            begun.remove(text)
            done.append(text)
    return done


def _reported(hidden: Tensor, pieces: list[Piece], ids: list[int], runner: Runner, top: int) -> Iterator[Token]:
    """The tokens that follow the due ones of all pieces, with their log-probabilities. hidden: T D."""
    most = max(SCORES // runner.decoder.spec.vocab, 1)
    end = told = 0
    some: list[Piece] = []
    rows: list[int] = []
    for piece in pieces:
        end += len(piece.tokens)
        for begin in range(end - piece.due, end, most):
            count = min(most, end - begin)
            if len(rows) + count > most:
                yield from _scored(hidden[rows], some, ids[told:], runner, top)
                told, some, rows = told + len(rows), [], []
            some.append(Piece(piece.sequence, 0, [0] * count, count))
            rows += range(begin, begin + count)
    if rows:
        yield from _scored(hidden[rows], some, ids[told:], runner, top)


def _scored(hidden: Tensor, pieces: list[Piece], ids: list[int], runner: Runner, top: int) -> list[Token]:
    return reported(runner.scores(hidden, pieces), ids[: len(hidden)], [top] * len(hidden))


def _judged(text: Text, piece: Piece) -> list[int]:
    """The tokens that a piece judges."""
    return text.whole[text.reusable + 1 :][: piece.due]
