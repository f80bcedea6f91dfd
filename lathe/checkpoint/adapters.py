"""An adapter's folder or file is read for a base, and a base with adapters is a Checkpoint like any other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lathe import hub
from lathe.checkpoint import landing, litgpt_parts, llama_adapter
from lathe.checkpoint.documents import generation, read_json, read_yaml
from lathe.checkpoint.filling import Checkpoint, named
from lathe.checkpoint.landing import EMBEDDING, HEAD, Landing, Parts
from lathe.checkpoint.merging import merge
from lathe.errors import MissingError, UsageError
from lathe.families import peft
from lathe.model.blank import blank
from lathe.model.decoder import Decoder
from lathe.transforms import adapt
from lathe.transforms.shard import Share
from lathe.transforms.terms import Lora
from lathe.weights import pickled, safetensors

if TYPE_CHECKING:
    from lathe.tokenizer import Tokenizer

Named = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
FILES = {"adapter_model.safetensors": safetensors.open, "adapter_model.bin": pickled.open}
LITGPT = (litgpt_parts.HYPERPARAMETERS, "checkpoint_dir", read_yaml)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")


def describes(path: Path) -> bool:
    """Whether an adapter lies there: a folder with one, or one of its files."""
    if path.is_dir():
        return any((path / name).is_file() for name in (peft.FILE, *litgpt_parts.FORMS))
    return path.name in litgpt_parts.FORMS or (path.name in FILES and (path.parent / peft.FILE).is_file())


def by_name(given: Named) -> dict[str, str | Path]:
    """Adapters by names: those they are given, also as in "NAME=PATH", or else their folders'; one alone is called
    default, as in PEFT.

    Raises UsageError for two of one name.
    """
    if isinstance(given, Mapping):
        return dict(given)
    found: dict[str, str | Path] = {}
    places = [given] if isinstance(given, str | Path) else given
    for place in places:
        match = re.fullmatch(r"([\w-]+)=(.+)", str(place))
        split = match is not None and not Path(place).exists()
        name = match[1] if match and split else Path(place).name.replace(".", "-") if len(places) > 1 else "default"
        if name in found:
            raise UsageError(f'Two adapters are called "{name}".', "", "Give them names, as in NAME=PATH.")
        found[name] = match[2] if match and split else place
    return found


def beside_base(folder: Path) -> bool:
    """Whether lit_model.pth is the base of an adapter in its folder: beside a LoRA it is what merging that gave."""
    return (folder / "lit_model.pth").is_file() and any(
        (folder / name).is_file() for name in litgpt_parts.FORMS if not name.endswith(".lora")
    )


def base(path: Path, checkpoints: Path = Path("checkpoints")) -> Path:
    """Where the model lies that an adapter was made for, as its configuration says.

    Raises MissingError: it does not say, or no such model can be found.
    """
    folder = path if path.is_dir() else path.parent
    by_peft = (folder / peft.FILE).is_file()
    if beside_base(folder) and not by_peft and not path.name.endswith(".lora"):
        return folder / "lit_model.pth"
    file, key, read = (peft.FILE, "base_model_name_or_path", read_json) if by_peft else LITGPT
    name = read(folder / file).get(key) if (folder / file).is_file() else None
    fix = f"Name both, as in: lathe generate MODEL --adapter {path}"
    if not isinstance(name, str) or not name:
        raise MissingError(f"{folder / file} names no {key}.", "An adapter needs the model it was made for.", fix)
    try:
        return hub.find(str(folder / name) if (folder / name).exists() else name, checkpoints)
    except MissingError as error:
        raise MissingError(f"{path} is an adapter of {name}. {error.found}", "", fix) from error


@dataclass(frozen=True)
class Adapter:
    """An adapter as it fits a base. settings: what its configuration said, in the family's names."""

    path: Path
    form: str
    parts: Parts = field(repr=False)
    settings: Lora | None = None


def read(path: Path, model: Checkpoint) -> Adapter:
    """The adapter in a folder or file, for this base.

    Raises:
        CheckpointError: its tensors do not belong to the base, or its files are damaged.
        ConfigError: its configuration asks for something that is not understood.
        MissingError: there is none.
    """
    folder = path if path.is_dir() else path.parent
    if (folder / peft.FILE).is_file() and path.name not in litgpt_parts.FORMS:
        return _peft(folder, model)
    names = litgpt_parts.FORMS if path.is_dir() else [path.name] if path.name in litgpt_parts.FORMS else []
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        kinds = f"{peft.FILE} and {' or '.join(FILES)}, or {' or '.join(litgpt_parts.FORMS)}"
        raise MissingError(f"{path} holds no adapter.", f"There should be {kinds}.")
    parts, settings = litgpt_parts.read(file, model)
    return Adapter(file, litgpt_parts.FORMS[file.name], parts, settings)


def _peft(folder: Path, model: Checkpoint) -> Adapter:
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise MissingError(f"{folder} has {peft.FILE} and neither {' nor '.join(FILES)}.", "", "Finish its download.")
    told = read_json(folder / peft.FILE)
    tensors = named(FILES[file.name](file), file)
    if told.get("peft_type") == llama_adapter.KIND:
        return Adapter(folder, "LLaMA-Adapter", llama_adapter.read(tensors, model))
    settings = peft.lora(told)
    return Adapter(folder, "PEFT's LoRA", landing.parts(tensors, settings, Landing.of(model)), settings)


@dataclass(frozen=True)
class Adapted(Checkpoint):
    """A base with adapters, all of them active. `load` puts them on; `tensors` are those of the model that merging them
    gives, computed as they are read."""

    base: Checkpoint = field(kw_only=True)
    adapters: Mapping[str, Adapter] = field(kw_only=True)

    def load(
        self,
        device: torch.device | str | Sequence[torch.device] = "cpu",
        dtype: torch.dtype | None = None,
        share: Share | None = None,
        quantize: str | None = None,
        dense: bool = False,
        quick: bool = False,
        keep: bool = False,
    ) -> Decoder:
        if share is not None:  # a rank's part of a model is cut from tensors: those that are merged
            return super().load(device, dtype, share, quantize, dense, quick, keep)
        decoder = self.base.load(device, dtype, quantize=quantize, dense=dense, quick=quick, keep=keep)
        for name, adapter in self.adapters.items():
            adapt.put(decoder, name, adapter.parts)
        return decoder.eval()

    def tokenizer(self, style: str = "auto") -> Tokenizer:
        if style == "auto":
            style = self.prompt_style() or "auto"  # the one that it was finetuned in, before the base's
        own = self.path != self.base.path and any((self.folder / name).is_file() for name in TOKENIZERS)
        return super().tokenizer(style) if own else self.base.tokenizer(style)


def put_on(model: Checkpoint, adapters: Mapping[str, Path], path: Path | None = None) -> Adapted:
    """A base with adapters, each in a folder, by names. path: where the whole is said to be, if not where the base is.

    Raises as `read`, and UsageError for names or adapters that do not go together.
    """
    found = {name: read(place, model) for name, place in adapters.items()}
    trial = blank(model.spec)
    for name, adapter in found.items():
        adapt.put(trial, name, adapter.parts)  # which says whether they go together
    touched = {module for adapter in found.values() for module in adapter.parts}
    tied = model.spec.tied and not touched & {EMBEDDING, HEAD}
    tensors = dict(model.tensors)
    if model.spec.tied and not tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    for module in touched:
        merge(tensors, module, [part for a in found.values() for part in a.parts.get(module, ())])
    return Adapted(
        path=path or model.path,
        form=f"{model.form}, with {' and '.join(dict.fromkeys(a.form for a in found.values()))}",
        config={**model.config, "tie_word_embeddings": tied} if tied != model.spec.tied else model.config,
        spec=replace(model.spec, tied=tied),
        tensors=tensors,
        generation=(generation(path) if path and path.is_dir() else None) or model.generation,
        base=model,
        adapters=found,
    )
