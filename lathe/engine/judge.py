"""Texts become how probable the model finds their tokens: they are read beside whoever answers; knows no words.

A text is a sequence of which nothing follows. What it has in common with others is read once, though all its tokens are
judged: a page that was judged has a note of it, which stays as long as the page does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar, NamedTuple

from torch import Tensor

from lathe.engine import scheduler
from lathe.engine.choosing import reported
from lathe.engine.pages import Pages
from lathe.engine.runner import Piece, Runner
from lathe.engine.sampling import Token
from lathe.engine.scheduler import Part

SCORES = 1 << 26  # that are in memory at once: a vocabulary of them for each token that is judged


class Note(NamedTuple):
    """The tokens of a page as they were judged, with so many of the likeliest in the place of each. In the place of a
    text's first token, which nothing stands before, is any."""

    top: int
    tokens: list[Token]


@dataclass(eq=False)
class Text(scheduler.Sequence):
    """A text but for its last token, which is judged and not read.

    whole: all of it. first: the number of the first token that is judged, at least 1. top: how many of the likeliest
    are told in the place of each. judged: those so far. pages: the pool that it is read in.
    """

    answers: ClassVar[bool] = False

    whole: list[int] = field(default_factory=list)
    first: int = 1
    top: int = 0
    judged: list[Token] = field(default_factory=list)
    pages: Pages | None = None

    @property
    def told(self) -> list[Token]:
        """What was judged. All there is to it when it has its `finish`."""
        return self.judged

    @property
    def broken(self) -> bool:
        return any(token.logprob != token.logprob for token in self.judged)

    @property
    def known(self) -> int:
        """How many tokens need not be read: what is said behind the next one is to be known."""
        return self.first + len(self.judged) - 1

    @property
    def reusable(self) -> int:
        self._recall()
        return self.known

    @property
    def shared(self) -> int:
        return len(self.tokens)

    def take(self, tokens: Iterable[Token], before: int) -> None:
        """Take what was judged of it in a pass, before which `before` of its tokens were cached."""
        assert self.pages is not None
        self.judged += tokens
        size = self.pages.size
        for page in range(before // size, self.cached // size):
            if (name := self.names[1 + page]) in self.pages.known and self.first <= max(page * size, 1):
                start = page * size - self.first
                some = self.judged[max(start, 0) : start + size]
                self.pages.notes[name] = Note(self.top, [Token(self.whole[0])] * max(-start, 0) + some)
        if not self.pending:
            self.finish = "stop"

    def _recall(self) -> None:
        """Take over what was judged of the same beginning."""
        assert self.pages is not None
        size = self.pages.size
        for name in self.names[1 + (self.known + 1) // size :]:
            note = self.pages.notes.get(name)
            if note is None or note.top < self.top:
                break
            some = note.tokens[(self.known + 1) % size :]
            self.judged += [token._replace(top=token.top[: self.top]) for token in some]


def judged(hidden: Tensor, parts: Iterable[Part], runner: Runner) -> list[tuple[Text, list[Token]]]:
    """What a pass tells of the texts among its parts: how probable the tokens are that follow those that it read.

    hidden: T D, of all parts. At most SCORES are computed at once.
    """
    found: list[tuple[Text, list[Token]]] = []
    rows: list[tuple[int, int, int]] = []  # which of `found`, of the hidden states, of the vocabulary
    end = 0
    for part in parts:
        end += len(part.tokens)
        if isinstance(text := part.sequence, Text):
            at = part.start + part.length
            ids = text.whole[max(text.known, part.start) + 1 : at + 1]
            rows += [(len(found), end - len(ids) + i, id) for i, id in enumerate(ids)]
            found.append((text, []))
    most = max(SCORES // runner.decoder.spec.vocab, 1)
    for begin in range(0, len(rows), most):
        some = rows[begin : begin + most]
        runs = [(found[number][0], len([*run])) for number, run in groupby(some, key=lambda row: row[0])]
        pieces = [Piece(text, 0, [0] * count, count) for text, count in runs]
        scores = runner.scores(hidden[[row for _, row, _ in some]], pieces)
        tokens = reported(scores, [id for _, _, id in some], [found[number][0].top for number, _, _ in some])
        for (number, _, _), token in zip(some, tokens, strict=True):
            found[number][1].append(token)
    return found
