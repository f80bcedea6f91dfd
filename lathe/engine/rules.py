"""Scores of the next token -> those that a request's wishes leave: each wish is a rule, a small value that is called.

A rule takes many requests at once, a row of scores for each. What it makes of a row depends on that row and its request
alone. Knows nobody's whole list of wishes, and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lathe.engine.constrain import Constraint

BANNED, FORCED = -100.0, 100.0  # a bias so low rules a token out, one so high all others (as in OpenAI's API)
TAIL = 1e-4  # top-p looks among tokens at least this fraction as probable as the best, before it looks among all
FINE, STEPS = 64, 2048  # the steps on which it puts all scores: so many to a unit, and the last for all below

Array = np.ndarray[Any, Any]


class Request(Protocol):
    """What rules look at beside the scores.

    constraint: what the answer must be. guessed: tokens that it has not accepted, but that are taken for said.
    seen: how often the answer holds each token that it or the prompt holds; None where no rule asks.
    """

    @property
    def constraint(self) -> Constraint | None: ...

    @property
    def guessed(self) -> tuple[int, ...]: ...

    @property
    def seen(self) -> dict[int, int] | None: ...


@dataclass(frozen=True, eq=False)
class Candidates:
    """What may still be chosen, for N requests. logits: N K, float32; -inf is ruled out.

    ids: N K, the tokens that the columns stand for; None while every token has its own column. Rows with fewer tokens
        than others are filled up with any, ruled out.
    """

    logits: Tensor
    ids: Tensor | None = None

    def keep(self, kept: Tensor) -> Candidates:
        return Candidates(self.logits.masked_fill(~kept, float("-inf")), self.ids)

    def keep_any(self, kept: Tensor) -> Candidates:
        """The kept ones, where there are any. kept: N K or K."""
        logits = self.logits.masked_fill(~kept, float("-inf"))
        left = logits.amax(-1, keepdim=True) > float("-inf")
        return Candidates(torch.where(left, logits, self.logits), self.ids)


class Rule(Protocol):
    """Equal rules apply to many requests at once: a rule is a value, and hashable."""

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates: ...


@dataclass(frozen=True)
class Allowed:
    """What each request's constraint lets come next."""

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        masks = [request.constraint.mask(request.guessed) for request in requests if request.constraint]
        return candidates.keep_any(torch.stack(masks).to(candidates.logits.device))  # N V


@dataclass(frozen=True)
class Unended:
    """None of the tokens that end the answer."""

    stops: frozenset[int]

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        kept = torch.ones_like(candidates.logits[0], dtype=torch.bool)  # V
        kept[list(self.stops)] = False
        return candidates.keep_any(kept)


@dataclass(frozen=True)
class Bias:
    """Pairs of a token and what is added to its score."""

    pairs: tuple[tuple[int, float], ...]

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        x = candidates.logits
        ids, by = (torch.tensor(column, device=x.device) for column in zip(*self.pairs, strict=True))
        x = x.index_add(-1, ids, by.clamp(BANNED, FORCED).to(x.dtype).expand(len(x), -1))
        kept = torch.full_like(x[0], not bool((by >= FORCED).any()), dtype=torch.bool)  # V
        kept[ids] = (by >= FORCED) | (kept[ids] & (by > BANNED))
        return Candidates(x).keep_any(kept)


@dataclass(frozen=True)
class Repetition:
    penalty: float

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        x, (places, _) = candidates.logits.clone(), _seen(candidates.logits, requests)
        scores = x[places]
        x[places] = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return Candidates(x)


@dataclass(frozen=True)
class Repeats:
    presence: float
    frequency: float

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        x, (places, said) = candidates.logits.clone(), _seen(candidates.logits, requests)
        x[places] -= self.frequency * said + self.presence * (said > 0)
        return Candidates(x)


def _seen(logits: Tensor, requests: Sequence[Request]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Rows and columns of the tokens that each request's prompt or answer holds, and how often the answer does."""
    seen = [request.seen or {} for request in requests]
    rows = np.repeat(np.arange(len(seen)), [len(some) for some in seen])
    ids, said = (np.fromiter(chain.from_iterable(parts), np.int64, len(rows)) for parts in
                 (seen, [some.values() for some in seen]))  # fmt: skip
    places, counts = torch.from_numpy(np.stack((rows, ids))).to(logits.device), torch.from_numpy(said)
    return (places[0], places[1]), counts.to(logits.device, logits.dtype)


@dataclass(frozen=True)
class Temperature:
    temperature: float

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        x = candidates.logits
        best = x.amax(-1, keepdim=True)  # it becomes 0, so that the coldest leaves it finite
        return Candidates((x - best).div_(self.temperature), candidates.ids)


@dataclass(frozen=True)
class TopK:
    """Exactly k, the best first, also where the next has the same score."""

    k: int

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        logits, ids = candidates.logits.topk(min(self.k, candidates.logits.shape[-1]))
        return Candidates(logits, ids)


@dataclass(frozen=True)
class TopP:
    """A token stays while those before it have less than p together; so the best always stays."""

    p: float

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        total = total_of(candidates.logits)
        if candidates.ids is None and candidates.logits.is_cpu:
            pairs = zip(candidates.logits.numpy(), total[:, 0].tolist(), strict=True)
            return _gathered(candidates.logits, [_nucleus(row, whole, self.p) for row, whole in pairs])
        if candidates.ids is None:
            candidates = Candidates(*candidates.logits.sort(stable=True, descending=True))
        mass = (candidates.logits - total).exp_()
        kept = mass.cumsum(-1) - mass < self.p
        kept[:, 0] = True
        return candidates.keep(kept)


def _nucleus(row: Array, total: float, p: float) -> Array:
    """The ids that top-p leaves of V scores; equal ones go by their ids, in any company.

    Sorting a whole vocabulary takes longer than a layer of a model. So only tokens not much less likely than the best
    are sorted; where these are not enough, all are put on steps by their scores, and those of the last step are sorted.
    """
    best = row.max()
    sure, sorts, before = row[:0].astype(np.int64), np.flatnonzero(row >= best + math.log(TAIL)), 0.0
    if np.exp(row[sorts] - total).sum() < p:
        steps = np.minimum((best - row) * FINE, STEPS - 1).astype(np.int64)
        mass = np.bincount(steps, np.exp(row - total), STEPS).cumsum()
        last = min(int(np.searchsorted(mass, p)), STEPS - 1)
        sure, sorts = np.flatnonzero(steps < last), np.flatnonzero(steps == last)
        before = mass[last - 1] if last else 0.0
    sorts = sorts[np.argsort(-row[sorts], kind="stable")]
    mass = np.exp(row[sorts] - total)
    kept = before + mass.cumsum() - mass < p
    if not len(sure):
        kept[0] = True
    return np.concatenate((sure, sorts[kept]))


@dataclass(frozen=True)
class MinP:
    p: float

    def __call__(self, candidates: Candidates, requests: Sequence[Request]) -> Candidates:
        x = candidates.logits
        kept = x >= x.amax(-1, keepdim=True) + math.log(self.p)
        if candidates.ids is None and x.is_cpu:
            return _gathered(x, [np.flatnonzero(flags) for flags in kept.numpy()])
        return candidates.keep(kept)


def _gathered(logits: Tensor, ids: Sequence[Array]) -> Candidates:
    """Some of N V scores, by their ids; they are mostly so few that the rest is done with in no time."""
    most = max(len(some) for some in ids)
    columns = torch.from_numpy(np.stack([np.pad(some, (0, most - len(some))) for some in ids]))  # N K
    beyond = torch.arange(most) >= torch.tensor([[len(some)] for some in ids])
    return Candidates(logits.gather(-1, columns).masked_fill_(beyond, float("-inf")), columns)


def total_of(logits: Tensor) -> Tensor:
    """Logarithm of the sum of the exponentials of each row; as logsumexp, with fewer copies. logits: N K; N 1."""
    best = logits.amax(-1, keepdim=True)
    return (logits - best).exp_().sum(-1, keepdim=True).log_() + best
