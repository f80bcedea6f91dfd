"""Scores of the next token become one token, for each request by its own rules: choosing folds a list of them.

What a request draws depends on its own seed and scores alone, whoever else is chosen for in the same call.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lathe.engine.constrain import Constraint
from lathe.engine.rules import Allowed, Candidates, Repeats, Repetition, Rule, Unended, total_of
from lathe.engine.sampling import Sampling, Token
from lathe.errors import CheckpointError, UsageError


@dataclass(frozen=True, eq=False)
class Way:
    """How a token is chosen: by which rules, in order; then the best where it is `greedy`, or else drawn.

    The same way is the same object, so that those who go it are found together without a look at their rules.
    """

    greedy: bool
    rules: tuple[Rule, ...]


_one = lru_cache(256)(Way)  # of one that was forgotten meanwhile there are two


class Chooser:
    """One request's side of the choice: its wishes, its dice, what it must be, and which tokens were said before.

    Args:
        constraint: what the answer must be. stops: the tokens that end it.

    way: how its next token is chosen.

    Raises UsageError for a wish about a token that is not among the `vocab`.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        vocab: int,
        device: torch.device | str = "cpu",
        constraint: Constraint | None = None,
        stops: Collection[int] = (),
    ) -> None:
        self.sampling, self.constraint = sampling, constraint
        for id, _ in sampling.bias:
            if not 0 <= id < vocab:
                raise UsageError(f"logit_bias names token {id}.", f"Ids run from 0 to {vocab - 1}.")
        self.stops = frozenset(id for id in stops if 0 <= id < vocab)
        self.length = 0  # tokens said
        self.guessed: tuple[int, ...] = ()  # said in thought only: the constraint has not accepted them
        # The standard library promises the same numbers from a seed on every machine and in every version.
        self.root = random.getrandbits(64) if sampling.seed is None else sampling.seed
        self.dice = random.Random(self.root)
        self.thrown: list[float] = []
        penalised = any(isinstance(rule, (Repetition, Repeats)) for rule in sampling.rules)
        # How often the answer holds each token that it or the prompt holds.
        self.seen: dict[int, int] | None = dict.fromkeys(prompt, 0) if penalised else None
        self.way = self._way()

    @property
    def share(self) -> float:
        """A number in (0, 1] for the next token: which one it becomes, as a share of the probabilities before it.

        The n-th token's is the n-th that the dice give, however many were guessed, or chosen in vain, before.
        """
        while len(self.thrown) <= self.length:
            self.thrown.append(1.0 - self.dice.random())
        return self.thrown[self.length]

    def _way(self) -> Way:
        rules = self.sampling.rules
        if self.stops and self.length < self.sampling.min_tokens:
            rules = (Unended(self.stops), *rules)
        return _one(self.sampling.greedy, rules if self.constraint is None else (Allowed(), *rules))

    @property
    def ended(self) -> bool:
        """Whether the constraint lets nothing follow."""
        return self.constraint is not None and self.constraint.complete

    def say(self, token: int) -> None:
        """Remember what was chosen."""
        self._count(token)
        if self.constraint is not None:
            self.constraint.accept(token)

    def _count(self, token: int) -> None:
        self.length += 1
        if self.length == self.sampling.min_tokens:
            self.way = self._way()
        if self.seen is not None:
            self.seen[token] = self.seen.get(token, 0) + 1

    def after(self, tokens: Sequence[int]) -> Chooser:
        """The chooser that this one would be if it had said `tokens` too; dice and constraint are shared."""
        if not tokens:
            return self
        other = copy(self)
        other.guessed = (*self.guessed, *tokens)
        other.seen = copy(self.seen)
        for token in tokens:
            other._count(token)
        return other


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> list[Token]:
    """One token for each row of scores, which its chooser has then said. logits: N V, float32, one for each chooser."""
    chosen = picked(logits, choosers)
    for id, chooser in zip(chosen, choosers, strict=True):
        chooser.say(id)
    return reported(logits, chosen, [chooser.sampling.logprobs for chooser in choosers])


def picked(logits: Tensor, choosers: Sequence[Chooser]) -> list[int]:
    """The token that `choose` would give for each row, and nothing else. Raises CheckpointError for rows of NaN."""
    chosen = [0] * len(choosers)
    for way, rows, candidates in _judged(logits, choosers):
        x, ids = candidates.logits, candidates.ids
        if way.greedy:
            columns = _first_best(x)
            best = x.gather(-1, columns[:, None])  # not a number if any is none
        else:
            top = x.amax(-1, keepdim=True)
            best = top - top  # nor are infinite scores of use here
            # Not softmax: its sum would be rounded by how wide the others' candidates are.
            columns = draw((x - top).exp_(), [choosers[row].share for row in rows])
        found = columns if way.greedy or ids is None else ids.gather(-1, columns[:, None])[:, 0]
        for row, id in zip(rows, numbers(found, best[:, 0]), strict=True):
            chosen[row] = id
    return chosen


def _first_best(logits: Tensor) -> Tensor:
    """The column of the highest score, the first of equal ones. logits: N K; N."""
    # On a CPU numpy finds it ten times as fast as PyTorch.
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


def chances(logits: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """How probable `choose` makes every token, a row for each chooser. logits: N V, float32. Returns N V, float32."""
    out = torch.zeros_like(logits)
    for way, rows, candidates in _judged(logits, choosers):
        if way.greedy:
            out[rows, _first_best(candidates.logits)] = 1.0
        elif candidates.ids is None:
            out[rows] = candidates.logits.softmax(-1)
        else:
            index = torch.tensor(rows, device=out.device)[:, None]
            out.index_put_((index, candidates.ids), candidates.logits.softmax(-1), accumulate=True)
    return out


def draw(weights: Tensor, shares: Iterable[float]) -> Tensor:
    """The column at which the running sum of weights reaches a share of the whole. Returns N.

    weights: N K, overwritten. shares: in (0, 1], so that the column found has added something to the sum: what is ruled
    out is never drawn.
    """
    sums = weights.cumsum_(-1)
    goals = torch.tensor(list(shares), device=sums.device, dtype=sums.dtype)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, goals)[:, 0].clamp_(max=weights.shape[-1] - 1)  # of no numbers, the last


def numbers(columns: Tensor, best: Tensor) -> list[int]:
    """Columns that were chosen, as a list. best: the scores by which they were. Both N.

    Raises CheckpointError where a score is not a number.
    """
    found: list[int] = columns.where(best == best, -1).tolist()  # one look at the device for both
    if found and min(found) < 0:
        raise CheckpointError(
            "The model's scores are not numbers (NaN).",
            fix="Its weights are damaged, or need a --precision of larger range, as fp32.",
        )
    return found


def _judged(logits: Tensor, choosers: Sequence[Chooser]) -> Iterator[tuple[Way, list[int], Candidates]]:
    """The rows that go the same way, and what its rules leave of them."""
    groups: dict[Way, list[int]] = {}
    for row, chooser in enumerate(choosers):
        groups.setdefault(chooser.way, []).append(row)
    for way, rows in groups.items():
        candidates = Candidates(logits if len(groups) == 1 else logits[rows])
        for rule in way.rules:
            candidates = rule(candidates, [choosers[row] for row in rows])
        yield way, rows, candidates


_plain = lru_cache(1 << 14)(Token)  # what is said most often is there already, once for all


def reported(logits: Tensor, chosen: list[int], wanted: list[int | None]) -> list[Token]:
    """The chosen tokens, with log-probabilities for those who want them."""
    tokens = [_plain(id) for id in chosen]
    rows = [row for row, n in enumerate(wanted) if n is not None]
    if not rows:
        return tokens
    scores = logits if len(rows) == len(wanted) else logits[rows]
    total = total_of(scores)
    own = scores.gather(-1, torch.tensor([[chosen[row]] for row in rows], device=logits.device)) - total
    best, ids = scores.topk(min(max(wanted[row] or 0 for row in rows), logits.shape[-1]))
    found = zip(rows, own[:, 0].tolist(), ids.tolist(), (best - total).tolist(), strict=True)
    for row, logprob, top, logprobs in found:
        n = wanted[row]
        tokens[row] = Token(chosen[row], logprob, tuple(zip(top[:n], logprobs[:n], strict=True)))
    return tokens
