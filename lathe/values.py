"""Turns one value, as YAML or the command line gives it, into the type of its option, or says what it must be.

Knows str, int, float, bool, Path, None, Literal, unions and tuple[T, ...]; knows no option by name.
"""

from __future__ import annotations

import contextlib
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from lathe.errors import UsageError, did_you_mean


def convert(hint: Any, value: Any, name: str) -> Any:
    """`value`, as YAML or the command line gives it, in the type `hint`. Raises UsageError, naming `name`."""
    try:
        return _convert(hint, value)
    except (ValueError, OverflowError):
        guess = did_you_mean(value, _choices(hint)) if isinstance(value, str) else ""
        shown = f'"{value}"' if isinstance(value, str) else "null" if value is None else str(value)
        raise UsageError(f"{name} is {shown}.", f"It must be {describe(hint)}.", guess) from None


def _convert(hint: Any, value: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first(parts, value)
    if origin is tuple:
        return tuple(_convert(parts[0], item) for item in (value if isinstance(value, list | tuple) else [value]))
    if origin is Literal and str(value) in _choices(hint):
        return next(part for part in parts if str(part) == str(value))
    number = isinstance(value, str | int | float) and not isinstance(value, bool)
    if hint is int and number:
        return _whole(value)
    if hint is float and number:
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint in (str, bool, types.NoneType) and isinstance(value, hint):
        return value
    raise ValueError(value)


def _first(hints: tuple[Any, ...], value: Any) -> Any:
    for hint in hints:
        with contextlib.suppress(ValueError):
            return _convert(hint, value)
    raise ValueError(value)


def _whole(value: str | float) -> int:
    # People write 1e9 tokens; YAML 1.1 reads that as a string, and 1.0e+9 as a float. int() takes "1_000" too.
    if isinstance(value, str) and value.strip().lstrip("+-").replace("_", "").isdecimal():
        return int(value)
    if not float(value).is_integer():
        raise ValueError(value)
    return int(float(value)) if isinstance(value, str) else int(value)


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def describe(hint: Any) -> str:
    """What a value of type `hint` must be, for an error: 'a whole number or none'."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in parts)
    if origin is Literal:
        return ("one of " if len(parts) > 1 else "") + ", ".join(f'"{part}"' for part in parts)
    if origin is tuple:
        return f"a list, each item {describe(parts[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return {**words, types.NoneType: "none"}[hint]
