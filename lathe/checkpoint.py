"""Any folder or file becomes configuration, spec, tokenizer and tensors; fills a decoder; writes Hugging Face form.

Two questions are kept apart: the container (safetensors, pickle, GGUF), seen from a file's first bytes, and the hand
that named the tensors (Hugging Face, LitGPT, ggml), seen from which configuration lies beside them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from lathe import families
from lathe.errors import CheckpointError, ConfigError, MissingError, UsageError
from lathe.families import ggml, litgpt
from lathe.model.decoder import Decoder
from lathe.model.spec import Spec
from lathe.weights import gguf, pickled, rules, safetensors
from lathe.weights.tensors import Ref

if TYPE_CHECKING:
    from lathe.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000  # what transformers and the hub call one shard


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, its headers read and none of its tensors.

    form: what it was recognised as, in words.
    config, generation: as config.json and generation_config.json say it, also where another hand wrote the files.
    tensors: by their names in memory.
    """

    path: Path
    form: str
    config: dict[str, Any]
    spec: Spec
    tensors: dict[str, Ref]
    generation: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict, repr=False)  # a GGUF file's own

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type that most of the bytes are stored in."""
        sizes: Counter[torch.dtype] = Counter()
        for ref in self.tensors.values():
            if ref.dtype.is_floating_point:
                sizes[ref.dtype] += ref.nbytes
        return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Decoder:
        """A decoder filled from the files, without gradients. `dtype` None: as stored.

        On CPU a tensor already in `dtype` stays a view of the mapped file, which is private to this process.

        Raises:
            CheckpointError: tensors are missing, left over, or of another shape than the configuration says.
        """
        decoder = blank(self.spec)
        fit(decoder, self.tensors, self.path)
        state: dict[str, torch.Tensor] = {}
        for name, slot in slots(decoder):
            learned = isinstance(slot, nn.Parameter)
            # Buffers are float32 facts beside the weights and keep their precision.
            tensor = self.tensors[name].to(dtype or self.dtype if learned else torch.float32).read().to(device)
            state[name] = nn.Parameter(tensor, requires_grad=False) if learned else tensor
        if self.spec.tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]  # one parameter under two names
        decoder.load_state_dict(state, assign=True)
        return decoder.eval()

    def tokenizer(self) -> Tokenizer:
        from lathe.tokenizer import Tokenizer

        return Tokenizer.from_gguf(self.metadata) if self.metadata else Tokenizer.open(self.folder)

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def blank(spec: Spec) -> Decoder:
    """A decoder on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return Decoder(spec)


def slots(decoder: Decoder) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything a checkpoint must fill, once each: a tied head is its embedding."""
    yield from decoder.named_parameters()
    yield from decoder.named_buffers()


def fit(decoder: Decoder, tensors: Mapping[str, Ref], path: Path) -> None:
    """Every slot has a tensor of its shape and every tensor a slot, or an error names those that do not."""
    wanted = {name: tuple(slot.shape) for name, slot in slots(decoder)}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        lacks = f"lacks {_some(missing)}" if missing else ""
        has = f"holds {_some(extra)}, which the model has no place for" if extra else ""
        raise CheckpointError(
            f"{path} {' and '.join(filter(None, (lacks, has)))}.",
            "The tensors do not belong to the model that the configuration describes.",
            "Check that all files of the checkpoint are there and of one model.",
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{name} has shape {list(tensors[name].shape)} ({tensors[name].source}).",
                f"The configuration asks for {list(shape)}.",
                "Check that config and weights are of one model.",
            )


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - 3} more tensors" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


# ---- opening --------------------------------------------------------------------------------------------------------


def open(path: Path | str) -> Checkpoint:
    """Recognise what lies at `path`, a folder or a weight file, and read its headers.

    Raises:
        MissingError: nothing is there, or nothing that holds a model.
        CheckpointError, ConfigError: it is damaged, or not understood.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise MissingError(f"{path} does not exist.", "A model is a folder or a weight file.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return _open_gguf(path)
    read = pickled.open if magic[:2] == b"PK" else safetensors.open
    if (path.parent / "model_config.yaml").is_file() and not (path.parent / "model.safetensors").is_file():
        return _open_litgpt(path.parent, path)
    return _open_hugging_face(path.parent, [path], read, path)


def _open_folder(folder: Path) -> Checkpoint:
    def present(pattern: str) -> list[Path]:
        return sorted(p for p in folder.glob(pattern) if p.is_file() and not p.name.startswith("."))

    for index, single, pattern, read in (
        ("model.safetensors.index.json", "model.safetensors", "*.safetensors", safetensors.open),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin", pickled.open),
    ):
        if (folder / index).is_file():
            return _open_hugging_face(folder, _shards(folder, index), read)
        files = present(single) or [p for p in present(pattern) if not p.name.startswith("adapter_")]
        if files:
            return _open_hugging_face(folder, files, read)
    if (folder / "lit_model.pth").is_file():
        return _open_litgpt(folder, folder / "lit_model.pth")
    packed = present("*.gguf")
    if len(packed) == 1:
        return _open_gguf(packed[0])
    if packed:
        names = ", ".join(p.name for p in packed)
        raise UsageError(f"{folder} holds several GGUF files: {names}.", "", f"Name one of them, as in {packed[0]}.")
    inside = [p.parent for p in sorted(folder.glob("*/config.json"))]
    raise MissingError(
        f"{folder} holds no weights.",
        "A model's folder has model.safetensors (or shards with an index), lit_model.pth, or a .gguf file.",
        f"Did you mean {inside[-1]}?" if inside else "",
    )


def _shards(folder: Path, index: str) -> list[Path]:
    """The files that an index of shards names, each once."""
    names = read_json(folder / index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise CheckpointError(f'{folder / index} has no "weight_map" from tensors to files of its folder.')
    files = [folder / name for name in sorted(set(names.values()))]
    gone = [file.name for file in files if not file.is_file()]
    if gone:
        raise MissingError(
            f"{folder} lacks {', '.join(gone[:3])}, {len(gone)} of {len(files)} files of weights.",
            fix="Finish the download or copy.",
        )
    return files


def _open_hugging_face(
    folder: Path, files: list[Path], read: Callable[[Path], Any], path: Path | None = None
) -> Checkpoint:
    config = read_json(folder / "config.json")
    spec = families.read(config)
    tensors: dict[str, Ref] = {}
    for file in files:
        found = _named(read(file), file)
        twice = tensors.keys() & found.keys()
        if twice:
            raise CheckpointError(f"{_some(sorted(twice))} in {file} also stands in another file of {folder}.")
        tensors |= found
    generation = folder / "generation_config.json"
    return Checkpoint(
        path=path or folder,
        form=f"Hugging Face, {'safetensors' if read is safetensors.open else 'pickle'}",
        config=config,
        spec=spec,
        tensors=rules.into(families.rules(config, spec), tensors),
        generation=read_json(generation) if generation.is_file() else {},
    )


def _open_litgpt(folder: Path, file: Path) -> Checkpoint:
    told = read_yaml(folder / "model_config.yaml")
    config = litgpt.config(told)
    spec = families.read(config)
    tree = pickled.open(file)
    # finetune and pretrain wrap the tensors; convert_to_litgpt does not
    tensors = _named(tree["model"] if isinstance(tree, dict) and isinstance(tree.get("model"), dict) else tree, file)
    generation = folder / "generation_config.json"
    return Checkpoint(
        path=folder,
        form="LitGPT",
        config=config,
        spec=spec,
        tensors=rules.into([*litgpt.rules(spec), *families.tie(spec)], tensors),
        generation=read_json(generation) if generation.is_file() else {},
    )


def _open_gguf(path: Path) -> Checkpoint:
    file = gguf.open(path)
    config = ggml.config(file.metadata, {name: ref.shape for name, ref in file.tensors.items()})
    spec = families.read(config)
    return Checkpoint(
        path=path,
        form="GGUF",
        config=config,
        spec=spec,
        tensors=rules.into([*ggml.rules(config, spec), *families.tie(spec)], file.tensors),
        metadata=file.metadata,
    )


def _named(tree: Any, file: Path) -> dict[str, Ref]:
    """A mapping of names to tensors, or an error that says what stands there instead."""
    if isinstance(tree, dict) and all(isinstance(k, str) and isinstance(v, Ref) for k, v in tree.items()):
        return dict(tree)
    raise CheckpointError(f"{file} holds something else than tensors by name.", "It should be a model's weights.")


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


# ---- saving ---------------------------------------------------------------------------------------------------------


def save(
    folder: Path | str,
    model: Decoder | Mapping[str, Ref],
    config: Mapping[str, Any],
    *,
    generation: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    files: Mapping[str, str] | None = None,
    replace: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's folder in Hugging Face form: safetensors, config.json, generation_config.json, the tokenizer.

    model: a decoder, or tensors by their names in memory. files: further text files by name (recipe.yaml). The folder
    is written beside its place and renamed into it when it is whole.

    Raises:
        UsageError: the folder exists, is not empty, and `replace` is not given.
    """
    folder = Path(folder)
    if folder.exists() and not replace and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists already.", "", "Choose another place, or remove it first.")
    if isinstance(model, Decoder):
        model = {name: Ref.of(tensor.detach()) for name, tensor in slots(model)}
    family, spec = families.find(config), families.read(config)
    # Both names of the family, of which a reader may want either.
    config = {"architectures": [family.architecture], "model_type": family.model_type, **config}
    named = rules.back(families.rules(config, spec), dict(model))
    dtype = Counter({ref.dtype: ref.nbytes for ref in named.values()}).most_common(1)[0][0]

    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        _write_shards(beside, named, shard_bytes)
        _write_json(beside / "config.json", {**config, _dtype_key(config): str(dtype).removeprefix("torch.")})
        if generation:
            _write_json(beside / "generation_config.json", generation)
        if tokenizer is not None:
            tokenizer.save(beside)
        for name, text in (files or {}).items():
            (beside / name).write_text(text, encoding="utf-8")
        _move(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_shards(folder: Path, refs: Mapping[str, Ref], limit: int) -> None:
    """One file, or several of at most `limit` bytes each (unless one tensor is larger) and their index."""
    shards: list[dict[str, Ref]] = [{}]
    for name, ref in refs.items():
        if shards[-1] and sum(r.nbytes for r in shards[-1].values()) + ref.nbytes > limit:
            shards.append({})
        shards[-1][name] = ref
    if len(shards) == 1:
        safetensors.write(folder / "model.safetensors", shards[0])
        return
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        safetensors.write(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    total = sum(ref.nbytes for ref in refs.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _dtype_key(config: Mapping[str, Any]) -> str:
    """What the configuration's dialect calls the type of the weights (transformers 4 and 5)."""
    return "torch_dtype" if "torch_dtype" in config else "dtype"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move(source: Path, place: Path) -> None:
    """Rename a finished folder into its place; what was there goes only when the new one stands."""
    old = None
    if place.exists():
        old = place.parent / f".{place.name}.old-{os.getpid()}"
        place.rename(old)
    source.rename(place)
    if old is not None:
        shutil.rmtree(old)
