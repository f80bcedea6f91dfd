"""Turns an action's options dataclass into a command with help and completion, and typed words into its options.

Everything that cyclopts is asked is asked here; knows no action by name.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import cyclopts
from cyclopts import App, Group, Parameter

from lathe.errors import UsageError, did_you_mean
from lathe.options import Name, Option, build, documentation, options, read_recipe, read_values, to_yaml
from lathe.values import convert

T = TypeVar("T")
ABOUT = "The workshop for open language models."
ACTIONS, GENERAL = Group("Actions", sort_key=1), Group("General", sort_key=9)
MOVED = ("--repo-id", "--checkpoint-dir")  # LitGPT's older spellings of MODEL


def root(summaries: Mapping[str, str], commands: Iterable[App] = ()) -> App:
    """`lathe` itself, for its help and its completion: the commands given, and for all other names only a summary."""
    app = App(name="lathe", help=ABOUT, help_format="plaintext", usage="Usage: lathe ACTION MODEL [--options]")
    app["--help"].group = app["--version"].group = (GENERAL,)
    app.help_epilogue = "lathe ACTION --help shows what an action takes."
    loaded = {command.name[0]: command for command in commands}
    for name, summary in summaries.items():
        app.command(loaded.get(name) or App(name=name, help=summary, group=ACTIONS))
    return app


def command(name: str, cls: type, text: str | None) -> App:
    """The command `lathe name` with one parameter per option of the dataclass `cls`, and `text` as its help."""
    docs = documentation(cls)
    groups: dict[Name, Group] = {(): Group("Options", sort_key=2)}
    parameters, places = [], ""
    for option in options(cls):
        if option.is_section:
            groups[option.name] = Group(option.key, help=_unwrap(docs.get(option.name, "")), sort_key=3)
        else:
            parameters.append(_parameter(option, _unwrap(docs.get(option.name, "")), groups[option.name[:-1]]))
            word = option.spelling if option.default is MISSING else f"[{option.spelling}]"
            places += f"{word} " if option.positional else ""

    def collect(**given: Any) -> None:
        """Only its signature is used: `read` takes what was bound."""

    collect.__signature__ = inspect.Signature([*parameters, *_general()])  # type: ignore[attr-defined]
    app = App(name=name, help=_unwrap(text or ""), help_format="plaintext", version_flags=[], group=ACTIONS)
    app.usage = f"Usage: lathe {name} {places}[--options]"
    app.group_arguments = Group("Arguments", sort_key=1)
    app.end_of_options_delimiter = "\0"  # none: no word holds it ("" would be taken for it, and an empty word lost)
    app.default_parameter = Parameter(negative_iterable=(), json_dict=False, json_list=False)
    app["--help"].group = (GENERAL,)
    app.default(collect)
    return app


def _unwrap(text: str) -> str:
    """A docstring's paragraphs on one line each, for the terminal to wrap; indented lines stay as they are."""
    return re.sub(r"(?<!\n)\n(?=\S)", " ", inspect.cleandoc(text))


def _parameter(option: Option, text: str, group: Group) -> inspect.Parameter:
    # A missing value is noticed by options.build, after the recipe had its say, so to cyclopts nothing is required.
    required = option.default is MISSING
    if required and not option.positional:
        text += " [required]"
    settings: dict[str, Any] = {"help": text, "show_default": not required and option.default not in (None, "", ())}
    kind = inspect.Parameter.POSITIONAL_ONLY if option.positional else inspect.Parameter.KEYWORD_ONLY
    if not option.positional:
        settings |= {"name": option.spelling, "group": group}
    if option.hint is not bool:
        settings["converter"] = _words
    default = None if required else option.default
    annotation: Any = Annotated[option.hint, Parameter(**settings), _Unchecked()]
    return inspect.Parameter(_identifier(option), kind, default=default, annotation=annotation)


class _Unchecked:
    """Where pydantic happens to be imported, cyclopts has it check values too: here they are still words."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, str]:
        return {"type": "any"}


def _identifier(option: Option) -> str:
    return "__".join(option.name)


def _words(hint: Any, tokens: Sequence[cyclopts.Token]) -> str | list[str]:
    # The words as typed: lathe.options converts them, so that the command line and recipes obey one rule.
    words = [token.value for token in tokens]
    return words if get_origin(hint) is tuple else words[0]


def _general() -> list[inspect.Parameter]:
    about_config = "Take options from a YAML recipe, a file or an http(s) address. The command line wins."
    about_print = "Print the options as they would be used, as a recipe, and stop."
    config = Parameter(name="--config", group=GENERAL, help=about_config, converter=_words, show_default=False)
    show = Parameter(name="--print-config", group=GENERAL, help=about_print, negative=(), show_default=False)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter("__config", kind, default=None, annotation=Annotated[Path, config, _Unchecked()]),
        inspect.Parameter("__print_config", kind, default=False, annotation=Annotated[bool, show, _Unchecked()]),
    ]


def read(app: App, cls: type[T], words: Sequence[str]) -> T | None:
    """The options that `words` and the recipe they name ask for; None if they ask for help or the options, now printed.

    Raises UsageError, MissingError.
    """
    words = _with_truths(words, [option.spelling for option in options(cls) if option.is_switch])
    try:
        call, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise _explain(error, app, cls, words) from None
    if call is not app.default_command:
        call(*bound.args, **bound.kwargs)
        return None
    values: dict[Name, Any] = {}
    if "__config" in bound.arguments:
        recipe = bound.arguments["__config"]
        values |= read_values(cls, read_recipe(recipe), f"the recipe {recipe}")
    for option in options(cls):
        if _identifier(option) in bound.arguments:
            values[option.name] = _typed(option, bound.arguments[_identifier(option)])
    resolved = build(cls, values)
    if bound.arguments.get("__print_config"):
        print(to_yaml(resolved), end="")
        return None
    return resolved


def _with_truths(words: Sequence[str], switches: Sequence[str]) -> list[str]:
    """`--switch true`, as LitGPT's users type it, as `--switch=true`."""
    out: list[str] = []
    for word in words:
        if word.lower() in ("true", "false") and out and out[-1].replace("_", "-") in switches:
            out[-1] += f"={word.lower()}"
        else:
            out.append(word)
    return out


def _typed(option: Option, value: Any) -> Any:
    if NoneType in get_args(option.hint) and value in ("none", "null"):
        return None
    return convert(option.hint, value, option.spelling)


def _explain(error: cyclopts.CycloptsError, app: App, cls: type, words: Sequence[str]) -> UsageError:
    """What cyclopts found, in Lathe's form."""
    name = f"lathe {app.name[0]}"
    fix = f"See {name} --help."
    match error:
        case cyclopts.UnknownOptionError():
            word = (error.token.keyword or error.token.value).partition("=")[0]
            spelt = word.replace("_", "-")
            places = [f"--{option.key}" for option in options(cls) if option.positional]
            if spelt in (*MOVED, *places) and places:
                fix = f"Type: {_by_position(name, words, (*MOVED, *places))}"
                found = f"{word} is not an option here: {places[0][2:].upper()} is given by position."
                return UsageError(found, fix=fix)
            names = [name for argument in app.assemble_argument_collection() for name in argument.names]
            return UsageError(f"{name} has no option {word}.", fix=did_you_mean(spelt, names) or fix)
        case cyclopts.UnusedCliTokensError():
            extra = shlex.join(error.unused_tokens or ())
            return UsageError(f"There is more than {name} takes: {extra}.", "All options have names.", fix)
        case cyclopts.MissingArgumentError():
            assert error.argument is not None
            word = error.keyword or error.argument.name
            return UsageError(f"{word} needs a value.", fix=f'One that starts with "-" is written {word}=-VALUE.')
        case cyclopts.RepeatArgumentError():
            return UsageError(f"{error.token.keyword} is given twice.", fix="Keep one of them.")
        case cyclopts.CoercionError(token=cyclopts.Token(keyword=str(word), value=value)):
            return UsageError(f'{word} is "{value}".', "It must be true or false.")
        case _:
            return UsageError(str(error), fix=fix)


def _by_position(name: str, words: Sequence[str], moved: Sequence[str]) -> str:
    """The command line with the value of the option that is none put first."""
    place, rest, left = "MODEL", [], iter(words)
    for word in left:
        option, _, value = word.partition("=")
        if option.replace("_", "-") in moved:
            place = value or next(left, place)
        else:
            rest.append(word)
    return f"{name} {shlex.join([place, *rest])}"
