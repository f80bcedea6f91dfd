"""Numbers among options that are out of bounds become an error that says what they must be; None is never checked."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from lathe.errors import UsageError


def at_least(least: float, options: object, *names: str) -> None:
    """Raise UsageError where one of these options, spelt as in `train.max_steps`, is less."""
    for name, value in _given(options, names):
        if value < least:
            raise UsageError(f"{name} is {value}.", f"It must be at least {least}.")


def above(bound: float, options: object, *names: str) -> None:
    """Raise UsageError where one of these options is not above the bound."""
    for name, value in _given(options, names):
        if value <= bound:
            raise UsageError(f"{name} is {value}.", f"It must be above {bound}.")


def below(bound: float, options: object, *names: str) -> None:
    """Raise UsageError where one of these options is not from 0 to below the bound."""
    for name, value in _given(options, names):
        if not 0 <= value < bound:
            raise UsageError(f"{name} is {value}.", f"It must be from 0 to below {bound}.")


def _given(options: object, names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Each number, also of those that are given several times, with its option as it is typed."""
    for name in names:
        told = attrgetter(name)(options)
        for value in told if isinstance(told, tuple) else (told,):
            if value is not None:
                yield f"--{name.replace('_', '-')}", value
