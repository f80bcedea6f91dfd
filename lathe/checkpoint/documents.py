"""The JSON and YAML files of a checkpoint's folder become objects, with errors that name the file, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lathe.errors import ConfigError, MissingError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with errors that name it."""
    return _read_object(path, json.loads, "JSON")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file, with errors that name it."""
    return _read_object(path, yaml.safe_load, "YAML")


def _read_object(path: Path, parse: Callable[[str], Any], kind: str) -> dict[str, Any]:
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist.", "It says what model the weights beside it are.") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not {kind}: {' '.join(str(error).split())}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no {kind} object.")
    return value


def generation(folder: Path) -> dict[str, Any]:
    """What generation_config.json says; both hands that have folders keep one there, if any."""
    file = folder / "generation_config.json"
    return read_json(file) if file.is_file() else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """An object into a JSON file."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
