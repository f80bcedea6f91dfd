"""Of the files that a repo or folder lists, the ones that make the model; only their names are looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lathe.errors import MissingError, did_you_mean
from lathe.hub.bar import amount

SMALL = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # configurations, tokenizers, chat templates
TEMPLATES = re.compile(r"additional_chat_templates/[^/]+\.jinja")  # where transformers 5 keeps a model's further ones
INDEXES = (".safetensors.index.json", ".bin.index.json")  # which shard holds which tensor
LITGPT = ("lit_model.pth", "model_config.yaml", "prompt_style.yaml", "hyperparameters.yaml")
PART = re.compile(r"(.+-)(\d+)(-of-)(\d+)(\.\w+)")  # of weights in several files
# What Mistral and Meta put beside, or instead of, the files in Hugging Face's form.
FOREIGN = ("consolidated", ".")


def small(names: Iterable[str]) -> list[str]:
    """Configuration, tokenizer and chat templates: what a model has besides its weights. No index of shards."""
    return [name for name in names if TEMPLATES.fullmatch(name) or (_top(name) and _small(name))]


def wanted(
    sizes: Mapping[str, int | None], weights: bool = True, file: str | None = None, *, where: str = "The repo"
) -> list[str]:
    """Which files of a repo make the model, the small ones first, and one form of the weights.

    The forms, in order: safetensors, pytorch_model.bin, LitGPT's, an adapter's, GGUF. Of GGUF files one is taken,
    which is all there is to take: it holds configuration and tokenizer too.

    Args:
        sizes: name -> bytes (None where nobody told).
        weights: False takes only what is small.
        file: a GGUF file to take, or the part of its name that tells it from the others, as in "Q4_K_M".
        where: what errors call the place that holds the files.

    Raises MissingError: there is no such file, there are several to choose from, or none at all.
    """
    names = sorted(sizes)
    if file:
        return gguf(sizes, file, where)
    beside = small(names)
    if not weights:
        if not beside:
            raise MissingError(f"{where} holds neither a configuration nor a tokenizer.")
        return beside
    top = [name for name in names if _top(name)]
    safe = [name for name in top if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if "model.safetensors.index.json" in top:
        # The index does not name a single file or a copy in other numbers that lies beside the shards.
        shards = [name for name in safe if PART.fullmatch(name)] or safe
        return [*beside, "model.safetensors.index.json", *shards]
    if "model.safetensors" in safe:
        return [*beside, "model.safetensors"]
    pickled = [name for name in top if re.fullmatch(r"pytorch_model.*\.bin(\.index\.json)?", name)]
    lit = [name for name in LITGPT if name in top]
    adapter = [name for name in top if name.startswith("adapter_model.")]
    for form in (safe, pickled, lit if "lit_model.pth" in lit else [], sorted(adapter, reverse=True)[:1]):
        if form:
            return [*beside, *form]
    if any(name.endswith(".gguf") for name in names):
        return gguf(sizes, "", where)
    raise MissingError(
        f"{where} holds no weights that can be opened.",
        "They are safetensors, pytorch_model.bin, lit_model.pth, an adapter's, or a GGUF file.",
    )


def gguf(sizes: Mapping[str, int | None], file: str, where: str) -> list[str]:
    """The GGUF file that `file` tells from the others (the only one, if ''), as all its parts where it is split."""
    whole: dict[str, list[str]] = {}
    for name in sorted(sizes):
        # What llama.cpp keeps beside a model: the projector of its images, and the statistics it was packed with.
        if name.endswith(".gguf") and not re.search("mmproj|imatrix", name.rpartition("/")[2], re.IGNORECASE):
            part = PART.fullmatch(name)
            whole.setdefault(f"{part[1][:-1]}{part[5]}" if part else name, []).append(name)
    exact = [key for key in whole if file in (key, key.rpartition("/")[2], whole[key][0])]
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(file.removesuffix('.gguf'))}(?![A-Za-z0-9_])", re.IGNORECASE)
    found = exact or [key for key in whole if word.search(key)] if file else list(whole)
    if len(found) == 1:
        return whole[found[0]]
    listed = ", ".join(_with_size(key, [sizes[name] for name in whole[key]]) for key in found or whole)
    if found:
        raise MissingError(f"{where} holds several GGUF files: {listed}.", fix=f"Name one, as in REPO:{found[0]}.")
    raise MissingError(
        f'{where} holds no GGUF file "{file}".', f"It has {listed or 'none'}.", did_you_mean(file, whole)
    )


def has_weights(names: Iterable[str]) -> bool:
    """Whether files of these names hold weights, and all parts of them where they are numbered (00001-of-00003)."""
    names = {name for name in names if name.endswith((".safetensors", ".bin", ".gguf", "lit_model.pth"))}
    for name in names:
        if part := PART.fullmatch(name):
            front, digits, middle, count, end = part.groups()
            if any(f"{front}{i:0{len(digits)}}{middle}{count}{end}" not in names for i in range(1, int(count) + 1)):
                return False
    return bool(names)


def _top(name: str) -> bool:
    return "/" not in name and not name.startswith(FOREIGN)


def _small(name: str) -> bool:
    return (name.endswith(SMALL) or ".model." in name) and not name.endswith(INDEXES)


def _with_size(name: str, sizes: Sequence[int | None]) -> str:
    return f"{name} ({amount(sum(size or 0 for size in sizes))})" if all(sizes) else name
