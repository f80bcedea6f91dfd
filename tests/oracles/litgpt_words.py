"""All that LitGPT 0.5.13's command line takes, from the signatures of its own functions.

    python tests/oracles/litgpt_words.py

in LitGPT's environment. Prints on the last line, as JSON: verb -> names of its options, dotted, each with the values
that are named for it; the data classes with their fields; and name -> repo of its models.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from typing import Any

import litgpt.data
from litgpt.__main__ import PARSER_DATA
from litgpt.config import configs
from litgpt.data import DataModule


def choices(hint: Any) -> list[str]:
    """The values that a Literal, or a union with one, names."""
    if typing.get_origin(hint) is typing.Literal:
        return [str(value) for value in typing.get_args(hint) if value is not None]
    return [value for part in typing.get_args(hint) for value in choices(part)]


def words(function: Any) -> dict[str, list[str]]:
    """The options of a function, those of its dataclasses under their names."""
    found: dict[str, list[str]] = {}
    hints = typing.get_type_hints(function)
    for name in inspect.signature(function).parameters:
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            found |= {f"{name}.{field.name}": choices(field.type) for field in dataclasses.fields(hint)}
        else:
            found[name] = choices(hint)
    return found


def data() -> dict[str, list[str]]:
    """The data classes with what they take."""
    made = {}
    for name in litgpt.data.__all__:
        cls = getattr(litgpt.data, name)
        if inspect.isclass(cls) and issubclass(cls, DataModule) and cls is not DataModule:
            made[name] = [field.name for field in dataclasses.fields(cls) if field.init]
    return made


if __name__ == "__main__":
    models = {config["name"]: f"{config['hf_config']['org']}/{config['hf_config']['name']}" for config in configs}
    print(
        json.dumps({"verbs": {verb: words(of) for verb, of in PARSER_DATA.items()}, "data": data(), "models": models})
    )
