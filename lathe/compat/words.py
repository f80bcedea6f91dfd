"""The words of a command line, LitGPT's or Lathe's own, become Lathe's; how they are written now is told once.

An option is read by its row in `table`; what several of them say together is worked out before, in `joint`.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lathe.compat import joint, places, recipes
from lathe.compat.pairs import Pair, couples, parsed, written
from lathe.compat.table import GROUPS, INSTEAD, ROWS, USUAL, VERBS, Row, Verb
from lathe.errors import UsageError
from lathe.options import read_recipe

SECRET = ("HF_TOKEN", "--token")
PATHS = ("resume", "initial_checkpoint_dir", "pretrained_checkpoint_dir", "adapter_path", "finetuned_path", "config")
HOLE = re.compile(r"\{(\w+)(?:=([^}]*))?\}")  # in a verb's new words: an option's name, and its usual value
LIBRARY = re.compile(r"^(torch|bitsandbytes|bnb)\.optim\.")  # before the name of an optimizer


@dataclass
class Meant:
    """words: the action and what follows it. environment: what is to stand there. changed: whether anything but
    hyphens is written otherwise. notes: what else is to be known."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    changed: bool = False
    notes: list[str] = field(default_factory=list)

    def told(self) -> str:
        """How Lathe writes it, in some lines, secrets left out; empty where it is as typed."""
        lines = [f"  {note}" for note in dict.fromkeys(self.notes)]
        if self.changed:
            pairs = zip(["", *self.words], self.words, strict=False)
            words = shlex.join("..." if last in SECRET else word for last, word in pairs)
            before = "".join(f"{name}={_hidden(name, told)} " for name, told in self.environment.items())
            lines.insert(0, f"In Lathe's words: {before}lathe {words}")
        return "\n".join(lines)


def _hidden(name: str, told: str) -> str:
    return "..." if name in SECRET else shlex.quote(told)


def action(verb: str) -> str:
    """The action that does what a verb of LitGPT's does."""
    return VERBS[verb].new.split()[0] if verb in VERBS else verb


def meant(words: Sequence[str], switches: Callable[[str], Collection[str]], piped: bool = True) -> Meant:
    """What the words ask for, of which the first is an action or a verb of LitGPT's.

    switches: the names of those options of an action that need no value. piped: a prompt may come from standard input.

    Raises UsageError for what Lathe does not do, and MissingError or UsageError for a recipe that cannot be read.
    """
    given, pairs = parsed(words[1:], switches(action(words[0])))
    verb, given = _instead(words[0], given, pairs)
    if verb not in VERBS:
        return Meant(list(words)) if verb == words[0] else Meant([verb, *given, *written(pairs)], changed=True)
    if "-h" in given or any(pair.name in ("help", "data.help") for pair in pairs):
        if verb == words[0] == action(verb) and not any(pair.name == "data.help" for pair in pairs):
            return Meant(list(words))
        fixed = [word for couple in couples(VERBS[verb].new) if not HOLE.search("".join(couple)) for word in couple]
        return Meant([action(verb), *fixed[1:], "--help"], changed=verb != action(verb))
    recipe = next((read_recipe(str(pair.told)) for pair in pairs if pair.name == "config" and pair.told), {})
    made = Meant([], notes=[VERBS[verb].why] if VERBS[verb].why else [])
    told = joint.read(action(verb), _with(recipe, verb, pairs))
    holes, told = _filled(verb, given, told)
    options = list(_rows(action(verb), told, made))
    there = {each.name for each in options}
    usual = [pair for pair in _template(VERBS[verb], holes) if pair.name not in there]
    heads = [pair.told or "" for pair in usual if not pair.name]
    needed, more = USUAL.get(action(verb), (set(), ""))
    if heads and more and not needed & (there | {str(key) for key in recipe}) and not (piped and verb == "generate"):
        usual += parsed(shlex.split(more), ())[1]
    named = [pair for pair in usual if pair.name]
    rest = given[len(VERBS[verb].places) :]
    made.words = [action(verb), *heads, *rest, *written([*named, *options])]
    made.changed = _same(words, switches) != _same(made.words, switches) or bool(made.environment)
    if not made.changed and all(_row(action(verb), pair) is None for pair in pairs):
        made.words = list(words)  # Lathe's own, which stay as they are typed
    return made


def value(words: Sequence[str], name: str) -> str | None:
    """What is given for an option of this name, as "method"."""
    return next((pair.told for pair in parsed(words, ())[1] if pair.name == name), None)


def _instead(verb: str, given: list[str], pairs: Sequence[Pair]) -> tuple[str, list[str]]:
    """The verb that is meant by a first word, or by an option that only another verb has."""
    if given and (verb, given[0]) in INSTEAD and not Path(given[0]).exists():
        return INSTEAD[verb, given[0]], given[1:]
    return next((INSTEAD[verb, pair.name] for pair in pairs if (verb, pair.name) in INSTEAD), verb), given


def _with(recipe: Mapping[Any, Any], verb: str, pairs: Sequence[Pair]) -> list[Pair]:
    """A recipe of LitGPT's as options, before those that are typed and instead of --config. One of Lathe's is left to
    the action."""
    listed = [Pair(name, told, True) for name, told in recipes.options(recipe)]
    if not any(pair.name in VERBS[verb].places or _foreign(action(verb), pair) for pair in listed):
        return list(pairs)
    typed = [pair for pair in pairs if pair.name != "config"]
    names = {pair.name for pair in typed}
    unheeded = joint.UNHEEDED.get(action(verb), ())
    return [*(pair for pair in listed if pair.name not in names and pair.name not in unheeded), *typed]


def _foreign(act: str, pair: Pair) -> bool:
    row = _row(act, pair)
    return row is not None and row.new != f"--{pair.name} {pair.told}"


def _filled(verb: str, given: Sequence[str], pairs: Sequence[Pair]) -> tuple[dict[str, str], list[Pair]]:
    """What stands in the holes of a verb's new words, and the options that are left."""
    names = {hole[1] for hole in HOLE.finditer(VERBS[verb].new)}
    holes = {pair.name: str(pair.told) for pair in pairs if pair.name in names}
    holes |= dict(zip(VERBS[verb].places, given, strict=False))
    if shape := joint.model_config(pairs):
        holes["model_name"] = places.shape(shape)
    elif "model_name" in holes:
        holes["model_name"] = places.model(holes["model_name"])
    left = [pair for pair in pairs if pair.name not in names and not pair.name.startswith("model_config")]
    return {name: places.found(told) for name, told in holes.items()}, left


def _template(verb: Verb, holes: Mapping[str, str]) -> Iterator[Pair]:
    """A verb's new words with their holes filled, but those options and places for which there is nothing."""
    for couple in couples(verb.new)[1:]:
        known = [hole[1] in holes or hole[2] is not None for hole in HOLE.finditer(" ".join(couple))]
        filled = [HOLE.sub(lambda hole: holes.get(hole[1], hole[2] or ""), word) for word in couple]
        if all(known) and filled[0].startswith("--"):
            yield Pair(filled[0][2:].replace("-", "_"), filled[1])
        elif all(known):
            yield Pair("", filled[0].removesuffix("/."))


def _rows(act: str, pairs: Sequence[Pair], made: Meant) -> Iterator[Pair]:
    """The options in Lathe's words. What is typed so goes before what a recipe says otherwise."""
    own = {pair.name for pair in pairs if not pair.recipe and _row(act, pair) is None}
    for pair in pairs:
        row, told = _row(act, pair), "true" if pair.told is None else pair.told
        if row is None:
            yield pair
            continue
        if row.new == "!":
            raise UsageError(f"--{pair.name.replace('_', '-')} is {told}.", row.why)
        if row.why and not (pair.recipe and not row.new):
            made.notes.append(f"--{pair.name}: {row.why}")
        if row.new.startswith("$"):
            made.environment[row.new[1:]] = told
            continue
        told = places.found(told) if pair.name in PATHS else told
        for each in parsed(_inserted(row.new, told), ())[1]:
            if not (pair.recipe and each.name in own):
                yield each


def _row(act: str, pair: Pair) -> Row | None:
    told = "true" if pair.told is None else pair.told
    if pair.name == "optimizer":
        told = LIBRARY.sub("", told)
    for row in ROWS:
        name, _, needed = row.old.partition("=")
        here = row.actions == "any" or act in (*GROUPS.get(row.actions, ()), *row.actions.split())
        if here and name == pair.name and needed in ("", told.lower()):
            return row
    return None


def _inserted(new: str, told: str) -> list[str]:
    """The new words with the value, or its items, in them. Raises UsageError where there are not as many items."""
    if "{0}" not in new:
        return [word.replace("{}", told) for word in shlex.split(new)]
    items = yaml.safe_load(told)
    if not isinstance(items, list) or len(items) != 2:
        raise UsageError(f"{told} stands where two values in brackets should.", fix="Write them as [0.9,0.95].")
    return [word.replace("{0}", str(items[0])).replace("{1}", str(items[1])) for word in shlex.split(new)]


def _same(words: Sequence[str], switches: Callable[[str], Collection[str]]) -> tuple[str, list[str], Counter[Any]]:
    """What two command lines have in common that differ in spelling only."""
    given, pairs = parsed(words[1:], switches(action(words[0])))
    return words[0], given, Counter((pair.name, "true" if pair.told is None else pair.told) for pair in pairs)
