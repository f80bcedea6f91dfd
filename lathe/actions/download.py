"""Turns a repo id into a folder below `checkpoints`, and prints where it is."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from lathe import hub
from lathe.actions import models


@dataclass(frozen=True)
class Options:
    repo: str
    """Repo id, as in Qwen/Qwen3-0.6B; ORG/NAME:FILE.gguf, or ORG/NAME:Q4_K_M, for one of several GGUF files; list shows
    the well-known ones."""
    _: KW_ONLY
    revision: str | None = None
    """Branch, tag or commit; main if none is given."""
    file: str | None = None
    """The GGUF file to take, or the part of its name that tells it from the others."""
    tokenizer_only: bool = False
    """Take configuration, tokenizer and chat templates, and no weights."""
    token: str | None = None
    """Access token, for gated and private repos; HF_TOKEN, or one stored by `hf auth login`, is used otherwise, and is
    not seen by others on this machine."""
    checkpoints: Path = Path("checkpoints")
    """Where the model's folder is made, as ORG/NAME."""


def run(options: Options) -> None:
    """Bring a model from the Hugging Face Hub to this machine.

    It is downloaded into checkpoints/ORG/NAME: safetensors, or pytorch_model.bin where there is nothing else, or a GGUF
    file; configuration, tokenizer and chat templates. A download that was cut off goes on where it stopped when the
    same is run again. All files are verified. What the Hugging Face cache holds is linked. The last line, on standard
    output, is the path.
    """
    if options.repo == "list":
        return models.run(models.Options(checkpoints=options.checkpoints))
    path = hub.download(
        options.repo,
        options.checkpoints,
        revision=options.revision,
        weights=not options.tokenizer_only,
        file=options.file,
        token=options.token,
    )
    print(path)
    return None
