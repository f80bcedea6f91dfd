"""A recipe of LitGPT's becomes options, as its command line spells them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

WHOLE = ("model_config", "optimizer.betas", "data.split_names", "data.subsets")  # values of several items


def options(recipe: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names with underscores, as data.json_path, and values as they are typed. What is null is left out.

    A class_path is the value of the option that it stands under, and its init_args are that option's own.
    """
    for key, told in recipe.items():
        name = f"{above}{key}".replace("-", "_")
        if told is None:
            continue
        if name in WHOLE and not isinstance(told, str):
            yield name, json.dumps(told)
        elif isinstance(told, Mapping) and "class_path" in told:
            yield name, str(told["class_path"])
            yield from options(told.get("init_args") or {}, f"{name}.")
        elif isinstance(told, Mapping):
            yield from options(told, f"{name}.")
        else:
            yield from (
                (name, one if isinstance(one, str) else json.dumps(one))
                for one in (told if isinstance(told, list) else [told])
            )
