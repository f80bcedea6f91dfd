"""The name of a model, as typed, becomes a path: as it stands, below `checkpoints`, in a cache, or downloaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lathe.errors import MissingError
from lathe.hub import choosing, downloading, known, note
from lathe.hub.bar import say

REPO = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?::(.+))?", re.ASCII)


def find(
    model: str, checkpoints: Path = Path("checkpoints"), weights: bool = True, *, token: str | None = None
) -> Path:
    """The folder or file that `model` names.

    It is looked for as a path, then below `checkpoints`, then in the Hugging Face cache. What is in none of them and
    has the form of a repo id (ORG/NAME, or ORG/NAME:FILE.gguf) is downloaded into `checkpoints`, which is said on
    stderr. Without `weights` only the configuration and the tokenizer are wanted. Raises MissingError, CheckpointError.
    """
    below = f"{checkpoints.as_posix()}/"
    if model.startswith(below) and not os.path.exists(model):  # noqa: PTH110  as below
        model = model.removeprefix(below)  # where that repo would be
    repo, file = split(model)
    for path in (Path(model).expanduser(), checkpoints / model):
        if model and os.path.exists(path):  # noqa: PTH110  Path.exists raises for a name too long, as a stray prompt is
            return _completed(path, checkpoints, token) if weights else path
    if not repo:
        found = f'There is no folder or file "{model}", here or below {checkpoints}.'
        fix = known.meant(model, _neighbours(model, checkpoints))
        raise MissingError(found, "A model is a path or a repo id like Qwen/Qwen3-0.6B.", fix)
    for folder in (checkpoints / repo, _cached(repo)):
        if file and folder and folder.is_dir():
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
            if path_there := downloading.chosen(folder, names, weights, file):
                return path_there
    return (not file and _cached(repo, weights)) or download(model, checkpoints, weights=weights, token=token)


def download(
    model: str,
    checkpoints: Path = Path("checkpoints"),
    *,
    revision: str | None = None,
    weights: bool = True,
    file: str | None = None,
    token: str | None = None,
) -> Path:
    """Bring a repo (ORG/NAME, or ORG/NAME:FILE.gguf) into `checkpoints`, and what an adapter stands on too.

    Its options and what it returns and raises are those of `downloading.bring`.
    """
    repo, named = split(model)
    if not repo:
        fix = known.meant(model, _neighbours(model, checkpoints))
        raise MissingError(f'"{model}" is not the id of a repo.', "It looks like Qwen/Qwen3-0.6B.", fix)
    file = file or named
    try:
        folder = downloading.bring(repo, checkpoints, revision=revision, weights=weights, file=file, token=token)
    except MissingError as error:
        cached = None if revision or file else _cached(repo, weights)
        if not cached:
            raise
        say(f"{error}\nThe Hugging Face cache holds {repo}, though: {cached} is used as it is.")
        return cached
    if weights and (base := _base(folder)):
        if not split(base)[0]:
            say(f'{repo} is an adapter of "{base}", which names no repo: have that model at hand to use it.')
        elif not (checkpoints / base).exists():
            say(f"{repo} is an adapter of {base}, which it needs.")
            find(base, checkpoints, token=token)
    return folder


def placed(repo: str, checkpoints: Path) -> Path | None:
    """Where a repo's weights are on this machine, below `checkpoints` or in the Hugging Face cache; None if nowhere."""
    folder = checkpoints / repo
    if folder.is_dir() and choosing.has_weights(path.name for path in folder.iterdir()):
        return folder
    return _cached(repo)


def split(model: str) -> tuple[str, str | None]:
    """Repo id and GGUF file of what was typed; ('', None) where it has not that form."""
    found = REPO.fullmatch(model)
    return (found[1], found[2]) if found else ("", None)


def _completed(path: Path, checkpoints: Path, token: str | None) -> Path:
    """The model at `path`, with the weights, where so far only the rest of it was downloaded."""
    there = note.read(path) if path.is_dir() else None
    if there and path == checkpoints / there.repo and not choosing.has_weights(there.files):
        return download(there.repo, checkpoints, token=token)
    return path


def _neighbours(model: str, checkpoints: Path) -> Iterator[str]:
    """What the user may have meant: files and folders beside that path, and the models below `checkpoints`."""
    beside = Path(model).expanduser().parent
    if os.path.isdir(beside):  # noqa: PTH112  as in find
        yield from (str(path) for path in beside.iterdir())
    yield from known.below(checkpoints)


def _cached(repo: str, weights: bool = True) -> Path | None:
    """The snapshot of a repo in the Hugging Face cache, if what is wanted is there in full."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")
    try:
        commit = (place / "refs" / "main").read_text(encoding="utf-8").strip()
        names = [path.name for path in (place / "snapshots" / commit).iterdir() if path.exists()]
    except OSError:  # not there; a link to a blob that is gone is none of `names`
        return None
    # Other programs fetch files as they need them: weights alone are no model.
    whole = choosing.has_weights(names) or not weights
    whole &= "config.json" in names and any(re.match(r"tok|vocab|tekken|spiece|.*\.tiktoken", name) for name in names)
    packed = weights and any(name.endswith(".gguf") for name in names) and choosing.has_weights(names)
    return place / "snapshots" / commit if whole or packed else None


def _base(folder: Path) -> str | None:
    """The model that an adapter's folder says it belongs to."""
    try:
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = told["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, str) and base and not choosing.has_weights(_whole_model(folder)) else None


def _whole_model(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith("adapter_model.")]
