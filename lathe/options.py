"""Turns mappings (a recipe, the command line) into an action's options dataclass, and a dataclass back into a recipe.

Knows a dataclass's fields, types and documentation; knows no action, no command-line syntax and no torch.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from lathe.errors import MissingError, UsageError, did_you_mean

T = TypeVar("T")
Name = tuple[str, ...]  # ("train", "max_steps")


@dataclass(frozen=True)
class Option:
    """One field of an options dataclass, or of a section in it."""

    name: Name
    hint: Any
    default: Any  # MISSING where a value must be given
    positional: bool

    @property
    def is_section(self) -> bool:
        return dataclasses.is_dataclass(self.hint)

    @property
    def key(self) -> str:
        """As a recipe spells it: `train.max_steps`."""
        return ".".join(self.name)

    @property
    def spelling(self) -> str:
        """As the command line spells it: `--train.max-steps`, or `MODEL` for what is given by position."""
        return self.key.upper() if self.positional else "--" + self.key.replace("_", "-")


def fields(cls: type, section: Name = ()) -> Iterator[Option]:
    """The fields of one dataclass: those given by position, then its own, then those of its bases."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):  # typing.get_type_hints refuses the marker KW_ONLY on Python 3.10
        hints |= inspect.get_annotations(base, eval_str=True)
    own = inspect.get_annotations(cls)
    for field in sorted(dataclasses.fields(cls), key=lambda field: (field.kw_only, field.name not in own)):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield Option((*section, field.name), hints[field.name], default, not field.kw_only and not section)


def options(cls: type, section: Name = ()) -> Iterator[Option]:
    """The fields of a dataclass, in order, each section followed by its own."""
    for option in fields(cls, section):
        yield option
        if option.is_section:
            yield from options(option.hint, option.name)


def documentation(cls: type, section: Name = ()) -> dict[Name, str]:
    """The string that stands under each field in the source, bases and sections included; empty without the source."""
    docs: dict[Name, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        try:
            source = inspect.getsource(base)
        except OSError:  # installed without its source: the options work, undocumented
            continue
        definition = ast.parse(textwrap.dedent(source)).body[0]
        assert isinstance(definition, ast.ClassDef)
        for node, below in zip(definition.body, definition.body[1:], strict=False):
            match node, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[(*section, name)] = inspect.cleandoc(text)
    for option in fields(cls, section):
        if option.is_section:
            docs |= documentation(option.hint, option.name)
    return docs


def merge(cls: type[T], *mappings: Mapping[Any, Any], source: str = "the recipe") -> T:
    """Options from nested mappings, as recipes hold them; a later one wins, and defaults fill the rest.

    Keys may be spelt with hyphens or underscores. Raises UsageError, naming `source`, for an unknown key, a value of
    the wrong type or a missing one.
    """
    values: dict[Name, Any] = {}
    for mapping in mappings:
        values |= read_values(cls, mapping, source)
    return build(cls, values)


def read_values(cls: type, mapping: Mapping[Any, Any], source: str) -> dict[Name, Any]:
    """What a nested mapping sets, each value in its option's type. Raises UsageError, naming `source`."""
    known = {option.name: option for option in options(cls)}
    values: dict[Name, Any] = {}
    for name, value in _flat(mapping, {name for name in known if known[name].is_section}, (), source):
        key = ".".join(name)
        if name not in known:
            guess = did_you_mean(key, [option.key for option in known.values() if not option.is_section])
            raise UsageError(f'"{key}" in {source} is not an option here.', fix=guess)
        if name in values:
            raise UsageError(f'"{key}" is set twice in {source}.', fix="Keep one of them.")
        values[name] = convert(known[name].hint, value, f'"{key}" in {source}')
    return values


def _flat(mapping: Mapping[Any, Any], sections: set[Name], section: Name, source: str) -> Iterator[tuple[Name, Any]]:
    for key, value in mapping.items():
        name = (*section, str(key).replace("-", "_"))
        if name not in sections:
            yield name, value
        elif isinstance(value, Mapping):
            yield from _flat(value, sections, name, source)
        elif value is not None:  # None: a section's heading with nothing below it
            found = f'"{".".join(name)}" in {source} is {value!r}.'
            raise UsageError(found, "It must be a section: its options, one a line, indented below it.")


def build(cls: type[T], values: Mapping[Name, Any], section: Name = ()) -> T:
    """An instance of `cls` from converted values and its defaults. Raises UsageError for what is missing."""
    arguments = {}
    for option in fields(cls, section):
        if option.is_section:
            arguments[option.name[-1]] = build(option.hint, values, option.name)
        elif option.name in values:
            arguments[option.name[-1]] = values[option.name]
        elif option.default is MISSING:
            meaning = documentation(cls, section).get(option.name, "")
            raise UsageError(f"{option.spelling} is missing.", f"It must be {describe(option.hint)}.", meaning)
    return cls(**arguments)


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


def to_yaml(instance: Any) -> str:
    """The options as a recipe: every option, in the order of the fields, to be read back by `--config` or `merge`."""
    import yaml

    return yaml.safe_dump(_plain(instance), sort_keys=False, allow_unicode=True, width=10**9)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {option.name[-1]: _plain(getattr(value, option.name[-1])) for option in fields(type(value))}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_recipe(source: str) -> dict[Any, Any]:
    """The mapping in a YAML file, or at an http(s) address. Raises MissingError, UsageError."""
    import yaml

    try:
        recipe = yaml.safe_load(_fetch(source))
    except yaml.YAMLError as error:
        found = f"The recipe {source} is not YAML: {' '.join(str(error).split())}."
        raise UsageError(found, 'It must hold one "option: value" a line.') from None
    if recipe is not None and not isinstance(recipe, dict):
        raise UsageError(f"The recipe {source} is not a mapping.", 'It must hold one "option: value" a line.')
    return recipe or {}


def _fetch(source: str) -> bytes:
    if not source.startswith(("http://", "https://")):
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise MissingError(f"Cannot read the recipe {source}: {error.strerror}.") from None
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        with urlopen(source, timeout=30) as response:
            return response.read()
    except (URLError, OSError) as error:
        raise MissingError(f"Cannot fetch the recipe {source}: {error}.") from None
