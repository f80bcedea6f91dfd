"""Guesses at the next tokens without a model: what followed the last few tokens where they stood before.

Answers that repeat their prompt (a summary, a correction, code, JSON) are guessed well, free prose hardly ever; so each
sequence learns from how its guesses fared how many to make, and when to make none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from lathe.engine import scheduler
from lathe.engine.pages import Pages
from lathe.engine.scheduler import NOTHING, Draft
from lathe.errors import UsageError
from lathe.model.spec import CacheShape

KEYS = (3, 2)  # tokens that must be the same for what followed them to be guessed; the longer first
FIRST = 2  # guesses in the first draft
ROWS = 8  # guesses in one pass, of all sequences: more rows would slow the pass down, and many fill it without guesses
REACH = 1 << 14  # tokens of a prompt that are looked through, from its end
PATIENCE = 64  # tokens that a sequence goes without guesses, at most, before it tries again


@dataclass
class Memory:
    """What a sequence's tokens were followed by, and how guesses at it fared.

    places: behind each run of tokens, where it stood last. read: how many tokens are in there.
    size: how many tokens the next draft has. sent, stood: guesses so far and those that proved right.
    pause: tokens without guesses after a draft of which nothing stood, doubled each time. resume: when they are over.
    """

    read: int
    places: dict[tuple[int, ...], int] = field(default_factory=dict)
    size: int = FIRST
    sent: int = 0
    stood: int = 0
    pause: int = 1
    resume: int = 0

    def learn(self, sequence: scheduler.Sequence, most: int) -> None:
        """Take in what was said since the last time, and how the last draft fared."""
        tokens = sequence.tokens
        for at in range(self.read, len(tokens)):
            for length in KEYS:
                self.places[tuple(tokens[at - length : at])] = at
        self.read = len(tokens)
        sent, stood = sequence.proposed - self.sent, sequence.accepted - self.stood
        self.sent, self.stood = sequence.proposed, sequence.accepted
        if not sent:
            return
        if stood:
            self.size, self.pause = min(2 * self.size, most) if stood == sent else max(stood, FIRST), 1
        else:
            self.size, self.resume = FIRST, len(tokens) + self.pause
            self.pause = min(2 * self.pause, PATIENCE)

    def guess(self, tokens: list[int], count: int) -> list[int]:
        """At most `count` tokens that followed the last ones before, and then what followed these."""
        for length in KEYS:
            if place := self.places.get(tuple(tokens[-length:])):
                guesses: list[int] = []
                for at in range(place, place + count):  # behind the end stand the guesses themselves
                    guesses.append(tokens[at] if at < len(tokens) else guesses[at - len(tokens)])
                return guesses
        return []


class Lookup:
    """A `Drafter` that looks its guesses up in the sequence itself (prompt lookup, n-gram speculation).

    count: the most tokens it guesses at once.

    What comes out is the same as without it, token for token, so it is free to guess or not by who else runs.
    """

    shapes: Sequence[CacheShape] = ()

    def __init__(self, count: int = ROWS) -> None:
        if count < 1:
            raise UsageError(f"The draft is to guess {count} tokens at once.", "It must be at least 1.")
        self.count = count
        self.memories: WeakKeyDictionary[scheduler.Sequence, Memory] = WeakKeyDictionary()

    def attach(self, pages: Pages, first: int, vocab: int) -> None:
        """It needs none of these."""

    def propose(self, sequences: Sequence[scheduler.Sequence]) -> list[Draft]:
        most = min(self.count, ROWS // len(sequences))
        return [self._draft(sequence, most) for sequence in sequences] if most else [NOTHING] * len(sequences)

    def _draft(self, sequence: scheduler.Sequence, most: int) -> Draft:
        tokens = sequence.tokens
        memory = self.memories.get(sequence)
        if memory is None:
            memory = self.memories[sequence] = Memory(max(len(tokens) - REACH, max(KEYS)))
        memory.learn(sequence, self.count)
        room = sequence.extent - len(tokens) - 1  # the last token there is room for is the model's own
        if len(tokens) < memory.resume or (count := min(memory.size, most, room)) < 1:
            return NOTHING
        guesses = memory.guess(tokens, count)
        return Draft(guesses) if guesses else NOTHING
