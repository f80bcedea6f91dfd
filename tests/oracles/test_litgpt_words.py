"""Every verb of LitGPT's own program, every option of each and every value that it names is understood: honoured, or in
the table with a reason."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import Ask

from lathe import compat
from lathe.cli import VERBS as OWN
from lathe.cli import available, load
from lathe.compat.places import model
from lathe.compat.table import GROUPS, ROWS, VERBS
from lathe.data.presets import PLACED, presets
from lathe.errors import UsageError
from lathe.options import options

SCRIPT = Path(__file__).parent / "litgpt_words.py"


@pytest.fixture(scope="module")
def told(litgpt: Ask) -> dict[str, Any]:
    return litgpt(SCRIPT)


@cache
def own(action: str) -> frozenset[str]:
    """The options of an action, by their names with underscores; of finetune, those of all its methods."""
    from lathe.actions import methods

    classes = methods.METHODS.values() if action == "finetune" else [load(action)[0]]
    return frozenset(option.key for cls in classes for option in options(cls))


def understood(verb: str, name: str, value: str | None = None) -> bool:
    """Whether an option, or one with a value, is one of the action's or has a row with a reason or new words."""
    action = compat.action(verb)
    if name in VERBS[verb].places or "{" + name in VERBS[verb].new:
        return True
    for row in ROWS:
        old, _, needed = row.old.partition("=")
        here = row.actions == "any" or action in (*GROUPS.get(row.actions, ()), *row.actions.split())
        if here and old == name and (not needed or value is None or needed == value.lower()):
            return (bool(row.new) and row.new != "!") or bool(row.why) or bool(needed)
    return name in own(action)


def test_every_verb_is_there(told: dict[str, Any]) -> None:
    assert set(told["verbs"]) == set(VERBS)


def test_every_option_is_understood(told: dict[str, Any]) -> None:
    count, unknown = 0, []
    for verb, words in told["verbs"].items():
        if compat.action(verb) not in (*available(), *OWN):
            continue
        for name, values in words.items():
            count += 1
            if not understood(verb, name) and name not in ("data",):
                unknown.append(f"{verb} --{name}")
            unknown += [f"{verb} --{name} {value}" for value in values if not accepted(verb, name, value)]
    assert count > 300
    assert not unknown, "\n".join(unknown)


def accepted(verb: str, name: str, value: str) -> bool:
    """Whether a line with this value is translated into one that the action reads."""
    from lathe.command import command, read

    def switches(action: str) -> list[str]:
        return [option.key for option in options(load(action)[0]) if option.is_switch]

    places = [f"{place}/x" for place in VERBS[verb].places]
    data = ["--data", "d"] if compat.action(verb) in ("finetune", "pretrain") else []
    try:
        action, *words = compat.meant([verb, *places, f"--{name}", value, *data], switches, piped=False).words
        cls, run = load(action)
        if hasattr(cls, "understood"):
            cls, words = cls.understood(words)
        return read(command(action, cls, run.__doc__), cls, words) is not None
    except UsageError as error:
        return any(row.new == "!" and row.why and row.why in str(error) for row in ROWS)


def test_every_data_class_and_its_fields(told: dict[str, Any]) -> None:
    unknown = [name for name in told["data"] if name.lower() not in presets() and name not in PLACED]
    for name, fields in told["data"].items():
        verb = (
            "pretrain"
            if name in ("LitData", "MicroLlama", "OpenWebText", "TextFiles", "TinyLlama", "TinyStories")
            else "finetune"
        )
        unknown += [f"{name}: {field}" for field in fields if not understood(verb, f"data.{field}")]
    assert not unknown, "\n".join(unknown)


def test_every_model_has_its_repo(told: dict[str, Any]) -> None:
    assert len(told["models"]) > 200
    moved = {name: repo.replace("/Meta-Llama-3.1-", "/Llama-3.1-") for name, repo in told["models"].items()}
    assert {name: model(name).lower() for name in moved} == {name: repo.lower() for name, repo in moved.items()}
