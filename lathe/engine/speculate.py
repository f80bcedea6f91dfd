"""Guesses at the next tokens, and which of them stand: several tokens of one pass, distributed as if made one by one.

Whoever guesses is a `Drafter`: here a smaller model. A guess is judged by acceptance and rejection (Leviathan et al.,
arXiv:2211.17192): token x, guessed with probability q(x), stands with probability min(1, p(x) / q(x)), where p is what
the model itself would choose by; in place of the first that falls comes a token drawn from max(p - q, 0), and after a
draft of which all stand, one from p. All rules of sampling are in p and in q, so what comes out is distributed by p. A
greedy choice is a p that is all on one token: then the answer is the greedy one, token for token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.engine import scheduler
from lathe.engine.pages import Pages
from lathe.engine.runner import Piece, Runner
from lathe.engine.sampling import Chooser, Token, chances, draw, reported
from lathe.engine.scheduler import NOTHING, Draft, Part
from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.model.spec import CacheShape


class Drafter(Protocol):
    """Whoever guesses. What it guesses for a sequence depends on nothing but that sequence's tokens and seed, so that
    a request gets the same answer in any company.

    count: the most tokens it guesses at once. shapes: the layers it needs in the pool, beside the model's.
    """

    count: int
    shapes: Sequence[CacheShape]

    def attach(self, pages: Pages, first: int, vocab: int) -> None:
        """Take the pool, where its own layers begin at `first`, and the size of the vocabulary to guess in."""

    def propose(self, sequences: Sequence[scheduler.Sequence]) -> list[Draft]:
        """A draft for each sequence, all of whose tokens but the last few may be in the pool already."""


class DraftModel:
    """A decoder that guesses for a larger one with the same vocabulary. Its keys and values lie in the same slots."""

    def __init__(self, decoder: Decoder, count: int = 4, *, chunk: int = 512) -> None:
        if count < 1:
            raise UsageError(f"The draft is to guess {count} tokens at once.", "It must be at least 1.")
        spec = decoder.spec
        self.decoder, self.count, self.chunk = decoder, count, chunk
        self.longest = min(spec.context, spec.learned_positions or spec.context)
        self.shapes: Sequence[CacheShape] = [layer.mixer.cache for layer in spec.layers]

    def attach(self, pages: Pages, first: int, vocab: int) -> None:
        self.runner, self.vocab = Runner(self.decoder, pages, first), vocab

    def propose(self, sequences: Sequence[scheduler.Sequence]) -> list[Draft]:
        guesses: list[list[int]] = [[] for _ in sequences]
        odds: list[list[Tensor]] = [[] for _ in sequences]
        wanted = [self._wanted(sequence) for sequence in sequences]
        pieces = [self._unread(s) if n else Piece(s, 0, []) for s, n in zip(sequences, wanted, strict=True)]
        dice = [random.Random(f"{s.chooser.root} {len(s.tokens)}") for s in sequences]
        for turn in range(max(wanted)):
            going = [i for i, n in enumerate(wanted) if turn < n]
            choosers = [sequences[i].chooser.after(guesses[i]) for i in going]
            q = self._chances([pieces[i] for i in going], choosers)
            drawn = draw(q, [dice[i] for i in going]).tolist()
            for i, row, id in zip(going, q, drawn, strict=True):
                sequence, start = sequences[i], len(sequences[i].tokens) + turn
                sequence.drafted = len(sequence.tokens) - 1  # the last is read again if this step is interrupted
                guesses[i].append(id)
                odds[i].append(row)
                pieces[i] = Piece(sequence, start, [id])
        return [
            Draft(g, torch.stack(rows), len(s.tokens) + len(g) - 1) if g else NOTHING
            for s, g, rows in zip(sequences, guesses, odds, strict=True)
        ]

    def _wanted(self, sequence: scheduler.Sequence) -> int:
        """How many tokens are worth guessing: the last that there is room for is the model's own."""
        length = len(sequence.tokens)
        # The first token of an answer must not wait until the draft has read the prompt too.
        known = bool(sequence.made) and max(sequence.tokens[sequence.drafted :]) < self.decoder.spec.vocab
        return max(min(self.count, sequence.extent - length - 1, self.longest - length), 0) if known else 0

    def _unread(self, sequence: scheduler.Sequence) -> Piece:
        """What the draft model has not read of a sequence, the last chunk of it; it reads the others now."""
        while len(sequence.tokens) - sequence.drafted > self.chunk:
            start, end = sequence.drafted, sequence.drafted + self.chunk
            self.runner.run([Piece(sequence, start, sequence.tokens[start:end])])
            sequence.drafted = end
        return Piece(sequence, sequence.drafted, sequence.tokens[sequence.drafted :])

    def _chances(self, pieces: Sequence[Piece], choosers: Sequence[Chooser]) -> Tensor:
        """Probabilities of the next tokens after the pieces, which are read. N V."""
        scores = self.runner.scores(self.runner.run(pieces), pieces)
        # Tables of one vocabulary may be padded to different sizes.
        scores = F.pad(scores[:, : self.vocab], (0, max(self.vocab - scores.shape[-1], 0)), value=float("-inf"))
        return chances(scores, choosers)


def accept(logits: Tensor, parts: Sequence[Part]) -> list[list[Token]]:
    """The tokens that come of a pass, one at least for each part: the guesses that stand and one more.

    logits: N V, float32, for each part a row after its last token and one after each of its guesses.
    """
    p = chances(logits, [part.sequence.chooser.after(part.draft.tokens[:n]) for part in parts for n in range(part.due)])
    firsts, row = [], 0
    for part in parts:
        firsts.append(row)
        row += part.due
    standing = _standing(p, firsts, parts)
    last = [_left(p[first + kept], part.draft, kept) for part, first, kept in zip(parts, firsts, standing, strict=True)]
    drawn = draw(torch.stack(last), [part.sequence.chooser.dice for part in parts]).tolist()
    made = []
    for part, kept, id in zip(parts, standing, drawn, strict=True):
        part.sequence.proposed += len(part.draft.tokens)
        part.sequence.accepted += kept
        made.append(_said(part.sequence.chooser, [*part.draft.tokens[:kept], id]))
    rows = [first + n for first, ids in zip(firsts, made, strict=True) for n in range(len(ids))]
    wanted = [part.sequence.chooser.sampling.logprobs for part, ids in zip(parts, made, strict=True) for _ in ids]
    tokens = iter(reported(logits[rows], [id for ids in made for id in ids], wanted))
    return [[next(tokens) for _ in ids] for ids in made]


def _said(chooser: Chooser, tokens: Sequence[int]) -> list[int]:
    """The tokens, said one after the other, up to one that completes what the answer must be."""
    said = []
    for token in tokens:
        chooser.say(token)
        said.append(token)
        if chooser.ended:
            break
    return said


def _standing(p: Tensor, firsts: Sequence[int], parts: Sequence[Part]) -> list[int]:
    """How many guesses of each part stand before the first that falls."""
    pairs = []
    for part, first in zip(parts, firsts, strict=True):
        rows, ids, q = range(len(part.draft.tokens)), part.draft.tokens, part.draft.chances
        own = p[[first + row for row in rows], ids]
        pairs.append(torch.stack((own, torch.ones_like(own) if q is None else q[list(rows), ids])))
    judged = iter(torch.cat(pairs, dim=1).T.tolist())  # one look at the device for all
    standing = []
    for part in parts:
        dice, odds = part.sequence.chooser.dice, [next(judged) for _ in part.draft.tokens]
        falls = (n for n, (own, guess) in enumerate(odds) if dice.random() * guess >= own)
        standing.append(next(falls, len(odds)))
    return standing


def _left(p: Tensor, draft: Draft, kept: int) -> Tensor:
    """What the token after those that stand is drawn from. p: V, the model's own choice there. V."""
    if kept == len(draft.tokens):
        return p
    if draft.chances is None:
        rest = p.clone()
        rest[draft.tokens[kept]] = 0.0
    else:
        rest = (p - draft.chances[kept]).clamp(min=0.0)
    return torch.where(rest.sum() > 0, rest, p)  # where p and q differ by rounding only, it may have left nothing
