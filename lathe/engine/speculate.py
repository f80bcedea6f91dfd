"""Guesses at the next tokens, and which of them stand: several tokens of one pass, distributed as if made one by one.

Whoever guesses is a `Drafter`. Guesses that could have been no others stand where the model, with the dice that it has
for that place, says the same: the answer is, token for token, what it is without guesses.

Guesses drawn from probabilities, as those of the smaller model here, are judged by acceptance and rejection (Leviathan
et al., arXiv:2211.17192): token x, guessed with probability q(x), stands with probability min(1, p(x) / q(x)), where p
is what the model itself would choose by; in place of the first that falls comes a token drawn from max(p - q, 0), and
after a draft of which all stand, one from p. All rules of sampling are in p and in q, so what comes out follows p.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.engine import scheduler
from lathe.engine.choosing import Chooser, chances, draw, numbers, picked, reported
from lathe.engine.pages import Pages
from lathe.engine.runner import Piece, Runner
from lathe.engine.sampling import Token
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
        dice = [_dice(s, "guess") for s in sequences]
        for turn in range(max(wanted)):
            going = [i for i, n in enumerate(wanted) if turn < n]
            choosers = [sequences[i].chooser.after(guesses[i]) for i in going]
            q = self._chances([pieces[i] for i in going], choosers)
            drawn = numbers(draw(q.clone(), [1.0 - dice[i].random() for i in going]), q.sum(-1))
            for i, row, id in zip(going, q, drawn, strict=True):
                sequence, start = sequences[i], len(sequences[i].tokens) + turn
                sequence.drafted = len(sequence.tokens) - 1  # the last is read again if this step is interrupted
                guesses[i].append(id)
                odds[i].append(row)
                pieces[i] = Piece(sequence, start, [id])
        return [
            Draft(g, None if s.chooser.sampling.greedy else torch.stack(rows), len(s.tokens) + len(g) - 1)
            if g
            else NOTHING
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
    ends = list(accumulate(part.due for part in parts))
    spans = [slice(end - part.due, end) for end, part in zip(ends, parts, strict=True)]
    choosers = [part.sequence.chooser.after(part.draft.tokens[:n]) for part in parts for n in range(part.due)]
    made: list[list[int]] = [[] for _ in parts]
    for judge, weighed in ((_compared, False), (_weighed, True)):
        some = [i for i, part in enumerate(parts) if (part.draft.chances is not None) == weighed]
        if some:
            rows = [row for i in some for row in range(spans[i].start, spans[i].stop)]
            scores = logits if len(rows) == len(logits) else logits[rows]
            for i, ids in zip(
                some, judge(scores, [choosers[row] for row in rows], [parts[i] for i in some]), strict=True
            ):
                made[i] = ids
    rows, wanted = [], []
    for span, part, ids in zip(spans, parts, made, strict=True):
        part.sequence.proposed += len(part.draft.tokens)
        part.sequence.accepted += len(ids) - 1
        ids[:] = _said(part.sequence.chooser, ids)
        rows += range(span.start, span.start + len(ids))
        wanted += [part.sequence.chooser.sampling.logprobs] * len(ids)
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


def _compared(logits: Tensor, choosers: Sequence[Chooser], parts: Sequence[Part]) -> list[list[int]]:
    """What the model itself says after each guess: the guesses stand as long as it says the same."""
    picks, made = iter(picked(logits, choosers)), []
    for part in parts:
        own = [next(picks) for _ in range(part.due)]
        falls = (n for n, (guess, id) in enumerate(zip(part.draft.tokens, own, strict=False)) if guess != id)
        made.append(own[: next(falls, len(part.draft.tokens)) + 1])
    return made


def _weighed(logits: Tensor, choosers: Sequence[Chooser], parts: Sequence[Part]) -> list[list[int]]:
    """Acceptance and rejection."""
    p, first, made = chances(logits, choosers), 0, []
    pairs, dice = [], [_dice(part.sequence, "judge") for part in parts]
    for part in parts:
        rows, ids, q = range(len(part.draft.tokens)), part.draft.tokens, part.draft.chances
        assert q is not None
        pairs.append(torch.stack((p[[first + row for row in rows], ids], q[list(rows), ids])))
        first += part.due
    judged, first, last = iter(torch.cat(pairs, dim=1).T.tolist()), 0, []  # one look at the device for all
    for part, die in zip(parts, dice, strict=True):
        odds = [next(judged) for _ in part.draft.tokens]
        falls = (n for n, (own, guess) in enumerate(odds) if die.random() * guess >= own)
        kept = next(falls, len(odds))
        made.append(part.draft.tokens[:kept])
        last.append(_left(p[first + kept], part.draft, kept))
        first += part.due
    left = torch.stack(last)
    total = left.sum(-1)
    drawn = numbers(draw(left, [1.0 - die.random() for die in dice]), total)
    return [[*kept, id] for kept, id in zip(made, drawn, strict=True)]


def _left(p: Tensor, draft: Draft, kept: int) -> Tensor:
    """What the token after those that stand is drawn from. p: V, the model's own choice there. V."""
    if draft.chances is None or kept == len(draft.tokens):
        return p
    rest = (p - draft.chances[kept]).clamp(min=0.0)
    return torch.where(rest.sum() > 0, rest, p)  # where p and q differ by rounding only, it may have left nothing


def _dice(sequence: scheduler.Sequence, use: str) -> random.Random:
    """Dice for one step of a sequence, the same whenever this step is taken."""
    return random.Random(f"{sequence.chooser.root} {len(sequence.tokens)} {use}")
