"""Turns the name of a model into a folder or file on this machine, downloading it where it must; never imports torch.

Knows names of files and the Hugging Face Hub; knows nothing of what the files hold.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from lathe.errors import MissingError, did_you_mean

SMALL = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # configurations, tokenizers, chat templates


def find(model: str, checkpoints: Path = Path("checkpoints"), weights: bool = True) -> Path:
    """The folder or file that `model` names.

    It is looked for as a path, then below `checkpoints`, then in the Hugging Face cache. What is in none of them and
    has the form of a repo id (ORG/NAME) is downloaded into `checkpoints`, which is said on stderr. Without `weights`
    only the configuration and the tokenizer are wanted, and are downloaded into the cache. Raises MissingError.
    """
    for path in (Path(model).expanduser(), checkpoints / model):
        if model and os.path.exists(path):  # noqa: PTH110  Path.exists raises for a name too long, as a stray prompt is
            return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        found = f'There is no folder or file "{model}", here or below {checkpoints}.'
        fix = did_you_mean(model, _neighbours(model, checkpoints))
        raise MissingError(found, "A model is a path or a repo id like Qwen/Qwen3-0.6B.", fix)
    return _cached(model, weights) or _download(model, checkpoints, weights)


def wanted(names: Iterable[str], weights: bool = True) -> list[str]:
    """Which files of a repo make the model: one form of the weights (safetensors first), nothing in subfolders."""
    names = [name for name in names if "/" not in name and not name.startswith(("consolidated", "."))]
    chosen = [name for name in names if name.endswith(SMALL) or ".model." in name]
    if weights:
        safetensors = [name for name in names if name.endswith(".safetensors")]
        chosen += safetensors or [name for name in names if re.fullmatch(r"(pytorch|adapter)_model.*\.bin", name)]
    return chosen


def has_weights(names: Iterable[str]) -> bool:
    """Whether files of these names hold weights, and all parts of them where they are numbered (00001-of-00003)."""
    names = {name for name in names if name.endswith((".safetensors", ".bin"))}
    for name in names:
        if part := re.fullmatch(r"(.+-)(\d+)(-of-)(\d+)(\..+)", name):
            front, digits, middle, count, end = part.groups()
            if any(f"{front}{i:0{len(digits)}}{middle}{count}{end}" not in names for i in range(1, int(count) + 1)):
                return False
    return bool(names)


def _neighbours(model: str, checkpoints: Path) -> Iterator[str]:
    """What the user may have meant: files and folders beside that path, and the models below `checkpoints`."""
    beside = Path(model).expanduser().parent
    if os.path.isdir(beside):  # noqa: PTH112  as in find
        yield from (str(path) for path in beside.iterdir())
    for pattern in ("*", "*/*"):
        yield from (path.relative_to(checkpoints).as_posix() for path in checkpoints.glob(pattern) if path.is_dir())


def _cached(model: str, weights: bool) -> Path | None:
    """The snapshot of a repo in the Hugging Face cache, if what is wanted is there in full."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    names = wanted(path.name for path in folder.iterdir() if path.is_file())
    return folder if has_weights(names) or not weights else None


def _download(model: str, checkpoints: Path, weights: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    target = checkpoints / model
    # A model appears under its name when it is whole; until then its parts wait beside it, and the next try uses them.
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        names = wanted((file.rfilename for file in HfApi().model_info(model).siblings or ()), weights)
        if weights and not has_weights(names):
            raise MissingError(f"The repo {model} holds no weights as safetensors or pytorch_model.bin.")
        print(f"Downloading {model}{f' into {target}' if weights else ''}", file=sys.stderr)
        local = unfinished if weights else None
        folder = Path(snapshot_download(model, local_dir=local, allow_patterns=names))
    except GatedRepoError:
        fix = f"Ask for access at {constants.ENDPOINT}/{model}, then log in with `hf auth login` or set HF_TOKEN."
        raise MissingError(f"The repo {model} is gated: its owner decides who may download it.", fix=fix) from None
    except OfflineModeIsEnabled:
        found = f"{model} is not on this machine, and HF_HUB_OFFLINE forbids to download it."
        raise MissingError(found, fix="Unset HF_HUB_OFFLINE, or name a folder.") from None
    except (HTTPError, OSError) as error:  # HTTPError: that of whichever HTTP library huggingface_hub stands on
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 404):
            found = f'There is no folder or file "{model}", here or below {checkpoints}, and no such repo at the Hub.'
            fix = did_you_mean(model, _neighbours(model, checkpoints)) or "A private repo needs your token in HF_TOKEN."
            raise MissingError(found, fix=fix) from None
        reason = next((line for line in str(error).splitlines() if line), type(error).__name__).rstrip(".")
        found = f"{model} is not on this machine, and downloading it from {constants.ENDPOINT} failed: {reason}."
        raise MissingError(found, fix="Run the same again: what has arrived is kept.") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise MissingError(f"The download of {model} lacks {', '.join(missing)}.", fix="Run the same again.")
    if not weights:
        return folder
    shutil.rmtree(folder / ".cache")  # the downloader's own notes
    return unfinished.rename(target)
