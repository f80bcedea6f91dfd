"""Options of LitGPT's that say something only together: a data set and its place, the modules of a LoRA, a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from lathe.compat import recipes
from lathe.compat.pairs import Pair
from lathe.compat.table import QUESTION
from lathe.data.presets import PLACED, presets
from lathe.errors import UsageError

UNHEEDED = {"finetune": ("train.min_lr",)}  # what stands in LitGPT's recipes, and it does not heed
TARGETS = [f"lora_{part}" for part in ("query", "key", "value", "projection", "mlp", "head")]
USUAL = ("lora_query", "lora_value")  # of these, where any is given
PLACES = ("data.json_path", "data.train_data_path", "data.file_url", "data.repo_id")
MAPPINGS = ("data", "optimizer", "train", "eval", "log")  # options whose value may hold others
FLAN = "Muennighoff/flan"  # where LitGPT fetches the files of FLAN


def read(action: str, pairs: Sequence[Pair]) -> list[Pair]:
    """The same options, each of which can be read alone. Raises UsageError for a class of data that is not LitGPT's."""
    told = [each for pair in pairs for each in _expanded(pair)]
    if action == "finetune" and any(pair.name in TARGETS for pair in told):
        names = {pair.name for pair in told}
        told += [Pair(name, "true") for name in USUAL if name not in names]
    if action in ("finetune", "pretrain"):
        told = _data(told)
    if action == "generate" and (more := _last(told, "input")):
        prompt = _last(told, "prompt") or QUESTION
        told = [pair for pair in told if pair.name not in ("prompt", "input")]
        told.append(Pair("prompt", f"{prompt}\n\n{more}"))
    return told


def model_config(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What --model_config, and --model_config.n_layer and the like, say of a model."""
    told: dict[str, Any] = {}
    for pair in pairs:
        name, _, part = pair.name.partition(".")
        if name == "model_config":
            read = yaml.safe_load(pair.told or "")
            told |= {part: read} if part else read or {}
    return told


def _expanded(pair: Pair) -> Iterator[Pair]:
    """An option whose value is a mapping, as {"class_path": ...}, as those that it holds."""
    if pair.name in MAPPINGS and pair.told and pair.told.startswith("{"):
        for name, told in recipes.options({pair.name: yaml.safe_load(pair.told)}):
            yield Pair(name, told, pair.recipe)
    else:
        yield pair


def _last(pairs: Sequence[Pair], name: str) -> str | None:
    return next((pair.told for pair in reversed(pairs) if pair.name == name), None)


def _data(pairs: list[Pair]) -> list[Pair]:
    """With one name for each set of data: a place goes before the class that reads it, and what is typed before what a
    recipe says."""
    names = ("data", *PLACES, "data.data_path")
    if any(pair.name in names and not pair.recipe for pair in pairs):
        pairs = [pair for pair in pairs if not (pair.recipe and pair.name in names)]
    kind = _last(pairs, "data") or ""
    if kind.startswith("litgpt.data."):
        kind = kind.rpartition(".")[2]
        pairs = [Pair("data", kind, pair.recipe) if pair.name == "data" else pair for pair in pairs]
    folder, split, subsets = (_last(pairs, f"data.{name}") for name in ("data_path", "split_names", "subsets"))
    if kind == "LitData" and folder and split:
        train, val = (f"{folder}/{side}" for side in yaml.safe_load(split))
        made = [Pair("data", train), Pair("val_data", val)]
    elif kind == "LitData" and folder:
        made = [Pair("data", folder)]
    elif kind == "FLAN" and subsets:
        parts = yaml.safe_load(subsets) if subsets.startswith("[") else subsets.split(",")
        sides = (("data", "train"), ("val_data", "test"))
        made = [Pair(name, f"{FLAN}/{side}/{part.strip()}_{side}.jsonl") for name, side in sides for part in parts]
    elif any(pair.name in PLACES or pair == Pair("data.use_starcoder", "false", pair.recipe) for pair in pairs):
        if kind and kind not in PLACED and kind.lower() not in presets():
            fix = "Leave it out: its place is all that Lathe needs, and data is read by what is in it."
            raise UsageError(f"--data is {kind}, which is none of LitGPT's data.", fix=fix)
        made = []
    else:
        return pairs
    gone = ("data", "data.data_path", "data.split_names", "data.subsets")
    return [*made, *(pair for pair in pairs if pair.name not in gone)]
