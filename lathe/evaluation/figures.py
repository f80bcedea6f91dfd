"""What was measured of each sample becomes a figure with its standard error, and two figures their difference.

Every figure is a function of means over samples. So each sample has an influence: how far the figure moves with it. The
influences' standard deviation over the root of their number is the figure's standard error, and that of the differences
between two models' influences on the same samples the standard error of the difference (delta method, paired).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

Measure: TypeAlias = float | Sequence[float]  # a number; or one in a number of words, bytes or tokens


class Figure(NamedTuple):
    """error: its standard error; None of fewer than two samples, or where it is beyond all numbers."""

    value: float
    error: float | None


class Estimate(NamedTuple):
    """A figure's value, and every sample's influence on it."""

    value: float
    influences: np.ndarray  # (N,)

    def figure(self) -> Figure:
        return Figure(self.value, _error(self.influences))


def _mean(measures: Sequence[Measure]) -> Estimate:
    values = np.array(measures, dtype=np.float64)
    return Estimate(float(values.mean()), values - values.mean())


def _ratio(measures: Sequence[Measure]) -> Estimate:
    """The sum of the first over the sum of the second."""
    pairs = np.array(measures, dtype=np.float64)
    value = pairs[:, 0].sum() / pairs[:, 1].sum()
    return Estimate(float(value), (pairs[:, 0] - value * pairs[:, 1]) / pairs[:, 1].mean())


def _perplexity(estimate: Estimate) -> Estimate:
    """exp(-x)."""
    value = math.exp(min(-estimate.value, 700.0))
    return Estimate(value, -value * estimate.influences)


def _bits(estimate: Estimate) -> Estimate:
    return Estimate(-estimate.value / math.log(2), -estimate.influences / math.log(2))


# How a metric's figure comes of its measures, by its name; every other one is their mean.
WAYS: Mapping[str, Callable[[Sequence[Measure]], Estimate]] = {
    "perplexity": lambda measures: _perplexity(_mean(measures)),
    "token_perplexity": lambda measures: _perplexity(_ratio(measures)),
    "word_perplexity": lambda measures: _perplexity(_ratio(measures)),
    "byte_perplexity": lambda measures: _perplexity(_ratio(measures)),
    "bits_per_byte": lambda measures: _bits(_ratio(measures)),
}
PAIRED = frozenset(WAYS) - {"perplexity"}  # of which a measure is a number in so many words, bytes or tokens


def estimate(metric: str, measures: Sequence[Measure]) -> Estimate:
    """The figure of a metric, of at least one sample."""
    return WAYS.get(metric, _mean)(measures)


def figure(metric: str, measures: Sequence[Measure]) -> Figure:
    return estimate(metric, measures).figure()


def difference(metric: str, measures: Sequence[Measure], before: Sequence[Measure]) -> Figure:
    """By how much a figure is more than before, of the same samples in the same order."""
    now, then = estimate(metric, measures), estimate(metric, before)
    return Figure(now.value - then.value, _error(now.influences - then.influences))


def _error(influences: np.ndarray) -> float | None:
    count = len(influences)
    if count < 2:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(influences.std(ddof=1) / math.sqrt(count))
    return error if math.isfinite(error) else None
