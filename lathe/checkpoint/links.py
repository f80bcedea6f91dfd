"""Which files of a model's folder may be links: those within it, and those of the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path

from lathe.errors import CheckpointError

# What a model's folder is made of.
KINDS = {".safetensors", ".bin", ".pth", ".ckpt", ".gguf", ".json", ".yaml", ".jinja", ".model", ".txt", ".tiktoken"}
TEMPLATES = {"additional_chat_templates", "chat_templates"}


def refuse(folder: Path) -> None:
    """Raise CheckpointError for a file of the model that is a link out of its folder, into anything but that cache.

    A folder that came from elsewhere could so have us copy what is private when it is saved.
    """
    home = folder.resolve()
    for path in folder.iterdir():
        if path.is_symlink() and (path.suffix in KINDS or path.name in TEMPLATES):
            target = path.resolve()
            cached = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
            if not cached and not target.is_relative_to(home):
                raise CheckpointError(
                    f"{path} is a link to {target}, outside of its folder.",
                    "The files of a model should lie together.",
                    "If you put the link there, put the file itself there instead.",
                )
