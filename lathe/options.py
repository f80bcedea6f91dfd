"""Turns mappings (a recipe, the command line) into an action's options dataclass, and a dataclass back into a recipe.

Knows a dataclass's fields, types and documentation; knows no action, no command-line syntax and no torch.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from lathe.errors import MissingError, UsageError, did_you_mean
from lathe.values import convert, describe

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
    def is_switch(self) -> bool:
        """Whether it needs no value."""
        return bool in (self.hint, *get_args(self.hint))

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


def to_yaml(instance: Any) -> str:
    """The options as a recipe: every option, in the order of the help, to be read back by `--config` or `merge`."""
    import yaml

    class Dumper(yaml.SafeDumper): ...

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # Other styles break lines at U+0085 and U+2028, and lose which it was.
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if value.isprintable() else '"')

    Dumper.add_representer(str, text)
    return yaml.dump(_plain(instance), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**9)


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
    from http.client import HTTPException
    from urllib.request import urlopen

    try:
        with urlopen(source, timeout=30) as response:
            return response.read()
    except (OSError, HTTPException) as error:
        raise MissingError(f"Cannot fetch the recipe {source}: {error}.") from None
