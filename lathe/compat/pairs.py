"""Words become options by name and what stands without one; knows no option."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """An option: its name with underscores, what is given for it, and whether a recipe gave it."""

    name: str
    told: str | None
    recipe: bool = False


def parsed(words: Sequence[str], switches: Collection[str]) -> tuple[list[str], list[Pair]]:
    """The words that stand without an option, in order, and the options. switches: those that need no value."""
    given: list[str] = []
    pairs: list[Pair] = []
    rest = list(reversed(words))
    while rest:
        word, equals, told = rest.pop().partition("=")
        if not word.startswith("--"):
            given.append(word + equals + told)
            continue
        name = word[2:].replace("-", "_")
        follows = rest[-1] if rest else "--"
        if equals:
            pairs.append(Pair(name, told))
        elif follows.startswith("--") or (name in switches and follows.lower() not in ("true", "false")):
            pairs.append(Pair(name, None))
        else:
            pairs.append(Pair(name, rest.pop()))
    return given, pairs


def written(pairs: Iterable[Pair]) -> list[str]:
    """Options as they are typed."""
    words: list[str] = []
    for pair in pairs:
        name = f"--{pair.name.replace('_', '-')}"
        if pair.told is None:
            words.append(name)
        else:
            words += [f"{name}={pair.told}"] if pair.told.startswith("-") else [name, pair.told]
    return words


def couples(text: str) -> list[tuple[str, ...]]:
    """The words of a text, each option with its value."""
    found: list[tuple[str, ...]] = []
    for word in shlex.split(text):
        if found and found[-1][0].startswith("--") and len(found[-1]) == 1:
            found[-1] += (word,)
        else:
            found.append((word,))
    return found
