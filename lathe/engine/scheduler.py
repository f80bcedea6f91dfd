"""Requests become the parts of the next pass: who runs, with how many tokens, in whose room; knows no model.

Those who run, and those who wait, stand in the order of their ranks: by priority, then by arrival. When the pool is out
of pages, the last who runs gives its own up and waits to be computed again from its tokens: nothing is lost but time.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from lathe.engine.choosing import Chooser
from lathe.engine.names import Names
from lathe.engine.pages import Lease, Pages
from lathe.engine.sampling import Token
from lathe.errors import LatheError

Finish = Literal["stop", "length", "cancelled", "failed"]  # failed: `error` says why


@dataclass(eq=False)
class Sequence:
    """One request and how far it has come.

    answers: whether a token is to follow the last.
    tokens: the prompt's and what was generated since. prompt: how many are the prompt's.
    extent: how long it may become. stops: tokens that end it.
    names: what its keys and values depend on beside its tokens, and after it the names of the pages that it fills.
    adapter: the one that counts for it. rank: its priority, lower goes first, and its number in the order of arrival.
    made: what was generated, with its log-probabilities; a token that stopped it is the last.
    cached: how many of the tokens have their keys and values in the pool, in the slots of `lease`.
    furthest: the most that `cached` ever was. reused: how many of the prompt's were there from another request.
    drafted: for how many of them a draft model has its own there too.
    proposed, accepted: tokens that were guessed ahead so far, and those of them that proved right.
    finish: why it ended; None while it has not.
    started, first, ended: seconds on `time.perf_counter`'s clock, of its submission, its first and its last token.
    """

    answers: ClassVar[bool] = True

    tokens: list[int]
    extent: int
    stops: frozenset[int]
    chooser: Chooser
    names: list[bytes]
    adapter: str | None = None
    rank: tuple[int, int] = (0, 0)
    prompt: int = field(init=False)
    made: list[Token] = field(default_factory=list)
    cached: int = 0
    furthest: int = 0
    reused: int = 0
    drafted: int = 0
    proposed: int = 0
    accepted: int = 0
    lease: Lease = field(default_factory=Lease)
    finish: Finish | None = None
    failure: LatheError | None = None
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    ended: float | None = None

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def error(self) -> LatheError | None:
        """Why it failed: there was no memory, or what it must be could be followed no further."""
        return self.failure or (self.chooser.constraint.error if self.chooser.constraint else None)

    @property
    def broken(self) -> bool:
        """Whether what was told of it is not numbers."""
        return False

    @property
    def pending(self) -> int:
        """Tokens that must pass through the model before it says the next."""
        return len(self.tokens) - self.cached

    @property
    def reusable(self) -> int:
        """How many of the tokens may be taken over from another request: what follows the last must be said."""
        return len(self.tokens) - 1

    @property
    def shared(self) -> int:
        """How many of the tokens are worth waiting for while another request reads them."""
        return self.reusable

    def extend(self, tokens: Iterable[Token]) -> list[Token]:
        """Add what was generated, up to the token that ends the sequence. Returns what was added."""
        before = len(self.made)
        for token in tokens:
            self.tokens.append(token.id)
            self.made.append(token)
            if token.id in self.stops:
                self.finish = "stop"
            elif len(self.tokens) >= self.extent:
                self.finish = "length"
            if self.finish:
                break
        if self.chooser.ended:
            self.finish = "failed" if self.error else "stop"
        self.ended = time.perf_counter()
        self.first = self.first or self.ended
        return self.made[before:]


class Draft(NamedTuple):
    """Guesses at the tokens that follow a sequence.

    chances: how probable each token was to whoever guessed, k V; None where it could guess nothing else.
    cached: how many of the sequence's tokens and these a draft model has in the pool.
    """

    tokens: list[int]
    chances: Tensor | None = None
    cached: int = 0


NOTHING = Draft([])


@dataclass(slots=True)
class Part:
    """What a pass takes of a sequence: `length` tokens from position `start` on, the first that is not cached, and then
    what is guessed; `tokens` are all of these. The scores of the last `due` are wanted: of none, unless the sequence's
    own last is among them."""

    sequence: Sequence
    start: int
    length: int
    tokens: list[int]
    due: int
    draft: Draft = NOTHING

    @classmethod
    def of(cls, sequence: Sequence, length: int) -> Part:
        """The next `length` tokens of a sequence, as it is now."""
        tokens, start = sequence.tokens, sequence.cached
        end = start + length
        return cls(sequence, start, length, tokens[start:end], int(sequence.answers and end == len(tokens)))

    def guessing(self, draft: Draft) -> Part:
        """The part with guesses at what follows the sequence's last token, which it reaches."""
        return replace(self, tokens=self.tokens + draft.tokens, due=1 + len(draft.tokens), draft=draft)


class Scheduler:
    """At most `seats` sequences run at once, and a pass has at most `chunk` tokens of all of them, of which at most
    `beside` are read while others generate, beside guesses, for `ahead` of which every sequence has room."""

    def __init__(
        self,
        pages: Pages,
        chunk: int,
        seats: int,
        ahead: int = 0,
        names: Names | None = None,
        beside: int | None = None,
    ) -> None:
        self.pages, self.chunk, self.seats, self.ahead = pages, chunk, seats, ahead
        self.beside = chunk if beside is None else beside
        self.names = names or Names(pages.size)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn."""
        insort(self.waiting, sequence, key=_rank)

    def pick(self) -> list[Part]:
        """The parts of the next pass: who already generates goes before who still reads, then by rank.

        Who would read what another reads in this pass or a later one waits for it.
        """
        for sequence in [sequence for sequence in (*self.running, *self.waiting) if sequence.finish]:  # cancelled
            self.remove(sequence)
        for sequence in [s for s in self.running if len(s.tokens) + self.ahead > s.lease.room]:
            while sequence.lease.pages and not self._room(sequence):  # who runs holds pages, until it gives way
                self._preempt(self.running[-1])
        while self.waiting and self._admit(self.waiting[0]):
            pass
        if self.waiting and not self.running:  # a pool that was to grow could not
            self.fail(self.waiting[0])
        ready = [s for s in self.running if s.cached == len(s.tokens) - 1]
        generating = sum(s.answers for s in ready)
        left = min(self.chunk, generating + self.beside) if generating else self.chunk
        lengths, coming = dict.fromkeys(ready[:left], 1), set[bytes]()
        left -= len(lengths)
        if len(ready) < len(self.running):
            for sequence in [sequence for sequence in self.running if sequence.pending != 1]:
                if left and self._reads(sequence, coming):
                    lengths[sequence] = min(sequence.pending, left)
                    left -= lengths[sequence]
        return [Part.of(sequence, lengths[sequence]) for sequence in self.running if sequence in lengths]

    def advance(self, sequence: Sequence, count: int) -> None:
        """`count` more of a sequence's tokens are cached; pages that are full now are known from now on."""
        size, before = self.pages.size, sequence.cached
        sequence.cached = cached = before + count
        if cached > sequence.furthest:
            sequence.furthest = cached
        if before // size < cached // size:
            self.pages.keep(sequence.lease, self._names(sequence, cached), before // size)

    def fail(self, sequence: Sequence, failure: LatheError | None = None) -> None:
        """End a sequence for a reason, or else for want of memory."""
        fix = "Ask for less, or try again when there is less to do."
        sequence.failure = failure or LatheError("There is not enough memory for this request.", fix=fix)
        sequence.finish = "failed"
        self.remove(sequence, forget=failure is not None)

    def remove(self, sequence: Sequence, forget: bool = False) -> None:
        """Take a sequence out, wherever it stands, and its pages back. forget: nobody is to take over what they hold,
        for it may be what is wrong."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        names = self._names(sequence, sequence.cached)
        self.pages.keep(sequence.lease, names, drafted=sequence.drafted // self.pages.size)
        self.pages.give_back(sequence.lease)
        if forget:
            self.pages.forget([self.pages.known[name] for name in names if name in self.pages.known])
        sequence.cached = sequence.drafted = 0

    def _admit(self, sequence: Sequence) -> bool:
        """Let the first who waits run: where there is room for it, or others who run have a lower priority."""
        while len(self.running) >= self.seats or not self._room(sequence):
            if not self.running or self.running[-1].rank[0] <= sequence.rank[0]:
                return False
            self._preempt(self.running[-1])
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_rank)
        return True

    def _room(self, sequence: Sequence) -> bool:
        need = min(len(sequence.tokens) + self.ahead, sequence.extent)
        if sequence.lease.pages:
            return self.pages.reserve(sequence.lease, need, sequence.extent)
        found = self.pages.begin(sequence.lease, self._names(sequence, sequence.reusable), need, sequence.extent)
        if found is not None:
            self._take_over(sequence, found[0])
            sequence.drafted = found[1] * self.pages.size
        return found is not None

    def _reads(self, sequence: Sequence, coming: set[bytes]) -> bool:
        """Whether a sequence is to read in this pass. coming: names of the pages that those before it will fill."""
        names, size = self._names(sequence, sequence.reusable), self.pages.size
        self._take_over(sequence, self.pages.fill(sequence.lease, names, sequence.cached // size))
        if coming.intersection(self._names(sequence, sequence.shared)[sequence.cached // size :][:1]):
            return False
        coming.update(self._names(sequence, len(sequence.tokens))[sequence.cached // size :])
        return True

    def _take_over(self, sequence: Sequence, pages: int) -> None:
        """The first pages of a sequence are filled with what others computed."""
        cached = max(sequence.cached, pages * self.pages.size)
        sequence.reused += max(min(cached, sequence.prompt) - sequence.furthest, 0)
        sequence.furthest, sequence.cached = max(sequence.furthest, cached), cached

    def _names(self, sequence: Sequence, tokens: int) -> list[bytes]:
        """The names of the pages that the first `tokens` of a sequence fill."""
        self.names.extend(sequence.names, sequence.tokens)
        return sequence.names[1 : 1 + tokens // self.pages.size]

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self.add(sequence)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
